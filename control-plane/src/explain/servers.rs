//! What the servers of a cluster ask of a request, and by which objects.

use mesh_core::{
    config::{ClusterEndpoints, FilterChain, ListenerKind, TransportMatch},
    filter::describe,
};
use serde::{Deserialize, Serialize};

use super::Origin;
use crate::compile::{Compiled, Viewer};

/// Servers that ask the same of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenServers {
    /// How many.
    pub count: usize,
    /// What connections they take.
    pub takes: String,
    /// What requests meet there before the application: what, and how.
    pub filters: Vec<(String, String)>,
    /// The objects that say so.
    pub objects: Vec<Origin>,
}

/// The servers behind `endpoints`, those together that ask the same. Whoever is not of the mesh is not told
/// of.
pub(super) fn servers(
    compiled: &Compiled,
    endpoints: &ClusterEndpoints,
    viewer: Viewer<'_>,
) -> Vec<TakenServers> {
    let mut groups: Vec<TakenServers> = Vec::new();
    for endpoint in endpoints.localities.iter().flat_map(|l| &l.endpoints) {
        if !compiled.is_workload(endpoint.address) {
            continue;
        }
        let (address, namespace, labels) = (endpoint.address, viewer.namespace, viewer.labels);
        let listener = compiled.inbound_listener("", address, namespace, labels);
        let ListenerKind::Inbound(inbound) = listener.kind else {
            continue;
        };
        let filters = inbound.filter_chains.first();
        let filters = filters.map_or(&[][..], |chain| &chain.filters);
        let objects = compiled.inbound_objects(address, namespace, labels);
        let objects = objects.iter().filter_map(|key| compiled.origin(key));
        let found = TakenServers {
            count: 1,
            takes: takes(&inbound.filter_chains).to_owned(),
            filters: describe(filters, &[]),
            objects: objects.map(|origin| Origin::from(&origin)).collect(),
        };
        let is_same = |held: &&mut TakenServers| {
            (&held.takes, &held.filters, &held.objects)
                == (&found.takes, &found.filters, &found.objects)
        };
        match groups.iter_mut().find(is_same) {
            Some(held) => held.count += 1,
            None => groups.push(found),
        }
    }
    groups
}

fn takes(chains: &[FilterChain]) -> &'static str {
    let takes = |transport| chains.iter().any(|chain| chain.transport == transport);
    match (takes(TransportMatch::Tls), chains.len()) {
        (true, 1) => "mTLS alone",
        (true, _) => "mTLS and plaintext",
        (false, _) => "plaintext alone",
    }
}
