//! What holds for the whole mesh.

use std::collections::BTreeMap;

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
        /// Servers fetch the keys at a `jwksUri` of RequestAuthentications themselves, through the service of
        /// the mesh that its host is. Default: the control plane fetches them, as in Istio.
        remote_jwks: Option<RemoteJwksPolicy>,
    }
}
object! {
    /// How servers fetch keys.
    RemoteJwksPolicy {
        /// How long they are used before they are fetched again; default 5m, at least 1s.
        cache_duration: Option<String>,
    }
}
object! {
    /// A service that decides.
    ExtensionProvider {
        /// What policies call it.
        name: String,
        /// It speaks `envoy.service.auth.v3.Authorization`.
        envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
        /// It answers HTTP requests.
        envoy_ext_authz_http: Option<ExtAuthzHttp>,
    }
}
object! {
    /// A service that is asked by the request itself, without its body, and lets it pass by 200.
    ExtAuthzHttp {
        /// `HOST` or `NAMESPACE/HOST`; it must be a service of the mesh.
        service: String,
        /// Its port.
        port: u16,
        /// How long it may take to decide; default 10s.
        timeout: Option<String>,
        /// Stands before the path of a request.
        path_prefix: String,
        /// Whether requests pass when it cannot be asked. Default false.
        fail_open: bool,
        /// What callers get when it cannot be asked; default 403.
        status_on_error: Option<String>,
        /// Headers that it is told besides method, path, authority and `authorization`.
        include_request_headers_in_check: Vec<String>,
        /// Headers that checks have in place of the request's.
        include_additional_headers_in_check: BTreeMap<String, String>,
        /// How much of a body it is told.
        include_request_body_in_check: Option<CheckedRequestBody>,
        /// Headers of its answer that a request gets that passes.
        headers_to_upstream_on_allow: Vec<String>,
        /// Headers of its answer that a refused caller gets; none listed is all of them.
        headers_to_downstream_on_deny: Vec<String>,
        /// Headers of its answer that the response gets of a request that passes.
        headers_to_downstream_on_allow: Vec<String>,
    }
}
object! {
    /// How much of a body a service is told.
    CheckedRequestBody {
        /// Most bytes.
        max_request_bytes: u32,
        /// Whether it is told the beginning of a longer one. Default false: that is refused with 413.
        allow_partial_message: bool,
        /// Whether bytes that are no UTF-8 stay as they are.
        pack_as_bytes: bool,
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
        /// How much of a body it is told.
        include_request_body_in_check: Option<CheckedRequestBody>,
    }
}
