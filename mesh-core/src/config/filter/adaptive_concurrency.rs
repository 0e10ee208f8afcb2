//! A limit of requests at a time that follows their latency (Envoy `AdaptiveConcurrency`,
//! gradient controller).

use std::time::Duration;

use crate::config::Fraction;

/// How the limit follows the latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptiveConcurrency {
    /// Whether requests are limited at all (`enabled.default_value`). Default true.
    pub enabled: bool,
    /// The percentile of the latencies of a window that stands for it. Default 50 %.
    pub sample_aggregate_percentile: Fraction,
    /// The limit is never higher. Default 1000.
    pub max_concurrency_limit: u32,
    /// How often the limit is calculated.
    pub concurrency_update_interval: Duration,
    /// How often the latency of an idle server is measured anew.
    pub min_rtt_interval: Duration,
    /// Requests that such a measurement takes. Default 50.
    pub min_rtt_request_count: u32,
    /// How much longer the interval may be, drawn each time. Default 15 %.
    pub min_rtt_jitter: Fraction,
    /// The limit during such a measurement, and the lowest of all. Default 3.
    pub min_concurrency: u32,
    /// Latency above the measured one that is taken for noise. Default 25 %.
    pub min_rtt_buffer: Fraction,
    /// What is answered above the limit, an HTTP status. Default 503.
    pub status: u16,
}

impl AdaptiveConcurrency {
    /// The defaults, with these two intervals, for which there is none.
    pub fn new(concurrency_update_interval: Duration, min_rtt_interval: Duration) -> Self {
        let percent = |number| Fraction::new(number, 100).unwrap_or_else(|| unreachable!());
        Self {
            enabled: true,
            sample_aggregate_percentile: percent(50),
            max_concurrency_limit: 1000,
            concurrency_update_interval,
            min_rtt_interval,
            min_rtt_request_count: 50,
            min_rtt_jitter: percent(15),
            min_concurrency: 3,
            min_rtt_buffer: percent(25),
            status: 503,
        }
    }
}
