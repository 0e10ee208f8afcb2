//! Forwarding: clusters with their shares, limits, and what is changed on the way (xDS
//! `RouteAction`; gRFC A28, A31).

use std::time::Duration;

use http::HeaderName;

use super::{
    FilterOverrides, Fraction, HashPolicy, HeaderMutations, HostRewrite, InternalRedirectPolicy,
    LbMetadata, PathRewrite, RetryPolicy,
};
use crate::name::ClusterName;

/// Where and how to forward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// One or more clusters; the sum of the weights is 1 to `u32::MAX`.
    pub clusters: Vec<WeightedCluster>,
    /// From the end of the request to the end of the response, over all attempts; `None` for no
    /// limit (Envoy `RouteAction.timeout`).
    pub timeout: Option<Duration>,
    /// Limits of the stream (gRFC A31).
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// When to try again; `None` for never. One without conditions says how often and after which
    /// pause, where a caller names the conditions.
    pub retry: Option<RetryPolicy>,
    /// How much of a streaming body is kept for other attempts; `None` for the process' own limit.
    pub body_buffer: Option<BodyBuffer>,
    /// What few routes ask for.
    pub extras: Option<Box<ForwardExtras>>,
}

/// How much of a request's body is kept for other attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyBuffer {
    /// So many bytes, and not more than the process' own limit (`per_request_buffer_limit_bytes`).
    AtMost(u32),
    /// So many bytes, whatever the process' own limit is (`request_body_buffer_limit`).
    Exactly(u64),
}

impl BodyBuffer {
    /// The limit in bytes, where the process' own is `own`.
    pub fn limit(self, own: usize) -> usize {
        match self {
            Self::AtMost(bytes) => own.min(bytes as usize),
            Self::Exactly(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }
}

impl Forward {
    /// Everything to one cluster, without limits or retries.
    pub fn to(cluster: impl Into<ClusterName>) -> Self {
        Self {
            clusters: vec![WeightedCluster::new(cluster, 1)],
            ..Self::default()
        }
    }
}

/// What few routes ask for: rewriting, stickiness, copies, second attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardExtras {
    /// The header that names the cluster, instead of [`Forward::clusters`], which is empty then
    /// (`cluster_header`).
    pub cluster_header: Option<HeaderName>,
    /// What decides among the clusters.
    pub weigh_by: WeighBy,
    /// Another path.
    pub path_rewrite: Option<PathRewrite>,
    /// Another authority.
    pub host_rewrite: Option<HostRewrite>,
    /// Tell the authority before the rewrite in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Limit of a stream without data in either direction; zero for no limit, `None` for the
    /// listener's (`RouteAction.idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// What requests have in common that go to the same endpoint.
    pub hash_policy: Vec<HashPolicy>,
    /// Copies, whose responses nobody waits for.
    pub mirrors: Vec<Mirror>,
    /// Attempts side by side.
    pub hedge: Option<HedgePolicy>,
    /// The metadata that endpoints must have (`RouteAction.metadata_match`), where the cluster has
    /// [`Subsets`](super::Subsets).
    pub metadata_match: LbMetadata,
    /// Redirects of servers that are followed for the caller; `None` hands them on.
    pub internal_redirect: Option<Box<InternalRedirectPolicy>>,
}

/// What decides among weighted clusters (`WeightedCluster.random_value_specifier`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeighBy {
    /// A draw for each request.
    #[default]
    Random,
    /// The hash of [`ForwardExtras::hash_policy`]; a draw for a request that has none.
    Hash,
    /// The number in this header; a draw for a request that has none.
    Header(HeaderName),
}

/// A copy of requests (`RouteAction.request_mirror_policies`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub cluster: MirrorTarget,
    /// Share of the requests; `None` for all.
    pub fraction: Option<Fraction>,
    /// Whether the copy's authority ends in `-shadow`. Default true.
    pub shadow_suffix: bool,
    /// Whether the copy is recorded in the call's trace; `None` is as the call is (`trace_sampled`).
    pub trace_sampled: Option<bool>,
}

