//! The lower product of latency and requests in flight of two random endpoints (Finagle, Linkerd).
//!
//! The latency is an average that rises at once and falls slowly, so that one slow answer is enough to
//! be avoided; a failed attempt counts as a slow one. The average falls with time too: an endpoint
//! that was avoided is tried again. Deviations: the two are never the same endpoint, or a bad one
//! among ten would keep a hundredth of the requests; weights divide the product.

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, or_unready, sample::sample_distinct,
};
use crate::{config::PeakEwma as Config, observed::Observation, rng::Rng};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct PeakEwma {
    config: Config,
}

impl PeakEwma {
    pub(super) fn new(config: Config) -> Self {
        Self { config }
    }

    fn load(&self, endpoint: &ClusterEndpoint, now: Option<std::time::Instant>) -> f64 {
        let observed = endpoint.stats.observed();
        let latency = observed.and_then(|observed| observed.latency(now, self.config.decay));
        let in_flight = endpoint.stats.in_flight();
        // As in Finagle, one that was never measured is asked at once, by one request.
        if latency.is_none() && in_flight == 0 {
            return 0.0;
        }
        let latency = latency.unwrap_or(self.config.default_rtt);
        // Added up in 64 bits: 10 s times 2^32 requests fit.
        let requests = u64::from(in_flight) + 1;
        latency.as_nanos() as f64 * requests as f64 / f64::from(endpoint.weight)
    }
}

impl LoadBalancer for PeakEwma {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let (found, count) =
            sample_distinct::<2, _>(endpoints, context.previous, 2, &mut *context.rng);
        let picked = match found {
            _ if count == 0 => None,
            [first, _] if count == 1 => Some(first),
            [first, second] => {
                let load = |index: usize| self.load(&endpoints[index], context.now);
                Some(if load(second) < load(first) {
                    second
                } else {
                    first
                })
            }
        };
        or_unready(picked, endpoints)
    }

    fn observes(&self) -> bool {
        true
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut latency = observation.latency;
        if !observation.is_success {
            latency = latency.max(self.config.failure_penalty);
        }
        let observed = endpoints[index].stats.observe(observation.now);
        observed.add_latency(observation.now, latency, self.config.decay);
    }
}
