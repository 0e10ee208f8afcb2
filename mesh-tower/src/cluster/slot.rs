//! The services of a cluster's endpoints, kept from one snapshot to the next.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use mesh_core::{
    config::Cluster,
    snapshot::ClusterSnapshot,
    stats::{Connectivity, EndpointStats},
};

use super::{EndpointContext, MakeEndpoint, endpoint::Signals};

pub(super) type Services<M> = Arc<[Arc<EndpointSlot<M>>]>;

/// The service of one address, with what decides whether it can be kept.
pub(crate) struct EndpointSlot<M: MakeEndpoint> {
    pub(super) address: SocketAddr,
    pub(super) additional_addresses: Option<Arc<[SocketAddr]>>,
    pub(super) stats: Arc<EndpointStats>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) service: M::Endpoint,
}

impl<M: MakeEndpoint> EndpointSlot<M> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn service(&self) -> &M::Endpoint {
        &self.service
    }
}

pub(super) fn by_address<M: MakeEndpoint>(
    services: &[Arc<EndpointSlot<M>>],
) -> HashMap<SocketAddr, &Arc<EndpointSlot<M>>> {
    services.iter().map(|slot| (slot.address, slot)).collect()
}

/// Whether `slot` is one of `services`, by identity.
pub(super) fn is_among<M: MakeEndpoint>(
    slot: &Arc<EndpointSlot<M>>,
    services: &HashMap<SocketAddr, &Arc<EndpointSlot<M>>>,
) -> bool {
    services
        .get(&slot.address)
        .is_some_and(|held| Arc::ptr_eq(held, slot))
}

/// Services for the endpoints of `snapshot`, reusing those of `held` that fit.
pub(super) fn bind<M: MakeEndpoint>(
    snapshot: &ClusterSnapshot,
    held: &[Arc<EndpointSlot<M>>],
    make: &M,
    signals: &Arc<Signals>,
) -> Services<M> {
    let Ok(cluster) = &snapshot.config else {
        return Arc::new([]);
    };
    let held = by_address(held);
    snapshot
        .endpoints
        .iter()
        .enumerate()
        .map(|(index, endpoint)| {
            let labels = snapshot.socket_labels(index).map(|labels| &**labels);
            let cluster = &cluster.of_endpoint(snapshot.hostname(index), labels);
            let additional_addresses = snapshot.additional_addresses(index).cloned();
            if let Some(slot) = held.get(&endpoint.address)
                && Arc::ptr_eq(&slot.stats, &endpoint.stats)
                && slot.additional_addresses == additional_addresses
                && connects_alike(&slot.cluster, cluster)
            {
                return Arc::clone(slot);
            }
            let stats = Arc::clone(&endpoint.stats);
            // A service that is replaced may have left its last state behind.
            stats.set_connectivity(Connectivity::Idle);
            let context = EndpointContext {
                address: endpoint.address,
                additional_addresses: additional_addresses.clone(),
                cluster: Arc::clone(cluster),
                stats: Arc::clone(&stats),
                signals: Arc::clone(signals),
            };
            Arc::new(EndpointSlot {
                address: endpoint.address,
                additional_addresses,
                stats,
                cluster: Arc::clone(cluster),
                service: make.make(context),
            })
        })
        .collect()
}

/// Whether connections made for one config serve the other.
fn connects_alike(a: &Cluster, b: &Cluster) -> bool {
    a.tls == b.tls
        && a.http_version == b.http_version
        && a.connect_timeout == b.connect_timeout
        && a.connection == b.connection
}
