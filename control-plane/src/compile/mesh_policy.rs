//! MeshPolicy: what holds for all workloads.
//!
//! Of several objects the strictest counts, so that none opens what another closes.

use mesh_core::config::{EscapedSlashes, PathNormalization};

use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{MeshPolicy, Object},
};

/// What all MeshPolicies say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MeshWide {
    pub(super) default_deny: bool,
    /// `None` is Istio's default, `BASE`.
    paths: Option<Paths>,
}

/// Istio's options, the laxest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Paths {
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

impl MeshWide {
    /// What is left of an object that cannot be read.
    pub(super) fn closed() -> Self {
        Self {
            default_deny: true,
            paths: None,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.default_deny |= other.default_deny;
        self.paths = self.paths.max(other.paths);
    }

    pub(super) fn path_normalization(self) -> PathNormalization {
        let merge_slashes = PathNormalization {
            merge_slashes: true,
            ..PathNormalization::BASE
        };
        match self.paths.unwrap_or(Paths::Base) {
            Paths::None => PathNormalization::default(),
            Paths::Base => PathNormalization::BASE,
            Paths::MergeSlashes => merge_slashes,
            Paths::DecodeAndMergeSlashes => PathNormalization {
                escaped_slashes: EscapedSlashes::Decode,
                ..merge_slashes
            },
        }
    }
}

pub(super) fn compile(
    object: &Object,
    spec: &MeshPolicy,
    findings: &mut Vec<Diagnostic>,
) -> MeshWide {
    let paths = match spec.path_normalization.as_deref() {
        None => None,
        Some("NONE") => Some(Paths::None),
        Some("BASE" | "DEFAULT") => Some(Paths::Base),
        Some("MERGE_SLASHES") => Some(Paths::MergeSlashes),
        Some("DECODE_AND_MERGE_SLASHES") => Some(Paths::DecodeAndMergeSlashes),
        Some(other) => {
            let message = format!("{other:?} is not known: DECODE_AND_MERGE_SLASHES is used");
            let help = "write NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES";
            let field = "spec.pathNormalization";
            findings.push(object.diagnose(BAD_VALUE, field, message, help));
            Some(Paths::DecodeAndMergeSlashes)
        }
    };
    MeshWide {
        default_deny: spec.default_deny,
        paths,
    }
}
