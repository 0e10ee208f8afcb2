//! One request for an endpoint that comes back from being ejected, the others when that succeeded.
//!
//! Outer part of a cluster's picker when [`single_probe`](crate::config::OutlierDetection) asks for it;
//! others do not have it.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use super::{ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, TriedPriorities};
use crate::{observed::Observation, rng::Rng};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Probing {
    inner: Picker,
    /// The endpoint that waits for its request, plus one; 0 is none.
    due: AtomicUsize,
}

impl Probing {
    pub(super) fn new(inner: Picker) -> Self {
        Self {
            inner,
            due: AtomicUsize::new(0),
        }
    }
}

impl LoadBalancer for Probing {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        // Not with a request that has failed before.
        if self.due.load(Relaxed) != 0 && context.previous.is_empty() {
            let due = self.due.swap(0, Relaxed);
            if due != 0 && endpoints[due - 1].stats.take_probe() {
                return PickResult::Endpoint(due - 1);
            }
        }
        self.inner.pick_dyn(endpoints, context)
    }

    fn pick_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        self.inner.pick_untried(endpoints, context, tried)
    }

    fn observes(&self) -> bool {
        self.inner.observes()
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        self.inner.observe(endpoints, index, observation);
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let due = endpoints
            .iter()
            .position(|endpoint| endpoint.stats.wants_probe());
        self.due.store(due.map_or(0, |index| index + 1), Relaxed);
        self.inner.refresh(endpoints, now)
    }

    fn connects(&self, endpoint: usize) -> bool {
        self.inner.connects(endpoint)
    }
}
