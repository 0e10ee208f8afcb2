//! From an assignment to the endpoints of a snapshot, in the order that pickers want.
//!
//! Stage 6. Usable endpoints by priority and locality come first, then degraded ones, each priority of
//! them behind all others, then those that are kept although they are not usable: for a panic, and
//! for sessions that stick to them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Weak},
};

use super::ClusterEndpoint;
use crate::{
    balance::{Group, TierParts, aperture, nearest},
    config::{
        ClientPosition, ClusterEndpoints, CommonLbConfig, Endpoint, HealthStatus, LbMetadata,
        LocalityId, Subsetting,
    },
    stats::EndpointStats,
};

/// Counters by address, kept while a snapshot or a request in flight holds them.
pub(super) type StatsByAddress = HashMap<SocketAddr, Weak<EndpointStats>>;

/// The endpoints of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Arranged<'e> {
    pub(super) endpoints: Vec<ClusterEndpoint>,
    /// As declared, one for each of `endpoints`.
    pub(super) sources: Vec<&'e Endpoint>,
    /// Names of those that have one, by index.
    pub(super) hostnames: HashMap<usize, Arc<str>>,
    /// Further addresses of those that have some, by index.
    pub(super) additional_addresses: HashMap<usize, Arc<[SocketAddr]>>,
    /// Labels that sockets are chosen by, of those that have some, by index.
    pub(super) socket_labels: HashMap<usize, Arc<LbMetadata>>,
    /// Metadata of those that have some, by index.
    pub(super) metadata: HashMap<usize, Arc<LbMetadata>>,
    pub(super) groups: Vec<Group>,
    /// For each tier, see [`Parts`](crate::balance::Parts).
    pub(super) tier_parts: Vec<TierParts>,
}

/// An endpoint with its locality, by index.
type Placed<'e> = (usize, &'e Endpoint);

pub(super) fn arrange<'e>(
    assignment: &'e ClusterEndpoints,
    common: &CommonLbConfig,
    seed: u64,
    client: Option<ClientPosition>,
    stats: &mut StatsByAddress,
) -> Arranged<'e> {
    let mut priorities: BTreeMap<u32, Vec<Placed<'_>>> = BTreeMap::new();
    let mut places: Vec<Arc<LocalityId>> = Vec::new();
    for (index, locality) in assignment.localities.iter().enumerate() {
        places.push(Arc::new(locality.locality.clone()));
        let placed = locality.endpoints.iter().map(|endpoint| (index, endpoint));
        priorities
            .entry(locality.priority)
            .or_default()
            .extend(placed);
    }
    let can_panic = common.panic_threshold().is_some();
    let mut arranged = Arranged::default();
    let mut add = |arranged: &mut Arranged<'e>, (place, endpoint): Placed<'e>| {
        arranged.sources.push(endpoint);
        let hostname = &endpoint.details().hostname;
        if !hostname.is_empty() {
            let name = hostname.as_str().into();
            arranged.hostnames.insert(arranged.endpoints.len(), name);
        }
        let additional = &endpoint.details().additional_addresses;
        if !additional.is_empty() {
            let index = arranged.endpoints.len();
            let additional = additional.as_slice().into();
            arranged.additional_addresses.insert(index, additional);
        }
        if let Some(labels) = &endpoint.details().socket_labels {
            let index = arranged.endpoints.len();
            arranged.socket_labels.insert(index, Arc::clone(labels));
        }
        if !endpoint.details().metadata.is_empty() {
            let metadata = Arc::new(endpoint.details().metadata.clone());
            arranged.metadata.insert(arranged.endpoints.len(), metadata);
        }
        arranged.endpoints.push(ClusterEndpoint {
            address: endpoint.address,
            weight: endpoint.weight,
            health: endpoint.health,
            locality: Arc::clone(&places[place]),
            stats: stats_of(stats, endpoint.address),
        });
    };
    let mut tiers = Vec::new();
    for health in [HealthStatus::is_healthy, is_degraded] {
        for (place, (priority, placed)) in priorities.iter().enumerate() {
            let usable = placed
                .iter()
                .copied()
                .filter(|(_, endpoint)| health(endpoint.health));
            let mut usable: Vec<_> = usable.collect();
            let found = usable.len();
            if let Some(size) = common.subset_size {
                let address = |(_, endpoint): &Placed<'_>| endpoint.address;
                let client = client.filter(|_| common.subsetting == Subsetting::Deterministic);
                usable = match client {
                    Some(client) => aperture(usable, size as usize, client, address),
                    None => nearest(usable, size as usize, seed, address),
                };
            }
            let is_first = health(HealthStatus::Healthy);
            if usable.is_empty() && !(can_panic && is_first) {
                continue;
            }
            for of_locality in usable.chunk_by(|(a, _), (b, _)| a == b) {
                let start = arranged.endpoints.len();
                for placed in of_locality {
                    add(&mut arranged, *placed);
                }
                let locality = &assignment.localities[of_locality[0].0];
                arranged.groups.push(Group {
                    tier: tiers.len(),
                    weight: locality.weight,
                    range: start..arranged.endpoints.len(),
                    total: part(locality.endpoints.len(), usable.len(), found),
                });
            }
            let parts = TierParts {
                priority: place,
                is_degraded: !is_first,
                rest: 0..0,
                total: part(placed.len(), usable.len(), found),
            };
            tiers.push((is_first.then_some(priority), parts));
        }
    }
    for (priority, parts) in tiers {
        let start = arranged.endpoints.len();
        let unusable = priority.iter().flat_map(|priority| &priorities[*priority]);
        for placed in unusable.filter(|(_, endpoint)| !endpoint.health.is_usable()) {
            if can_panic || common.override_host_status.contains(&placed.1.health) {
                add(&mut arranged, *placed);
            }
        }
        // Without a panic they are there for sessions alone.
        let end = if can_panic {
            arranged.endpoints.len()
        } else {
            start
        };
        arranged.tier_parts.push(TierParts {
            rest: start..end,
            ..parts
        });
    }
    arranged
}

/// How many of `total` endpoints count where only `kept` of the `usable` ones are.
fn part(total: usize, kept: usize, usable: usize) -> usize {
    match usable {
        0 => total,
        _ => (total * kept).div_ceil(usable),
    }
}

fn is_degraded(health: HealthStatus) -> bool {
    health == HealthStatus::Degraded
}

fn stats_of(stats: &mut StatsByAddress, address: SocketAddr) -> Arc<EndpointStats> {
    let entry = stats.entry(address).or_default();
    entry.upgrade().unwrap_or_else(|| {
        let fresh = Arc::new(EndpointStats::default());
        *entry = Arc::downgrade(&fresh);
        fresh
    })
}