/// Where a [`Mirror`] goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorTarget {
    /// This cluster.
    Cluster(ClusterName),
    /// The cluster that a header names; no copy without it.
    Header(HeaderName),
}

/// Attempts side by side (`RouteAction.hedge_policy`, and the mesh's own `HedgePolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePolicy {
    /// Attempts that begin at once. Default 1.
    pub initial_requests: u32,
    /// Chance of one more.
    pub additional_request_chance: Fraction,
    /// Whether the per-try timeout starts another attempt and leaves the first one running.
    pub on_per_try_timeout: bool,
    /// When another attempt begins because there is no response yet; `None` for never. Not in xDS.
    pub delay: Option<HedgeDelay>,
    /// Attempts that are under way at most, [`HEDGE_ATTEMPTS_MAX`] at most.
    pub attempts_max: u32,
}

/// Most attempts side by side that a policy may ask for (gRFC A6: five in all).
pub const HEDGE_ATTEMPTS_MAX: u32 = 5;

impl HedgePolicy {
    /// The key of the route's metadata in which what xDS has no field for is on the wire: a structure
    /// of `delay_ms`, or of `percentile` and `min_delay_ms`, and of `attempts_max`.
    pub const METADATA: &str = "mesh.v1.HedgePolicy";
}

impl Default for HedgePolicy {
    /// One attempt, never another.
    fn default() -> Self {
        Self {
            initial_requests: 1,
            additional_request_chance: Fraction::NONE,
            on_per_try_timeout: false,
            delay: None,
            attempts_max: HEDGE_ATTEMPTS_MAX,
        }
    }
}

/// How long an attempt may be without a response before another one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeDelay {
    /// This long.
    Fixed(Duration),
    /// As long as this share of the cluster's attempts took lately, and not less than `min`.
    Percentile {
        /// Which share.
        percentile: Percentile,
        /// Not less than this, and this while there are too few attempts to know.
        min: Duration,
    },
}

/// A share of ordered values, in thousandths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentile(u32);

impl Percentile {
    /// `percent` must be above 0 and below 100.
    pub fn new(percent: f64) -> Option<Self> {
        let thousandths = (percent * 1e3).round();
        (thousandths > 0.0 && thousandths < 1e5).then_some(Self(thousandths as u32))
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1e3
    }

    /// The number, counted from 1, of the value among `total` ordered ones.
    pub(crate) fn rank(self, total: u32) -> u32 {
        let rank = (u64::from(total) * u64::from(self.0)).div_ceil(100_000);
        rank as u32
    }
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: ClusterName,
    /// Share of the sum of all weights.
    pub weight: u32,
    /// What only requests to this cluster get.
    pub extras: Option<Box<ClusterExtras>>,
}

impl WeightedCluster {
    /// A cluster and its share.
    pub fn new(name: impl Into<ClusterName>, weight: u32) -> Self {
        Self {
            name: name.into(),
            weight,
            extras: None,
        }
    }
}

/// What only requests to one of several clusters get (`WeightedCluster.ClusterWeight`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterExtras {
    /// Changes of headers.
    pub headers: HeaderMutations,
    /// Another authority, when the route rewrites none.
    pub host_rewrite: Option<String>,
    /// What is said about filters.
    pub filters: Option<Box<FilterOverrides>>,
    /// More metadata that endpoints must have; wins over the route's
    /// [`metadata_match`](ForwardExtras::metadata_match).
    pub metadata_match: LbMetadata,
}

/// `RouteAction.max_stream_duration` (gRFC A31). A zero means: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Replaces the listener's limit.
    pub max_stream_duration: Option<Duration>,
    /// Replaces both when present, even when zero.
    pub grpc_timeout_header_max: Option<Duration>,
}
