//! Routes: from a request's head to a cluster (xDS RDS; gRFC A28, A31, A44).

use std::{fmt, time::Duration};

use super::{Fraction, HeaderMatcher, PathMatcher};
use crate::name::{ClusterName, RouteConfigName};

/// Most retries a policy may ask for (gRFC A44: five attempts in all).
pub const RETRIES_MAX: u32 = 4;

/// A route configuration resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Resource name.
    pub name: RouteConfigName,
    /// Chosen by the request's authority.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// Routes of a group of domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// For people; unique in a [`RouteConfig`].
    pub name: String,
    /// Exact, `*suffix`, `prefix*` or `*`; compared without ASCII case.
    pub domains: Vec<String>,
    /// The first that matches wins.
    pub routes: Vec<Route>,
}

/// A match and its action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// For people, metrics and logs; may be empty.
    pub name: String,
    /// All parts must match.
    pub matcher: RouteMatch,
    /// What happens then.
    pub action: RouteAction,
}

/// When a [`Route`] applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Predicate over the path.
    pub path: PathMatcher,
    /// Predicates over headers, all must match.
    pub headers: Vec<HeaderMatcher>,
    /// Share of the requests; `None` for all (`runtime_fraction.default_value`).
    pub fraction: Option<Fraction>,
}

/// What a [`Route`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// Send the request to a cluster.
    Forward(Forward),
    /// Serve it here (servers only, `non_forwarding_action`).
    NonForwarding,
    /// An action this version does not know; a request that reaches it fails with this reason.
    Unsupported(String),
}

/// Where and how to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// One or more clusters; the sum of the weights is 1 to `u32::MAX`.
    pub clusters: Vec<WeightedCluster>,
    /// From the end of the request to the end of the response, over all attempts; `None` for no
    /// limit (Envoy `RouteAction.timeout`).
    pub timeout: Option<Duration>,
    /// Limits of the stream (gRFC A31).
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// When to try again; `None` for never.
    pub retry: Option<RetryPolicy>,
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: ClusterName,
    /// Share of the sum of all weights.
    pub weight: u32,
}

/// `RouteAction.max_stream_duration` (gRFC A31). A zero means: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Replaces the listener's limit.
    pub max_stream_duration: Option<Duration>,
    /// Replaces both when present, even when zero.
    pub grpc_timeout_header_max: Option<Duration>,
}

/// When and how often a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions.
    pub retry_on: RetryOn,
    /// HTTP codes for [`RetryOn::RETRIABLE_STATUS_CODES`].
    pub retriable_status_codes: Vec<u16>,
    /// Retries after the first attempt, 1 to [`RETRIES_MAX`].
    pub num_retries: u32,
    /// Limit of each attempt up to the response's head; `None` for no limit of its own.
    pub per_try_timeout: Option<Duration>,
    /// Pause between attempts.
    pub backoff: Backoff,
}

/// Exponential backoff (gRFC A6): before retry n, `min(base · 2^(n−1), max)` ± 20 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first retry. Default 25 ms.
    pub base: Duration,
    /// At most. Default ten times `base`.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
        }
    }
}

/// A set of retry conditions (Envoy `retry_on`, gRFC A44).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    /// Any 5xx, and no response at all.
    pub const SERVER_ERROR: Self = Self(1);
    /// 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// The connection or stream ended without a response.
    pub const RESET: Self = Self(1 << 2);
    /// No connection could be made.
    pub const CONNECT_FAILURE: Self = Self(1 << 3);
    /// The server refused the stream unprocessed (HTTP/2 `REFUSED_STREAM`).
    pub const REFUSED_STREAM: Self = Self(1 << 4);
    /// 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 5);
    /// The codes of [`RetryPolicy::retriable_status_codes`].
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 6);
    /// gRPC `CANCELLED`.
    pub const CANCELLED: Self = Self(1 << 7);
    /// gRPC `DEADLINE_EXCEEDED`.
    pub const DEADLINE_EXCEEDED: Self = Self(1 << 8);
    /// gRPC `INTERNAL`.
    pub const INTERNAL: Self = Self(1 << 9);
    /// gRPC `RESOURCE_EXHAUSTED`.
    pub const RESOURCE_EXHAUSTED: Self = Self(1 << 10);
    /// gRPC `UNAVAILABLE`.
    pub const UNAVAILABLE: Self = Self(1 << 11);

    const TOKENS: [(&'static str, Self); 12] = [
        ("5xx", Self::SERVER_ERROR),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("retriable-status-codes", Self::RETRIABLE_STATUS_CODES),
        ("cancelled", Self::CANCELLED),
        ("deadline-exceeded", Self::DEADLINE_EXCEEDED),
        ("internal", Self::INTERNAL),
        ("resource-exhausted", Self::RESOURCE_EXHAUSTED),
        ("unavailable", Self::UNAVAILABLE),
    ];

    /// Reads a comma-separated list; also returns the tokens that are not known, or that are HTTP
    /// codes (Istio writes those into the same list).
    pub fn parse(list: &str) -> (Self, Vec<String>) {
        let mut set = Self::default();
        let mut unknown = Vec::new();
        for token in list
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty())
        {
            match Self::TOKENS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(token))
            {
                Some((_, bit)) => set |= *bit,
                None => unknown.push(token.to_owned()),
            }
        }
        (set, unknown)
    }

    /// Whether any condition of `other` is in this set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no condition is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for RetryOn {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, bit) in Self::TOKENS {
            if self.intersects(bit) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RetryOn({self})")
    }
}
