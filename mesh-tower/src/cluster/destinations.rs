//! The endpoints of a cluster whose requests name them (Envoy `ORIGINAL_DST`).
//!
//! Beside the requests, but for the one that names an address first: the cluster's follower makes an
//! endpoint of it, and forgets it when nobody has used it for a while. How many there are has a bound.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    config::{
        ClusterEndpoints, Discovery, Endpoint, HealthStatus, LocalityEndpoints, LocalityId,
        OriginalDst,
    },
    snapshot::{ClusterSnapshot, LazySnapshot},
};
use tokio::{sync::Notify, time::Instant};

/// Addresses that one cluster has at a time; requests for more fail until one is forgotten.
pub const DESTINATIONS_MAX: usize = 1024;

/// The addresses of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Destinations {
    /// When each was named last.
    known: Mutex<HashMap<SocketAddr, Instant>>,
    /// Tells the follower that there is another one, or one fewer.
    pub(super) changed: Notify,
}

impl Destinations {
    /// A request goes to `address`; `false` when there are too many others.
    pub(super) fn name(&self, address: SocketAddr) -> bool {
        let now = Instant::now();
        let mut known = self.lock();
        if let Some(last) = known.get_mut(&address) {
            *last = now;
            return true;
        }
        if known.len() >= DESTINATIONS_MAX {
            return false;
        }
        known.insert(address, now);
        drop(known);
        self.changed.notify_one();
        true
    }

    /// Whether a request has named it.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        self.lock().contains_key(&address)
    }

    /// Forgets those that nobody uses. Returns when to do so again.
    pub(super) fn sweep(&self, snapshot: &ClusterSnapshot, now: Instant) -> Option<Instant> {
        let interval = original_dst(snapshot)?.cleanup_interval;
        let mut known = self.lock();
        let before = known.len();
        let is_recent = |last: &Instant| now.duration_since(*last) < interval;
        known.retain(|address, last| {
            is_recent(last) || {
                let mut endpoints = snapshot.endpoints.iter();
                let endpoint = endpoints.find(|endpoint| endpoint.address == *address);
                endpoint.is_some_and(|endpoint| endpoint.stats.in_flight() > 0)
            }
        });
        if known.len() != before {
            self.changed.notify_one();
        }
        (!known.is_empty()).then(|| now + interval.max(SWEEP_PAUSE))
    }

    /// The newest value of a cluster, with the endpoints that requests have named where they do.
    pub(super) fn snapshot(&self, current: &LazySnapshot) -> Arc<ClusterSnapshot> {
        let declared = current.get();
        if original_dst(declared).is_none() {
            return Arc::clone(declared);
        }
        let mut addresses: Vec<_> = self.lock().keys().copied().collect();
        addresses.sort_unstable();
        let endpoint = |address| Endpoint {
            health: HealthStatus::Healthy,
            ..Endpoint::new(address)
        };
        let locality = LocalityEndpoints {
            locality: LocalityId::default(),
            priority: 0,
            weight: 1,
            endpoints: addresses.into_iter().map(endpoint).collect(),
        };
        let name = declared.name.as_str();
        let endpoints = ClusterEndpoints::new(name, vec![locality]);
        Arc::clone(current.with_endpoints(Arc::new(endpoints)).get())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shortest time between two looks at who uses what.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);

/// How requests name their addresses, where they do.
pub(super) fn original_dst(snapshot: &ClusterSnapshot) -> Option<&OriginalDst> {
    match &snapshot.config.as_ref().ok()?.discovery {
        Discovery::OriginalDst(config) => Some(config),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_have_a_bound_and_those_that_are_known_stay_usable() {
        let destinations = Destinations::default();
        let address = |port: usize| SocketAddr::from(([10, 0, 0, 1], port as u16));
        for port in 1..=DESTINATIONS_MAX {
            assert!(destinations.name(address(port)));
        }
        assert!(!destinations.name(address(DESTINATIONS_MAX + 1)));
        assert!(destinations.name(address(1)));
        assert!(!destinations.has(address(DESTINATIONS_MAX + 1)));
    }
}
