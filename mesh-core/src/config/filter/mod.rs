//! HTTP filters: what happens to requests on their way, declared (gRFC A39; Envoy `HttpFilter`).
//!
//! A listener lists its filters in order; virtual hosts, routes and weighted clusters override them
//! by name. The router, which is always last, is not among them.

mod adaptive_concurrency;
mod cors;
mod ext_authz;
mod fault;
mod header_mutation;
mod rate_limit;
mod stateful_session;

use std::{collections::BTreeMap, sync::Arc};

pub use self::{
    adaptive_concurrency::AdaptiveConcurrency,
    cors::CorsPolicy,
    ext_authz::{
        CheckBody, EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT, EXT_AUTHZ_TIMEOUT_DEFAULT, ExtAuthz,
        ExtAuthzSettings, HttpCheck,
    },
    fault::{Abort, Delay, Fault, FaultAbort, FaultDelay},
    header_mutation::HeaderMutation,
    rate_limit::{
        DYNAMIC_DESCRIPTORS_DEFAULT, DYNAMIC_DESCRIPTORS_MAX, DescriptorEntry, DescriptorSource,
        LocalRateLimit, RateLimit, RateLimitDescriptor, TokenBucket,
    },
    stateful_session::StatefulSession,
};
use super::{JwtAuthn, Rbac};

/// A filter of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpFilter {
    /// Unique in its listener; what overrides refer to.
    pub name: Arc<str>,
    /// Off, unless an override switches it on.
    pub disabled: bool,
    /// What it does.
    pub config: FilterConfig,
}

impl HttpFilter {
    /// A filter that is on.
    pub fn new(name: impl Into<Arc<str>>, config: FilterConfig) -> Self {
        Self {
            name: name.into(),
            disabled: false,
            config,
        }
    }

    /// Authorisation filters under the names that the control plane gives them.
    pub fn of_rbac(rules: &[Rbac]) -> Vec<Self> {
        let named = rules.iter().enumerate().map(|(index, rules)| {
            let name = format!("envoy.filters.http.rbac.{index}");
            Self::new(name, FilterConfig::Rbac(Some(rules.clone())))
        });
        named.collect()
    }

    /// Whether a server that does not know it would admit whom it should not.
    pub fn is_security(&self) -> bool {
        matches!(
            self.config,
            FilterConfig::Rbac(_) | FilterConfig::JwtAuthn(_) | FilterConfig::ExtAuthz(_)
        )
    }

    /// The rules of an authorisation filter.
    pub fn rbac(&self) -> Option<&Rbac> {
        match &self.config {
            FilterConfig::Rbac(rules) => rules.as_ref(),
            _ => None,
        }
    }
}

/// What a filter does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterConfig {
    /// Authorisation (servers); without rules it admits everybody.
    Rbac(Option<Rbac>),
    /// Verifies tokens (servers).
    JwtAuthn(Arc<JwtAuthn>),
    /// Asks another service (servers).
    ExtAuthz(ExtAuthzSettings),
    /// Injected delays and aborts.
    Fault(Arc<Fault>),
    /// Token buckets of this process.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// A limit of requests at a time that follows their latency.
    AdaptiveConcurrency(Arc<AdaptiveConcurrency>),
    /// Cross-origin requests (servers); the policy is an override's, and `None` where the listener
    /// lists the filter.
    Cors(Option<Arc<CorsPolicy>>),
    /// Changes of headers. Every level's are made.
    HeaderMutation(Arc<HeaderMutation>),
    /// Sessions that stick to an endpoint (clients); `None` where the listener lists the filter without
    /// saying how.
    StatefulSession(Option<Arc<StatefulSession>>),
    /// Holds requests back until their bodies are there.
    Buffer {
        /// Longer bodies are answered with 413.
        max_request_bytes: u32,
    },
}

impl FilterConfig {
    /// Whether `other` can take the place of this.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What a virtual host, a route or a weighted cluster says about a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterOverride {
    /// Off here.
    pub disabled: bool,
    /// Replaces the filter's configuration; `None` keeps it.
    pub config: Option<FilterConfig>,
}

impl FilterOverride {
    /// Another configuration.
    pub fn with(config: FilterConfig) -> Self {
        Self {
            disabled: false,
            config: Some(config),
        }
    }

    /// Off.
    pub fn off() -> Self {
        Self {
            disabled: true,
            config: None,
        }
    }
}

/// What a level says about filters, by their names (`typed_per_filter_config`), and what its
/// requests are counted by (`rate_limits`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterOverrides {
    /// Names that no filter of the listener has are without effect.
    pub by_name: BTreeMap<Arc<str>, FilterOverride>,
    /// Descriptors of requests, for rate limits that make none themselves.
    pub rate_limits: Vec<RateLimit>,
    /// Whether those of the virtual host hold for this route too (`include_vh_rate_limits`).
    pub include_vh_rate_limits: bool,
}

impl FilterOverrides {
    /// One filter's.
    pub fn of(name: &str, config: FilterConfig) -> Self {
        Self {
            by_name: [(name.into(), FilterOverride::with(config))].into(),
            ..Self::default()
        }
    }

    /// `None` when nothing is said.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}
