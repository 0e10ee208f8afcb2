//! How one endpoint of a cluster is chosen, as declared (Envoy `load_balancing_policies`; gRFC A42,
//! A48, A52, A58, A62, A68, A76, A113, A114).

use std::time::Duration;

use super::{HEALTHY_PANIC_THRESHOLD_DEFAULT, HealthStatus, ZoneAware};

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum LbPolicy {
    /// Each in turn, from a random start; by weight where endpoints have different ones.
    #[default]
    RoundRobin,
    /// The least loaded of a few random ones (gRFC A48).
    LeastRequest(LeastRequest),
    /// A random one, by weight.
    Random,
    /// Each in turn, by weights that follow from the load that endpoints report (gRFC A58).
    ClientSideWeightedRoundRobin(ClientSideWrr),
    /// The same endpoint for the same hash, on a ring (gRFC A42).
    RingHash(RingHash),
    /// The same endpoint for the same hash, by a table (Envoy `Maglev`).
    Maglev {
        /// Size of the table: a prime, at most [`MAGLEV_TABLE_SIZE_MAX`]. Default
        /// [`MAGLEV_TABLE_SIZE_DEFAULT`].
        table_size: u32,
    },
    /// All requests to one endpoint as long as it can be reached (gRFC A62).
    PickFirst {
        /// Whether the order is random (by weight, gRFC A113). Default `false`.
        shuffle_address_list: bool,
    },
    /// The lower product of latency and requests in flight of two random ones (Finagle, Linkerd).
    PeakEwma(PeakEwma),
    /// Of a few random ones: the one with the lowest latency among those that are not hot, that is,
    /// have no more requests in flight than most (Prequal, NSDI 2024).
    Prequal(Prequal),
    /// One of the application's own, by the name under which it was given to the compiler
    /// ([`Compiler::with_policy`](crate::snapshot::Compiler::with_policy)).
    Custom {
        /// Its name.
        name: String,
        /// What it is to be told, as JSON.
        config: String,
    },
}

impl LbPolicy {
    /// Whether an endpoint is connected when it is first picked, and again so after its connection was
    /// lost (gRFC A42, A62), or all of them at once.
    pub fn connects_on_demand(&self) -> bool {
        matches!(self, Self::RingHash(_) | Self::PickFirst { .. })
    }

    /// Whether all endpoints of a priority are one list, in which the weight of a locality is a part of
    /// its endpoints' own; all other policies can choose a locality first, and then one of its endpoints.
    pub fn is_one_list(&self) -> bool {
        matches!(
            self,
            Self::RingHash(_) | Self::Maglev { .. } | Self::PickFirst { .. }
        )
    }

    /// Least request with its defaults and this number of choices.
    pub fn least_request(choice_count: u32) -> Self {
        Self::LeastRequest(LeastRequest {
            choice_count,
            ..LeastRequest::default()
        })
    }
}

/// Settings of [`LbPolicy::LeastRequest`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeastRequest {
    /// How many random endpoints are compared, 1 to 10. Default 2.
    pub choice_count: u32,
    /// How much the requests in flight count where endpoints have different weights: those of
    /// `in_flight ^ bias / weight` are compared; 0 is weighted random. Default 1.0; not negative.
    pub active_request_bias: f64,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self {
            choice_count: 2,
            active_request_bias: 1.0,
        }
    }
}

/// Settings of [`LbPolicy::ClientSideWeightedRoundRobin`] (gRFC A58, A114).
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSideWrr {
    /// How long an endpoint reports before its weight is used. Default 10 s; 0 is at once.
    pub blackout_period: Duration,
    /// How long a weight is used without a new report. Default 180 s.
    pub weight_expiration_period: Duration,
    /// How often weights are looked at. Default 1 s, at least 100 ms.
    pub weight_update_period: Duration,
    /// How much errors lower a weight: `errors / requests` times this is added to the utilisation.
    /// Default 1.0; not negative.
    pub error_utilization_penalty: f64,
    /// Names of metrics; the highest of those that are reported is the utilisation. Default none:
    /// application utilisation, or CPU utilisation where that is not reported.
    pub metric_names_for_computing_utilization: Vec<String>,
}

impl Default for ClientSideWrr {
    fn default() -> Self {
        Self {
            blackout_period: Duration::from_secs(10),
            weight_expiration_period: Duration::from_secs(180),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metric_names_for_computing_utilization: Vec::new(),
        }
    }
}

/// Shortest [`ClientSideWrr::weight_update_period`] (gRFC A58).
pub const WEIGHT_UPDATE_PERIOD_MIN: Duration = Duration::from_millis(100);

/// Settings of [`LbPolicy::RingHash`] (gRFC A42).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHash {
    /// Fewest entries. Default 1024.
    pub minimum_ring_size: u64,
    /// Most entries; both are also bounded by [`RING_SIZE_CAP`]. Default [`RING_SIZE_MAX`].
    pub maximum_ring_size: u64,
}

impl Default for RingHash {
    fn default() -> Self {
        Self {
            minimum_ring_size: 1024,
            maximum_ring_size: RING_SIZE_MAX,
        }
    }
}

/// Highest size of a ring that may be declared (gRFC A42).
pub const RING_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// Most entries of a ring here: what is declared beyond it is lowered (gRFC A42).
pub const RING_SIZE_CAP: u64 = 4096;

/// Default of [`LbPolicy::Maglev`] (Envoy).
pub const MAGLEV_TABLE_SIZE_DEFAULT: u32 = 65_537;

