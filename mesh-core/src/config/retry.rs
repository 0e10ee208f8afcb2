//! When a request is tried again (Envoy `RetryPolicy`; gRFC A6, A44).

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use http::HeaderName;

use super::{HeaderMatcher, LbMetadata};

/// Most retries a policy may ask for (gRFC A44: five attempts in all).
pub const RETRIES_MAX: u32 = 4;

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
    /// What few policies ask for.
    pub extras: Option<Arc<RetryExtras>>,
}

impl RetryPolicy {
    /// Whether it does anything by itself: retries, or a limit of attempts.
    pub fn has_effect(&self) -> bool {
        let idle = self.extras.as_ref().and_then(|e| e.per_try_idle_timeout);
        !self.retry_on.is_empty() || self.per_try_timeout.is_some() || idle.is_some()
    }
}

impl Default for RetryPolicy {
    /// One retry, on nothing.
    fn default() -> Self {
        Self {
            retry_on: RetryOn::default(),
            retriable_status_codes: Vec::new(),
            num_retries: 1,
            per_try_timeout: None,
            backoff: Backoff::default(),
            extras: None,
        }
    }
}

/// What few retry policies ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryExtras {
    /// Response headers for [`RetryOn::RETRIABLE_HEADERS`], any of them.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Request headers, any of which a request must have to be tried again; none asks for nothing.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// The pause that a server asks for.
    pub rate_limited: Option<RateLimitedBackoff>,
    /// Limit of an attempt without data in either direction.
    pub per_try_idle_timeout: Option<Duration>,
    /// Whether a retry avoids endpoints that were tried (`envoy.retry_host_predicates.previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// Whether a retry avoids endpoints that are marked as canaries: whose metadata says `canary: true`.
    pub avoid_canary_hosts: bool,
    /// A retry avoids endpoints whose metadata has all that one of these has
    /// (`envoy.retry_host_predicates.omit_host_metadata`).
    pub avoid_metadata: Vec<LbMetadata>,
    /// How often a retry chooses again when it has chosen an endpoint to be avoided; then it takes
    /// what it gets. Default 1.
    pub host_selection_attempts: u32,
    /// A retry avoids the priorities of earlier attempts, all but those since the last multiple of so
    /// many attempts; when no other one can be used, the list starts again
    /// (`envoy.retry_priorities.previous_priorities`, `update_frequency`).
    pub previous_priorities: Option<NonZeroU32>,
}

impl RetryExtras {
    /// Whether endpoints are avoided for what their metadata says.
    pub fn avoids_by_metadata(&self) -> bool {
        self.avoid_canary_hosts || !self.avoid_metadata.is_empty()
    }

    /// Whether an endpoint is avoided for what its metadata says.
    pub fn avoids(&self, endpoint: &LbMetadata) -> bool {
        let is_canary = || {
            let canary = endpoint.get("canary");
            canary.is_some_and(|canary| canary.as_json() == "true")
        };
        let has_all = |wanted: &LbMetadata| {
            let mut wanted = wanted.iter();
            wanted.all(|(key, value)| endpoint.get(key) == Some(value))
        };
        self.avoid_canary_hosts && is_canary() || self.avoid_metadata.iter().any(has_all)
    }
}

/// Pauses that the server asks for (`RetryPolicy.rate_limited_retry_back_off`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitedBackoff {
    /// Tried in order; the first that is present and can be read counts.
    pub reset_headers: Vec<ResetHeader>,
    /// Longer pauses are not waited for. Default 300 s.
    pub max_interval: Duration,
}

/// A response header that says when to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name.
    pub name: HeaderName,
    /// Whether it is a Unix time instead of a number of seconds.
    pub is_unix_time: bool,
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

/// The words of a list that are not empty.
fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

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

    /// The connection or stream ended before anything of the request was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 12);
    /// A response with one of [`RetryExtras::retriable_headers`].
    pub const RETRIABLE_HEADERS: Self = Self(1 << 13);
    /// A response with `x-envoy-ratelimited`.
    pub const ENVOY_RATE_LIMITED: Self = Self(1 << 14);
    /// HTTP/3 failed after its connection was made; there is no HTTP/3 here.
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 15);

    const TOKENS: [(&'static str, Self); 16] = [
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
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("retriable-headers", Self::RETRIABLE_HEADERS),
        ("envoy-ratelimited", Self::ENVOY_RATE_LIMITED),
        (
            "http3-post-connect-failure",
            Self::HTTP3_POST_CONNECT_FAILURE,
        ),
    ];

    /// Reads a comma-separated list; also returns the tokens that are not known, or that are HTTP
    /// codes (Istio writes those into the same list).
    pub fn parse(list: &str) -> (Self, Vec<String>) {
        let mut set = Self::default();
        let mut unknown = Vec::new();
        for token in words(list) {
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

    /// The conditions of gRPC statuses.
    const GRPC: Self = Self::CANCELLED
        .or(Self::DEADLINE_EXCEEDED)
        .or(Self::INTERNAL)
        .or(Self::RESOURCE_EXHAUSTED)
        .or(Self::UNAVAILABLE);

    /// Reads `x-envoy-retry-on` as Envoy does: by exact names, without the conditions of gRPC statuses;
    /// what is not known is passed over.
    pub fn of_http(list: &str) -> Self {
        Self::exactly(list, |bit| !Self::GRPC.contains(bit))
    }

    /// Reads `x-envoy-retry-grpc-on` likewise: the conditions of gRPC statuses alone.
    pub fn of_grpc(list: &str) -> Self {
        Self::exactly(list, |bit| Self::GRPC.contains(bit))
    }

    /// Whether every word of `x-envoy-retry-on` is one that it can have.
    pub fn are_of_http(list: &str) -> bool {
        words(list).all(|word| Self::of_http(word) != Self::default())
    }

    /// The same of `x-envoy-retry-grpc-on`.
    pub fn are_of_grpc(list: &str) -> bool {
        words(list).all(|word| Self::of_grpc(word) != Self::default())
    }

    fn exactly(list: &str, is_meant: impl Fn(Self) -> bool) -> Self {
        let known = list.split(',').map(str::trim).filter_map(|token| {
            let mut tokens = Self::TOKENS.into_iter();
            tokens.find_map(|(name, bit)| (name == token && is_meant(bit)).then_some(bit))
        });
        known.fold(Self::default(), Self::or)
    }

    /// The conditions of both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any condition of `other` is in this set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every condition of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no condition is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.or(other)
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
