//! What holds for the whole mesh.

use serde::Deserialize;

object! {
    /// What holds for all workloads, in whatever namespace the object is. Of several the strictest counts.
    MeshPolicy {
        /// Refuse what no policy allows, for workloads without any policy too. Default false.
        default_deny: bool,
        /// `NONE`, `BASE` (default), `MERGE_SLASHES` or `DECODE_AND_MERGE_SLASHES`, as in Istio's
        /// `pathNormalization`.
        path_normalization: Option<String>,
        /// Who decides for AuthorizationPolicies of action `CUSTOM`, as in Istio's `extensionProviders`.
        extension_providers: Vec<ExtensionProvider>,
    }
}
object! {
    /// A service that decides.
    ExtensionProvider {
        /// What policies call it.
        name: String,
        /// It speaks `envoy.service.auth.v3.Authorization`.
        envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    }
}
object! {
    /// A service that speaks `envoy.service.auth.v3.Authorization`.
    ExtAuthzGrpc {
        /// `HOST` or `NAMESPACE/HOST`; it must be a service of the mesh.
        service: String,
        /// Its port.
        port: u16,
        /// How long it may take to decide; default 10s.
        timeout: Option<String>,
        /// Whether requests pass when it cannot be asked. Default false.
        fail_open: bool,
        /// What callers get when it cannot be asked; default 403.
        status_on_error: Option<String>,
    }
}