/// Largest table of [`LbPolicy::Maglev`] (Envoy).
pub const MAGLEV_TABLE_SIZE_MAX: u32 = 5_000_011;

/// Settings of [`LbPolicy::PeakEwma`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakEwma {
    /// In this time the weight of an old latency falls to 1/e. Default 10 s, as Linkerd's.
    pub decay: Duration,
    /// Taken for the latency of an endpoint that has not answered yet. Default 30 ms, as Linkerd's.
    pub default_rtt: Duration,
    /// Taken for the latency of a failed request, when it was faster. Default 5 s, as Linkerd's.
    pub failure_penalty: Duration,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            default_rtt: Duration::from_millis(30),
            failure_penalty: Duration::from_secs(5),
        }
    }
}

/// Settings of [`LbPolicy::Prequal`].
///
/// Endpoints say with each response how many requests they have in flight and how long these take;
/// for one that does not, what this process sees of it is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prequal {
    /// How many random endpoints are compared, 2 to 16. Default 5.
    pub choice_count: u32,
    /// An endpoint is hot when it has more requests in flight than this share of the recent reports
    /// say, 0 to 1. Default 0.84.
    pub rif_quantile: f64,
    /// How long a report is used. Default 1 s.
    pub max_age: Duration,
    /// Taken for the latency of a failed request, when it was faster. Default 5 s.
    pub failure_penalty: Duration,
}

impl Default for Prequal {
    fn default() -> Self {
        Self {
            choice_count: 5,
            rif_quantile: 0.84,
            max_age: Duration::from_secs(1),
            failure_penalty: Duration::from_secs(5),
        }
    }
}

/// What holds for all policies of a cluster (Envoy `CommonLbConfig` and the like).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommonLbConfig {
    /// Whether requests are shared among localities by their weights (gRFC A27 `wrr_locality`, Envoy
    /// `locality_weighted_lb_config`), or localities say nothing. Default `false`.
    pub locality_weighted: bool,
    /// Percentage of usable endpoints of a priority below which all of them are used, whatever is
    /// known of their health. Default none: that is not done.
    pub healthy_panic_threshold: Option<u32>,
    /// New endpoints get a growing share. Default none: all of it at once.
    pub slow_start: Option<SlowStart>,
    /// Of many endpoints only this many are used, others by other processes. Default none: all are.
    pub subset_size: Option<u32>,
    /// Which ones these are. Default random ones.
    pub subsetting: Subsetting,
    /// Declared health with which an endpoint can still be chosen by a session that sticks to it
    /// (gRFC A55). Default none but the usable ones.
    pub override_host_status: Vec<HealthStatus>,
    /// What ring hash and Maglev have besides.
    pub consistent_hashing: ConsistentHashing,
    /// As much as it can take stays in the caller's zone, unless localities share by weight. Default
    /// none: zones say nothing.
    pub zone_aware: Option<ZoneAware>,
}

/// Which part of the endpoints a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subsetting {
    /// Random ones of its own (gRFC A68). Some endpoints have more clients than others, by chance.
    #[default]
    Random,
    /// Those beside its own place on a ring of clients and endpoints (Finagle's deterministic aperture):
    /// each endpoint has as many clients as any other, or one more, and at least one, for which more
    /// endpoints are used than asked for where clients are few. Wants a [`ClientPosition`]; without one,
    /// random ones.
    Deterministic,
}

/// The place of a process among all clients of a service, such as the ordinal of its pod and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPosition {
    /// Which of them it is, from 0, less than `count`.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl CommonLbConfig {
    /// Percentage of usable endpoints below which a priority panics, where that is something.
    pub fn panic_threshold(&self) -> Option<u32> {
        let fails = self.fails_on_panic();
        let default = fails.then_some(HEALTHY_PANIC_THRESHOLD_DEFAULT);
        let threshold = self.healthy_panic_threshold.or(default);
        threshold.filter(|percent| *percent > 0)
    }

    /// Whether requests to a priority that panics fail.
    pub fn fails_on_panic(&self) -> bool {
        self.zone_aware
            .is_some_and(|zones| zones.fail_traffic_on_panic)
    }
}

/// Settings of [`LbPolicy::RingHash`] and [`LbPolicy::Maglev`] (Envoy `ConsistentHashingLbConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsistentHashing {
    /// No endpoint has more requests in flight than this percentage of the mean; what is above goes
    /// to others. At least 100. Default none: there is no bound.
    pub hash_balance_factor: Option<u32>,
    /// Whether places follow from an endpoint's host name, where it has one, instead of its address.
    /// Default `false`.
    pub use_hostname_for_hashing: bool,
}

/// A growing share of a new endpoint (Envoy `SlowStartConfig`): its weight is multiplied by
/// `max(min_weight_percent, (age / window) ^ (1 / aggression))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// After this time it has all of its share.
    pub window: Duration,
    /// How fast the share grows at first; more is faster. Default 1.0, which is evenly; above 0.
    pub aggression: f64,
    /// Where the share starts, 0 to 100. Default 10.
    pub min_weight_percent: f64,
}

impl SlowStart {
    /// Evenly, from a tenth.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            aggression: 1.0,
            min_weight_percent: 10.0,
        }
    }

    /// What the weight of an endpoint of this age is multiplied with, above 0 and at most 1.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        // Envoy counts the first second as one.
        let age = age.max(Duration::from_secs(1)).as_secs_f64();
        let grown = (age / self.window.as_secs_f64()).powf(1.0 / self.aggression);
        grown
            .max(self.min_weight_percent / 100.0)
            .clamp(f64::MIN_POSITIVE, 1.0)
    }
}
