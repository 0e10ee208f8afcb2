//! Gateway API's routes with a Service as their parent (GAMMA), as far as they are honoured.

use serde::Deserialize;

object! {
    /// HTTP routes of Services.
    HttpRoute {
        /// The Services whose requests it takes.
        parent_refs: Vec<ParentRef>,
        /// The most specific match of all rules wins, not the first.
        rules: Vec<HttpRule>,
    }
}
object! {
    /// gRPC routes of Services.
    GrpcRoute {
        /// The Services whose requests it takes.
        parent_refs: Vec<ParentRef>,
        /// The most specific match of all rules wins, not the first.
        rules: Vec<GrpcRule>,
    }
}
object! {
    /// A Service that requests are made to.
    ParentRef {
        /// Empty for a Service; default `gateway.networking.k8s.io`.
        group: Option<String>,
        /// `Service`; default `Gateway`.
        kind: Option<String>,
        /// Default the route's.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// The name of its port.
        section_name: Option<String>,
        /// The number of its port; default every port.
        port: Option<u16>,
    }
}
object! {
    /// A rule.
    HttpRule {
        /// For people.
        name: Option<String>,
        /// Any of these; none is everything.
        matches: Vec<HttpRouteMatch>,
        /// What happens on the way.
        filters: Vec<Filter>,
        /// Where to.
        backend_refs: Vec<BackendRef>,
        /// Limits.
        timeouts: Option<Timeouts>,
        /// When to try again.
        retry: Option<RetrySpec>,
        /// Requests of a session go to one endpoint.
        session_persistence: Option<SessionPersistence>,
    }
}
object! {
    /// A rule.
    GrpcRule {
        /// For people.
        name: Option<String>,
        /// Any of these; none is everything.
        matches: Vec<GrpcRouteMatch>,
        /// What happens on the way.
        filters: Vec<Filter>,
        /// Where to.
        backend_refs: Vec<BackendRef>,
        /// Requests of a session go to one endpoint.
        session_persistence: Option<SessionPersistence>,
    }
}
object! {
    /// Requests of a session go to one endpoint.
    SessionPersistence {
        /// Name of the cookie; default `mesh-session-` and the name of the object.
        session_name: Option<String>,
        /// Longest life of a session; default as long as the caller runs.
        absolute_timeout: Option<String>,
        /// `Cookie`, which is the default.
        r#type: Option<String>,
        /// The cookie.
        cookie_config: Option<SessionCookie>,
    }
}
object! {
    /// A cookie.
    SessionCookie {
        /// `Session` (default) or `Permanent`.
        lifetime_type: Option<String>,
    }
}
object! {
    /// What pages of other origins may do.
    CorsFilter {
        /// `*`, an origin, or one whose host begins with `*.`.
        allow_origins: Vec<String>,
        /// Whether cookies are sent.
        allow_credentials: Option<bool>,
        /// Methods, or `*`.
        allow_methods: Vec<String>,
        /// Headers of requests, or `*`.
        allow_headers: Vec<String>,
        /// Headers of responses that pages see.
        expose_headers: Vec<String>,
        /// How long browsers remember it, in seconds; default 5.
        max_age: Option<u32>,
    }
}
object! {
    /// All of these.
    HttpRouteMatch {
        /// The path; default every one.
        path: Option<PathSpec>,
        /// Headers.
        headers: Vec<NamedText>,
        /// Query parameters.
        query_params: Vec<NamedText>,
        /// The method.
        method: Option<String>,
    }
}
object! {
    /// A path.
    PathSpec {
        /// `Exact`, `PathPrefix` (default) or `RegularExpression`.
        r#type: Option<String>,
        /// Default `/`.
        value: Option<String>,
    }
}
object! {
    /// A header or a query parameter, and its value.
    NamedText {
        /// `Exact` (default) or `RegularExpression`.
        r#type: Option<String>,
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    }
}
object! {
    /// All of these.
    GrpcRouteMatch {
        /// The method.
        method: Option<GrpcMethod>,
        /// Metadata.
        headers: Vec<NamedText>,
    }
}
object! {
    /// A method.
    GrpcMethod {
        /// `Exact` (default) or `RegularExpression`.
        r#type: Option<String>,
        /// Service with its package; default any.
        service: Option<String>,
        /// Method; default any.
        method: Option<String>,
    }
}
object! {
    /// What happens on the way: the field that `type` says.
    Filter {
        /// Which.
        r#type: String,
        /// Of the request.
        request_header_modifier: Option<HeaderFilter>,
        /// Of the response.
        response_header_modifier: Option<HeaderFilter>,
        /// A copy of requests.
        request_mirror: Option<MirrorFilter>,
        /// Answer with another address.
        request_redirect: Option<RedirectFilter>,
        /// Another path or authority.
        url_rewrite: Option<RewriteFilter>,
        /// What pages of other origins may do.
        cors: Option<CorsFilter>,
    }
}
object! {
    /// Changes of headers.
    HeaderFilter {
        /// These values alone.
        set: Vec<NamedValue>,
        /// One more value.
        add: Vec<NamedValue>,
        /// None.
        remove: Vec<String>,
    }
}
object! {
    /// A header.
    NamedValue {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    }
}
object! {
    /// A copy of requests.
    MirrorFilter {
        /// Where to.
        backend_ref: MirrorRef,
        /// Share in percent; default all.
        percent: Option<u32>,
        /// Share.
        fraction: Option<FractionSpec>,
    }
}
object! {
    /// A Service that copies go to.
    MirrorRef {
        /// Empty.
        group: Option<String>,
        /// `Service`.
        kind: Option<String>,
        /// Default the route's.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// Its port.
        port: Option<u16>,
    }
}
object! {
    /// A share.
    FractionSpec {
        /// So many.
        numerator: u32,
        /// Of so many; default 100.
        denominator: Option<u32>,
    }
}
object! {
    /// Another address.
    RedirectFilter {
        /// `http` or `https`; default the request's.
        scheme: Option<String>,
        /// Host; default the request's.
        hostname: Option<String>,
        /// Path; default the request's.
        path: Option<PathModifier>,
        /// Port; default that of `scheme`, or the one that the request was made to.
        port: Option<u16>,
        /// 301, 302 (default), 303, 307 or 308.
        status_code: Option<u16>,
    }
}
object! {
    /// Another path.
    PathModifier {
        /// `ReplaceFullPath` or `ReplacePrefixMatch`.
        r#type: String,
        /// All of it.
        replace_full_path: Option<String>,
        /// What takes the place of the prefix that matched.
        replace_prefix_match: Option<String>,
    }
}
object! {
    /// Another path or authority.
    RewriteFilter {
        /// Authority.
        hostname: Option<String>,
        /// Path.
        path: Option<PathModifier>,
    }
}
object! {
    /// A Service and its share.
    BackendRef {
        /// Empty.
        group: Option<String>,
        /// `Service`.
        kind: Option<String>,
        /// Default the route's.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// Its port.
        port: Option<u16>,
        /// Share; default 1.
        weight: Option<u32>,
        /// What happens on the way to this one.
        filters: Vec<Filter>,
    }
}
object! {
    /// Limits; zero is none.
    Timeouts {
        /// Over all attempts.
        request: Option<String>,
        /// Of an attempt.
        backend_request: Option<String>,
    }
}
object! {
    /// When to try again: when no connection can be made or kept, and on `codes`.
    RetrySpec {
        /// HTTP codes.
        codes: Vec<u16>,
        /// Most retries; default 2.
        attempts: Option<u32>,
        /// First pause.
        backoff: Option<String>,
    }
}
object! {
    /// Lets routes of other namespaces refer to what is in its own.
    ReferenceGrant {
        /// Who may.
        from: Vec<GrantFrom>,
        /// What to.
        to: Vec<GrantTo>,
    }
}
object! {
    /// Who may refer.
    GrantFrom {
        /// Group.
        group: String,
        /// Kind.
        kind: String,
        /// Namespace.
        namespace: String,
    }
}
object! {
    /// What may be referred to.
    GrantTo {
        /// Group; empty for a Service.
        group: String,
        /// Kind.
        kind: String,
        /// Name; default all of the kind.
        name: Option<String>,
    }
}

