//! Rate limits of one process (Envoy `LocalRateLimit`, `RateLimit`).

use std::{sync::Arc, time::Duration};

use crate::config::{Fraction, HeaderChanges, HeaderMatcher};

/// Buckets of descriptors without a value, unless the configuration says otherwise (Envoy's).
pub const DYNAMIC_DESCRIPTORS_DEFAULT: u32 = 20;
/// Most buckets that a configuration may ask for: each is about 200 bytes.
pub const DYNAMIC_DESCRIPTORS_MAX: u32 = 65_536;

/// How many requests may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRateLimit {
    /// For people and metrics.
    pub stat_prefix: String,
    /// For requests without a descriptor, and for all of them with
    /// [`always_consume_default_token_bucket`](Self::always_consume_default_token_bucket). `None`
    /// lets them pass.
    pub token_bucket: Option<TokenBucket>,
    /// Share of the requests that are counted. `None`: none are.
    pub filter_enabled: Option<Fraction>,
    /// Share of the requests over the limit that are refused. `None`: none are.
    pub filter_enforced: Option<Fraction>,
    /// What is answered over the limit, an HTTP status of 400 or more. Default 429.
    pub status: u16,
    /// Whether gRPC callers see `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`.
    pub rate_limited_as_resource_exhausted: bool,
    /// Changes of the headers of refused requests' responses.
    pub response_headers: HeaderChanges,
    /// Changes of the headers of requests that are over the limit and pass.
    pub request_headers_when_not_enforced: HeaderChanges,
    /// Buckets of their own.
    pub descriptors: Vec<RateLimitDescriptor>,
    /// How a request gets descriptors; empty: by its route and virtual host.
    pub rate_limits: Vec<RateLimit>,
    /// Which of the route's and virtual host's [`RateLimit`]s count.
    pub stage: u32,
    /// Whether requests with a descriptor take from [`token_bucket`](Self::token_bucket), too.
    /// Default true.
    pub always_consume_default_token_bucket: bool,
    /// Most buckets of a descriptor whose entries have no value; the one that was not used for the
    /// longest time makes room. Default [`DYNAMIC_DESCRIPTORS_DEFAULT`].
    pub max_dynamic_descriptors: u32,
    /// Whether responses say `x-ratelimit-limit`, `-remaining` and `-reset`
    /// (`enable_x_ratelimit_headers`).
    pub x_ratelimit_headers: bool,
    /// Whether refusals say `retry-after`, in seconds (`enable_retry_after_header`).
    pub retry_after_header: bool,
}

impl LocalRateLimit {
    /// Everything is counted in this bucket and refused when it is empty.
    pub fn new(stat_prefix: impl Into<String>, token_bucket: TokenBucket) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            token_bucket: Some(token_bucket),
            filter_enabled: Fraction::new(1, 1),
            filter_enforced: Fraction::new(1, 1),
            status: 429,
            rate_limited_as_resource_exhausted: true,
            response_headers: HeaderChanges::default(),
            request_headers_when_not_enforced: HeaderChanges::default(),
            descriptors: Vec::new(),
            rate_limits: Vec::new(),
            stage: 0,
            always_consume_default_token_bucket: true,
            max_dynamic_descriptors: DYNAMIC_DESCRIPTORS_DEFAULT,
            x_ratelimit_headers: false,
            retry_after_header: false,
        }
    }
}

/// A bucket of tokens: a request takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// How many fit; there are as many in the beginning. At least 1.
    pub max_tokens: u32,
    /// How many come in each `fill_interval`, spread over it. At least 1. Default 1.
    pub tokens_per_fill: u32,
    /// At least 50 ms (Envoy's).
    pub fill_interval: Duration,
}

/// A bucket for the requests that have this descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitDescriptor {
    /// Keys and values, in this order. An empty value stands for any, each with a bucket of its own.
    pub entries: Vec<(Arc<str>, Arc<str>)>,
    /// Its bucket.
    pub token_bucket: TokenBucket,
}

/// How a request gets a descriptor (`config.route.v3.RateLimit`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Which filters look at it.
    pub stage: u32,
    /// One entry each, in order; without one of them there is no descriptor.
    pub entries: Vec<DescriptorEntry>,
}

/// An entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorEntry {
    /// Its key.
    pub key: Arc<str>,
    /// Where its value comes from.
    pub source: DescriptorSource,
}

/// Where the value of a [`DescriptorEntry`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorSource {
    /// It is this.
    Constant(Arc<str>),
    /// The cluster that the route chose.
    DestinationCluster,
    /// A header; its first value.
    Header {
        /// Its name.
        name: http::HeaderName,
        /// Without the header there is an entry less, instead of no descriptor.
        skip_if_absent: bool,
    },
    /// The caller's address.
    RemoteAddress,
    /// The caller's name, which its certificate proves: its first URI.
    PeerIdentity,
    /// This value, when all matchers match; or when they do not.
    HeaderMatch {
        /// Predicates over headers.
        matchers: Vec<HeaderMatcher>,
        /// Whether they should match.
        expect: bool,
        /// The value.
        value: Arc<str>,
    },
}
