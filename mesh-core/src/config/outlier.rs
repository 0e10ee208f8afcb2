//! When an endpoint counts as an outlier and gets no requests for a while (gRFC A50; Envoy
//! `OutlierDetection`).

use std::time::Duration;

/// Passive health of a cluster's endpoints. All percentages are 0 to 100.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// How often success rates are looked at and ejections end. Default 10 s; not 0.
    pub interval: Duration,
    /// An endpoint's nth ejection in a row takes n times this. Default 30 s.
    pub base_ejection_time: Duration,
    /// Longest ejection. Default 300 s, or `base_ejection_time` if that is longer.
    pub max_ejection_time: Duration,
    /// A random time up to this is added to each ejection. Default 0.
    pub max_ejection_time_jitter: Duration,
    /// Most endpoints that are ejected at a time; one always may be (gRFC A50). Default 10.
    pub max_ejection_percent: u32,
    /// Failures in a row of any kind.
    pub consecutive_5xx: Consecutive,
    /// Responses 502, 503 and 504 in a row.
    pub consecutive_gateway_failure: Consecutive,
    /// Failures to connect, resets and timeouts in a row, where these are
    /// [told apart](Self::split_external_local_origin_errors).
    pub consecutive_local_origin_failure: Consecutive,
    /// Whether failures that no response tells of are counted by themselves. Default `false`: each
    /// counts as a response 503.
    pub split_external_local_origin_errors: bool,
    /// Success rates far below the mean.
    pub success_rate: SuccessRate,
    /// Share of failures.
    pub failure_percentage: FailurePercentage,
    /// Whether an endpoint that comes back gets one request, and the others when that has succeeded.
    /// Ours, no xDS field. Default `false`.
    pub single_probe: bool,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// How many eject. Default 5; more than [`STREAK_MAX`](crate::stats::STREAK_MAX) is as much.
    pub threshold: u32,
    /// How often such an endpoint is ejected indeed.
    pub enforcing: u32,
}

/// Ejects those whose success rate is below the mean by more than a multiple of the standard
/// deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// That multiple, in thousandths. Default 1900.
    pub stdev_factor: u32,
    /// How often such an endpoint is ejected indeed. Default 100.
    pub enforcing: u32,
    /// The same for rates of failures without a response, where these are told apart. Default 100.
    pub enforcing_local_origin: u32,
    /// Endpoints with enough requests that it takes to have a mean. Default 5.
    pub minimum_hosts: u32,
    /// Requests in one interval that are enough. Default 100.
    pub request_volume: u32,
}

/// Ejects those that fail too often, whatever the others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Percentage of failures that ejects. Default 85.
    pub threshold: u32,
    /// How often such an endpoint is ejected indeed. Default 0.
    pub enforcing: u32,
    /// The same for failures without a response, where these are told apart. Default 0.
    pub enforcing_local_origin: u32,
    /// Endpoints with enough requests that it takes. Default 5.
    pub minimum_hosts: u32,
    /// Requests in one interval that are enough. Default 50.
    pub request_volume: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        let consecutive = |enforcing| Consecutive {
            threshold: 5,
            enforcing,
        };
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            consecutive_5xx: consecutive(100),
            consecutive_gateway_failure: consecutive(0),
            consecutive_local_origin_failure: consecutive(100),
            split_external_local_origin_errors: false,
            success_rate: SuccessRate {
                stdev_factor: 1900,
                enforcing: 100,
                enforcing_local_origin: 100,
                minimum_hosts: 5,
                request_volume: 100,
            },
            failure_percentage: FailurePercentage {
                threshold: 85,
                enforcing: 0,
                enforcing_local_origin: 0,
                minimum_hosts: 5,
                request_volume: 50,
            },
            single_probe: false,
        }
    }
}
