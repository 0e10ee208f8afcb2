//! What time does to a cluster: ejections, failover between priorities, weights that grow.
//!
//! Stage: beside the requests. One [`Maintainer`] per cluster, owned by whoever follows the cluster's
//! snapshots; it has no clock and no task.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::ClusterSnapshot;
use crate::{health::OutlierDetector, rng::SplitMix64};

/// How long an endpoint is left alone that [fails](crate::stats::EndpointStats::is_failing) too many
/// requests.
pub const FAILING_TIME: Duration = Duration::from_secs(3);

/// Drives what a cluster does over time. Outlives snapshots.
#[derive(Debug)]
pub struct Maintainer {
    detector: OutlierDetector,
    /// When endpoints that are failing are tried again.
    trials: HashMap<SocketAddr, Instant>,
    rng: SplitMix64,
}

impl Maintainer {
    /// A maintainer of one cluster; `seed` decides what is enforced in part.
    pub fn new(seed: u64) -> Self {
        Self {
            detector: OutlierDetector::default(),
            trials: HashMap::new(),
            rng: SplitMix64::new(seed),
        }
    }

    /// Does what is due at `now`. To be called with each new snapshot, when the connectivity of an
    /// endpoint changes, when [`ClusterSnapshot::end_attempt`] asks for it, and at the time that it
    /// returns. With `None` there is nothing to wait for.
    pub fn advance(&mut self, cluster: &ClusterSnapshot, now: Instant) -> Option<Instant> {
        let config = cluster.config.as_ref().ok();
        let outliers = config.and_then(|config| config.outlier_detection.as_ref());
        let endpoints: Vec<_> = cluster
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.address, &*endpoint.stats))
            .collect();
        let ejection = self
            .detector
            .advance(outliers, &endpoints, now, &mut self.rng);
        let refresh = cluster.picker.refresh(&cluster.endpoints, now);
        let trial = self.try_again(cluster, now);
        ejection.into_iter().chain(refresh).chain(trial).min()
    }

    /// Has endpoints that were failing long enough tried again; returns when the next one is.
    fn try_again(&mut self, cluster: &ClusterSnapshot, now: Instant) -> Option<Instant> {
        let failing = cluster.endpoints.iter().filter(|e| e.stats.is_failing());
        let failing: Vec<_> = failing.collect();
        if failing.is_empty() {
            self.trials.clear();
            return None;
        }
        let mut trials = HashMap::new();
        for endpoint in failing {
            let address = endpoint.address;
            let due = self.trials.get(&address).copied();
            let due = due.unwrap_or_else(|| now + FAILING_TIME);
            if due <= now {
                endpoint.stats.try_again();
            } else {
                trials.insert(address, due);
            }
        }
        self.trials = trials;
        self.trials.values().min().copied()
    }
}
