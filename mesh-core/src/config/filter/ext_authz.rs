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
    /// The service's cluster; it speaks `envoy.service.auth.v3.Authorization`.
    pub cluster: ClusterName,
    /// The authority of checks; `None` is the cluster's name.
    pub authority: Option<String>,
    /// Headers of checks.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// How long a check may take. Default [`EXT_AUTHZ_TIMEOUT_DEFAULT`].
    pub timeout: Duration,
    /// Whether requests pass when the service cannot be asked. Default false.
    pub failure_mode_allow: bool,
    /// Whether those that pass so carry `x-envoy-auth-failure-mode-allowed: true`. Default false.
    pub failure_mode_allow_header_add: bool,
    /// The status for callers that do not. Default [`EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT`].
    pub status_on_error: u16,
    /// The headers that the service is told; `None` is all of them.
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
}

impl ExtAuthz {
    /// Every request is checked by the service of `cluster`, and refused when it cannot be asked.
    pub fn new(cluster: impl Into<ClusterName>) -> Self {
        Self {
            cluster: cluster.into(),
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
}

impl From<ExtAuthz> for ExtAuthzSettings {
    fn from(service: ExtAuthz) -> Self {
        Self {
            service: Some(Arc::new(service)),
            context_extensions: BTreeMap::new(),
        }
    }
}
