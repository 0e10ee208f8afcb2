//! What a client must know for a resource, and what happens when it does not.

use mesh_core::config::{Cluster, Discovery, LbPolicy, ListenerKind};

use super::{Client, INBOUND_PREFIX, ResourceType, World};
use crate::class::Feature;

impl Client {
    /// Whether it has a feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.class.has(feature, self.release)
    }
}

impl World {
    /// What the client would have to know for a resource to be safe with it, and does not.
    pub(crate) fn lacks(&self, client: &Client, kind: ResourceType, name: &str) -> Option<Feature> {
        let lacks = |feature: &Feature| !client.has(*feature);
        let unknown = [Feature::Mtls, Feature::Authorization];
        let of_clusters = [
            Feature::OutsideTls,
            Feature::ManyHosts,
            Feature::OriginalDst,
        ];
        if !unknown.iter().chain(&of_clusters).any(lacks) {
            return None;
        }
        match kind {
            ResourceType::Cluster => {
                let (_, config) = self.compiled.cluster(name, client)?;
                cluster(config).into_iter().find(lacks)
            }
            ResourceType::Listener => {
                let address = name.strip_prefix(INBOUND_PREFIX)?.parse().ok()?;
                let (namespace, labels) = (&client.namespace, &client.labels);
                let listener = self
                    .compiled
                    .inbound_listener(name, address, namespace, labels);
                let ListenerKind::Inbound(inbound) = listener.kind else {
                    return None;
                };
                let chains = &inbound.filter_chains;
                // PERMISSIVE is plaintext to gRPC in any case.
                let needs_tls = chains.iter().all(|chain| chain.tls.is_some());
                let needs_rbac = chains
                    .iter()
                    .any(|chain| chain.filters.iter().any(|filter| filter.is_security()));
                let needs = [(needs_tls, unknown[0]), (needs_rbac, unknown[1])];
                let mut needs = needs.into_iter().filter(|(is_needed, _)| *is_needed);
                needs.find_map(|(_, feature)| Some(feature).filter(lacks))
            }
            _ => None,
        }
    }
}

/// What a client must have for a cluster.
fn cluster(config: &Cluster) -> Vec<Feature> {
    let tls = config.tls.as_ref().map(|tls| match tls.roots.is_of_mesh() {
        true => Feature::Mtls,
        false => Feature::OutsideTls,
    });
    let hosts = match &config.discovery {
        Discovery::StrictDns(hosts) if hosts.len() > 1 => Some(Feature::ManyHosts),
        Discovery::OriginalDst(_) => Some(Feature::OriginalDst),
        _ => None,
    };
    tls.into_iter().chain(hosts).collect()
}

/// What a client must have for a balancer.
pub(super) fn balancer(policy: &LbPolicy) -> Option<Feature> {
    match policy {
        LbPolicy::LeastRequest(_) => Some(Feature::LeastRequest),
        // gRPC gets a ring in the place of a table.
        LbPolicy::RingHash(_) | LbPolicy::Maglev { .. } => Some(Feature::RingHash),
        LbPolicy::ClientSideWeightedRoundRobin(_) => Some(Feature::ClientSideWeightedRoundRobin),
        LbPolicy::PickFirst { .. } => Some(Feature::PickFirst),
        LbPolicy::RoundRobin
        | LbPolicy::Random
        | LbPolicy::PeakEwma(_)
        | LbPolicy::Prequal(_)
        | LbPolicy::Custom { .. } => None,
    }
}
