//! What time does to a cluster: ejections, failover between priorities, weights that grow.
//!
//! Stage: beside the requests. One [`Maintainer`] per cluster, owned by whoever follows the cluster's
//! snapshots; it has no clock and no task.

use std::time::Instant;

use super::ClusterSnapshot;
use crate::{health::OutlierDetector, rng::SplitMix64};

/// Drives what a cluster does over time. Outlives snapshots.
#[derive(Debug)]
pub struct Maintainer {
    detector: OutlierDetector,
    rng: SplitMix64,
}

impl Maintainer {
    /// A maintainer of one cluster; `seed` decides what is enforced in part.
    pub fn new(seed: u64) -> Self {
        Self {
            detector: OutlierDetector::default(),
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
        ejection.into_iter().chain(refresh).min()
    }
}
