//! What holds for the whole mesh.

use serde::Deserialize;

/// What holds for all workloads, in whatever namespace the object is. Of several the strictest counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshPolicy {
    /// Refuse what no policy allows, for workloads without any policy too. Default false.
    pub default_deny: bool,
    /// `NONE`, `BASE` (default), `MERGE_SLASHES` or `DECODE_AND_MERGE_SLASHES`, as in Istio's
    /// `pathNormalization`.
    pub path_normalization: Option<String>,
}
