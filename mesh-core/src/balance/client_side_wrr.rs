//! Round robin by weights that follow from the load that endpoints report (gRFC A58, A114).
//!
//! Reports come with responses, or out of band, where those with responses say nothing; the weights that
//! follow are taken over from time to time. Endpoints without a usable weight get the mean of the others; with fewer than two of those it is round robin.
//! Deviation: weights are not capped at ten times the mean, which gRPC's stride needs.

use std::time::Instant;

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, or_unready,
    weighted::{WeightedRoundRobin, Weights},
};
use crate::{
    config::{ClientSideWrr as Config, SlowStart, WEIGHT_UPDATE_PERIOD_MIN},
    observed::Observation,
    rng::Rng,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ClientSideWrr {
    config: Config,
    slow_start: Option<SlowStart>,
    inner: WeightedRoundRobin,
}

impl ClientSideWrr {
    pub(super) fn new(
        config: Config,
        slow_start: Option<SlowStart>,
        endpoints: usize,
        start: u64,
    ) -> Self {
        let even = Weights::new(vec![1.0; endpoints], None);
        Self {
            config,
            slow_start,
            inner: WeightedRoundRobin::new(even, start),
        }
    }

    fn weights(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Vec<f64> {
        let known: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.stats.observed()?.weight(now, &self.config))
            .collect();
        let count = known.iter().flatten().count();
        let mean = match count {
            0 | 1 => return vec![1.0; endpoints.len()],
            _ => known.iter().flatten().sum::<f64>() / count as f64,
        };
        let factor = |endpoint: &ClusterEndpoint| match &self.slow_start {
            None => 1.0,
            Some(slow_start) => slow_start.factor(endpoint.stats.observe(now).age(now)),
        };
        let weight =
            |(weight, endpoint): (&Option<f64>, _)| weight.unwrap_or(mean) * factor(endpoint);
        known.iter().zip(endpoints).map(weight).collect()
    }
}

impl LoadBalancer for ClientSideWrr {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let picked = self.inner.choose(endpoints, context.previous);
        or_unready(picked, endpoints)
    }

    fn observes(&self) -> bool {
        self.config.oob_reporting_period.is_none()
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        if let Some(report) = observation.report.filter(|_| self.observes()) {
            let observed = endpoints[index].stats.observe(observation.now);
            observed.add_weight(observation.now, report, &self.config);
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.inner.weights().set(&self.weights(endpoints, now));
        let period = self.config.weight_update_period;
        Some(now + period.max(WEIGHT_UPDATE_PERIOD_MIN))
    }
}