impl From<&MirrorRef> for BackendRef {
    fn from(declared: &MirrorRef) -> Self {
        Self {
            group: declared.group.clone(),
            kind: declared.kind.clone(),
            namespace: declared.namespace.clone(),
            name: declared.name.clone(),
            port: declared.port,
            ..Self::default()
        }
    }
}

object! {
    /// What holds for requests to Services, whatever route they took.
    BackendTrafficPolicy {
        /// The Services, of its own namespace.
        target_refs: Vec<TargetRef>,
        /// Limit on retries.
        retry_constraint: Option<RetryConstraint>,
        /// Requests of a session go to one endpoint.
        session_persistence: Option<SessionPersistence>,
    }
}
object! {
    /// A Service.
    TargetRef {
        /// Empty.
        group: String,
        /// `Service`.
        kind: String,
        /// Its name.
        name: String,
    }
}
object! {
    /// Limit on retries.
    RetryConstraint {
        /// Share of the requests.
        budget: Option<RetryBudgetSpec>,
        /// Retries that are always allowed.
        min_retry_rate: Option<RetryRate>,
    }
}
object! {
    /// Share of the requests that may be retries.
    RetryBudgetSpec {
        /// Default 20.
        percent: Option<u32>,
    }
}
object! {
    /// Retries that are always allowed.
    RetryRate {
        /// Default 10.
        count: Option<u32>,
    }
}
