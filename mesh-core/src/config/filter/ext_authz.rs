//! Asking another service whether a request may pass, declared (Envoy `ExtAuthz`; gRFC A92).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use crate::{
    config::{Fraction, MetadataMatcher, StringMatcher},
    name::ClusterName,
};

/// How long a check may take, unless the configuration says otherwise (Envoy's default).
pub const EXT_AUTHZ_TIMEOUT_DEFAULT: Duration = Duration::from_millis(200);

/// What a refused caller gets where the service cannot be asked, unless the configuration says
/// otherwise (Envoy's default).
pub const EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT: u16 = 403;

/// Which service is asked, what it is told, and what if it cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtAuthz {
    /// The service's cluster.
    pub cluster: ClusterName,
    /// How it is asked over HTTP; `None`: it speaks `envoy.service.auth.v3.Authorization` (gRPC).
    pub http: Option<Arc<HttpCheck>>,
    /// The authority of checks over gRPC; `None` is the cluster's name.
    pub authority: Option<String>,
    /// Headers of checks over gRPC.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// How long a check may take. Default [`EXT_AUTHZ_TIMEOUT_DEFAULT`].
    pub timeout: Duration,
    /// Whether requests pass when the service cannot be asked. Default false.
    pub failure_mode_allow: bool,
    /// Whether those that pass so carry `x-envoy-auth-failure-mode-allowed: true`. Default false.
    pub failure_mode_allow_header_add: bool,
    /// The status for callers that do not. Default [`EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT`].
    pub status_on_error: u16,
    /// The headers that the service is told; `None` is all of them over gRPC. Over HTTP it is always told
    /// method, path, authority and `authorization`, and those that are listed here besides.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// The headers that it is never told.
    pub disallowed_headers: Vec<StringMatcher>,
    /// The share of requests that is checked; `None` is all of them.
    pub enabled: Option<Fraction>,
    /// Only requests are checked about which other filters said this; `None` is all of them.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Whether requests that are not checked are refused with `status_on_error`. Default false: they
    /// pass.
    pub deny_at_disable: bool,
    /// Whether the service is told the name that the caller asked for in its TLS handshake. Default
    /// false.
    pub include_tls_session: bool,
    /// Whether it is told the certificate of the caller. Default false.
    pub include_peer_certificate: bool,
    /// How much of a request's body it is told (`with_request_body`); `None` is nothing.
    pub body: Option<CheckBody>,
    /// The namespaces of the dynamic metadata that it is told, over gRPC.
    pub metadata_namespaces: Vec<String>,
}

/// How much of a request's body a service is told (Envoy `BufferSettings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckBody {
    /// Most bytes; at least 1. They are held in memory for as long as the check takes.
    pub max_request_bytes: u32,
    /// Whether the service is told the beginning of a longer body. Default false: that is refused with
    /// 413.
    pub allow_partial: bool,
    /// Whether bytes that are no UTF-8 stay as they are. Default false: each becomes a `!`.
    pub pack_as_bytes: bool,
}

/// How a service is asked over HTTP (Envoy `HttpService`): the request without its body goes there, and 200
/// lets it pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpCheck {
    /// Stands before the path of a request; may be empty.
    pub path_prefix: String,
    /// Headers of checks, in place of the request's.
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of an answer that the request gets, in place of its own.
    pub upstream_headers: Vec<StringMatcher>,
    /// Headers of an answer that are joined with those of the request that are there.
    pub upstream_headers_to_append: Vec<StringMatcher>,
    /// Headers of an answer that a refused caller gets, with those of HTTP's own sense; `None` is all of
    /// them.
    pub client_headers: Option<Vec<StringMatcher>>,
    /// Headers of an answer that the response of a request gets that passes.
    pub client_headers_on_success: Vec<StringMatcher>,
    /// Headers of an answer that other filters may look at.
    pub metadata_headers: Vec<StringMatcher>,
}

impl ExtAuthz {
    /// Every request is checked by the service of `cluster`, and refused when it cannot be asked.
    pub fn new(cluster: impl Into<ClusterName>) -> Self {
        Self {
            cluster: cluster.into(),
            http: None,
            authority: None,
            metadata: Vec::new(),
            timeout: EXT_AUTHZ_TIMEOUT_DEFAULT,
            failure_mode_allow: false,
            failure_mode_allow_header_add: false,
            status_on_error: EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT,
            allowed_headers: None,
            disallowed_headers: Vec::new(),
            enabled: None,
            enabled_metadata: None,
            deny_at_disable: false,
            include_tls_session: false,
            include_peer_certificate: false,
            body: None,
            metadata_namespaces: Vec::new(),
        }
    }
}

/// What a listener or a route says about external authorisation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtAuthzSettings {
    /// Who is asked; `None` in what routes say, which leave that to the listener.
    pub service: Option<Arc<ExtAuthz>>,
    /// What the service is told besides; a more specific level's wins, key by key.
    pub context_extensions: BTreeMap<String, String>,
    /// How much of a body the service is told: `None` leaves that to the less specific level, `Some(None)`
    /// is nothing (`disable_request_body_buffering`).
    pub body: Option<Option<CheckBody>>,
}

impl From<ExtAuthz> for ExtAuthzSettings {
    fn from(service: ExtAuthz) -> Self {
        Self {
            service: Some(Arc::new(service)),
            context_extensions: BTreeMap::new(),
            body: None,
        }
    }
}
