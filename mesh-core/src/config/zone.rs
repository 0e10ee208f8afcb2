//! Zone-aware routing, as declared (Envoy `ZoneAwareLbConfig`), and what a process knows of its own
//! service's zones.

use std::collections::BTreeMap;

use super::{ClusterEndpoints, LocalityId};

/// Zone-aware routing (Envoy `ZoneAwareLbConfig`): as many requests stay in the caller's own zone as it
/// can take, if all callers do so; the rest goes where there is room. A zone is a [`LocalityId`] as a
/// whole. It wants to know the [`LocalZones`]; without them zones say nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZoneAware {
    /// Percentage of requests for which zones count, 0 to 100. Default 100.
    pub routing_enabled: f64,
    /// With fewer usable endpoints zones say nothing. Default 6.
    pub min_cluster_size: u64,
    /// Whether requests fail, instead of going to any endpoint, when most endpoints are unusable, or most
    /// callers are. Priorities then share the load by health, as Envoy has it: requests to another
    /// priority that does not panic are served. Default `false`.
    pub fail_traffic_on_panic: bool,
    /// All requests stay in the own zone as long as it has so many usable endpoints, whatever it can
    /// take. Default none: no more than it can take.
    pub force_local_zone: Option<u32>,
    /// What the size of a zone is. Default the number of its endpoints.
    pub locality_basis: LocalityBasis,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self {
            routing_enabled: 100.0,
            min_cluster_size: 6,
            fail_traffic_on_panic: false,
            force_local_zone: None,
            locality_basis: LocalityBasis::default(),
        }
    }
}

/// What the size of a zone is (Envoy `ZoneAwareLbConfig.LocalityBasis`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalityBasis {
    /// The number of its usable endpoints.
    #[default]
    HealthyHostsNum,
    /// The sum of their weights.
    HealthyHostsWeight,
}

/// [`healthy_panic_threshold`](super::CommonLbConfig::healthy_panic_threshold) where zones need one and none
/// is declared (Envoy).
pub const HEALTHY_PANIC_THRESHOLD_DEFAULT: u32 = 50;

/// Where a process is, and how many others of its own service there are in each zone (Envoy's local
/// cluster).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalZones {
    /// Where this process is.
    pub own: LocalityId,
    /// The healthy endpoints of its service's first priority, by zone. Zones that have none of them, but
    /// others, are listed too.
    pub callers: BTreeMap<LocalityId, ZoneSize>,
    /// All endpoints of that priority, whatever is known of their health.
    pub total: u64,
    /// Those of them that can be used, with degraded ones.
    pub usable: u64,
}

/// How large a zone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneSize {
    /// Endpoints.
    pub endpoints: u64,
    /// The sum of their weights.
    pub weight: u64,
}

impl ZoneSize {
    /// The size that counts.
    pub fn by(self, basis: LocalityBasis) -> u64 {
        match basis {
            LocalityBasis::HealthyHostsNum => self.endpoints,
            LocalityBasis::HealthyHostsWeight => self.weight,
        }
    }

    /// Counts one more endpoint.
    pub fn add(&mut self, weight: u32) {
        self.endpoints += 1;
        self.weight += u64::from(weight);
    }
}

impl LocalZones {
    /// Those of a process at `own`, whose service has these endpoints.
    pub fn new(own: LocalityId, endpoints: &ClusterEndpoints) -> Self {
        let mut zones = Self {
            own,
            ..Self::default()
        };
        for locality in endpoints.localities.iter().filter(|l| l.priority == 0) {
            if locality.endpoints.is_empty() {
                continue;
            }
            let size = zones.callers.entry(locality.locality.clone()).or_default();
            for endpoint in &locality.endpoints {
                zones.total += 1;
                zones.usable += u64::from(endpoint.health.is_usable());
                if endpoint.health.is_healthy() {
                    size.add(endpoint.weight);
                }
            }
        }
        zones
    }

    /// Whether fewer than this percentage of the endpoints can be used.
    pub fn is_below(&self, percent: u32) -> bool {
        match self.total {
            0 => percent > 0,
            total => self.usable * 100 < u64::from(percent) * total,
        }
    }
}
