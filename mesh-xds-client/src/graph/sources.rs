//! Endpoints of clusters that do not take them from EDS alone.
//!
//! Stage 5. Addresses of hosts, of which a failed look-up takes nothing away, and aggregates: the
//! endpoints of other clusters, each behind those before it (gRFC A37, A75). A call to an aggregate
//! uses one cluster's settings, so its members must agree on how they are spoken to; a member without
//! any value is left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_core::{
    ClusterName, ConfigError,
    config::{self, ClusterEndpoints, Endpoint, EndpointDetails, LocalityEndpoints, LocalityId},
    snapshot::ClusterTree,
};

use crate::resource::{ClusterSpec, DnsHost, DnsLookup, DnsSource};

/// Deepest nesting of aggregates (gRFC A75).
pub(super) const AGGREGATE_DEPTH_MAX: usize = 16;

/// A name to look up, and how: clusters that do it differently have answers of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostQuery {
    pub(crate) name: String,
    pub(crate) lookup: DnsLookup,
}

/// The queries of a cluster.
pub(super) fn queries(source: &DnsSource) -> BTreeSet<HostQuery> {
    let query = |host: &DnsHost| HostQuery {
        name: host.name.clone(),
        lookup: source.lookup,
    };
    source.hosts.iter().map(query).collect()
}

/// Hosts by name, who uses them, and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_query: BTreeMap<HostQuery, Host>,
    changes: Vec<(HostQuery, bool)>,
}

#[derive(Debug, Default)]
struct Host {
    users: BTreeSet<ClusterName>,
    known: Option<Result<Vec<IpAddr>, String>>,
}

impl Hosts {
    pub(super) fn hold(&mut self, query: &HostQuery, cluster: &ClusterName) {
        if !self.by_query.contains_key(query) {
            self.changes.push((query.clone(), true));
        }
        let host = self.by_query.entry(query.clone()).or_default();
        host.users.insert(cluster.clone());
    }

    pub(super) fn release(&mut self, query: &HostQuery, cluster: &ClusterName) {
        let Some(host) = self.by_query.get_mut(query) else {
            return;
        };
        host.users.remove(cluster);
        if host.users.is_empty() {
            self.by_query.remove(query);
            self.changes.push((query.clone(), false));
        }
    }

    /// Names that are wanted or not wanted any more, since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<(HostQuery, bool)> {
        std::mem::take(&mut self.changes)
    }

    /// An answer; a failure counts only where nothing is known. Returns whose endpoints change.
    pub(super) fn resolved(
        &mut self,
        query: &HostQuery,
        answer: Result<Vec<IpAddr>, String>,
    ) -> BTreeSet<ClusterName> {
        let Some(host) = self.by_query.get_mut(query) else {
            return BTreeSet::new();
        };
        let answer = answer.map(|mut addresses| {
            // The order of records says nothing, and would look like a change.
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        });
        if let Err(error) = &answer {
            tracing::warn!(host = query.name, error, "the name cannot be resolved");
        }
        let keeps = matches!((&host.known, &answer), (Some(Ok(_)), Err(_)));
        if keeps || host.known.as_ref() == Some(&answer) {
            return BTreeSet::new();
        }
        host.known = Some(answer);
        host.users.clone()
    }

    /// The endpoints of a cluster; `None` until every host has an answer.
    pub(super) fn endpoints(
        &self,
        cluster: &ClusterName,
        source: &DnsSource,
    ) -> Option<Result<Arc<ClusterEndpoints>, ConfigError>> {
        let mut endpoints = Vec::new();
        let mut seen = HashSet::new();
        let mut failure = None;
        for host in &source.hosts {
            let query = HostQuery {
                name: host.name.clone(),
                lookup: source.lookup,
            };
            match self.by_query.get(&query)?.known.as_ref()? {
                Ok(addresses) => {
                    for address in addresses {
                        let address = SocketAddr::new(*address, host.port);
                        if seen.insert(address) {
                            endpoints.push(endpoint(address, &host.name));
                        }
                    }
                }
                Err(error) => {
                    failure = Some(ConfigError::new(
                        format!("cluster {cluster}"),
                        "load_assignment",
                        format!("host {:?} cannot be resolved: {error}", host.name),
                    ));
                }
            }
        }
        match failure {
            Some(failure) if endpoints.is_empty() => Some(Err(failure)),
            _ => {
                let locality = LocalityEndpoints {
                    locality: LocalityId::default(),
                    priority: 0,
                    weight: 1,
                    endpoints,
                };
                let name = cluster.as_str();
                Some(Ok(Arc::new(ClusterEndpoints::new(name, vec![locality]))))
            }
        }
    }
}

fn endpoint(address: SocketAddr, hostname: &str) -> Endpoint {
    Endpoint::new(address).with_details(EndpointDetails {
        hostname: hostname.to_owned(),
        ..EndpointDetails::default()
    })
}

/// The value of an aggregate, from those of its members in order.
pub(super) fn merge(
    name: &ClusterName,
    spec: &ClusterSpec,
    members: &[(ClusterName, ClusterTree)],
) -> ClusterTree {
    let usable: Vec<_> = members
        .iter()
        .filter_map(|(member, tree)| Some((member, tree.cluster.as_ref().ok()?, &tree.endpoints)))
        .collect();
    let fail = |reason: String| {
        let error = ConfigError::new(format!("cluster {name}"), "cluster_type", reason);
        ClusterTree {
            cluster: Err(error.clone()),
            endpoints: Err(error),
        }
    };
    let Some((first_name, first, _)) = usable.first() else {
        let reasons: Vec<_> = members
            .iter()
            .filter_map(|(_, tree)| tree.cluster.as_ref().err().map(ToString::to_string))
            .collect();
        return fail(format!(
            "none of its clusters can be used: {}",
            reasons.join("; ")
        ));
    };
    for (other_name, other, _) in &usable {
        // Otherwise a member could be spoken to in plaintext, or as somebody else.
        if other.tls != first.tls
            || other.socket_matches != first.socket_matches
            || other.http_version != first.http_version
        {
            return fail(format!(
                "{first_name} and {other_name} differ in TLS or HTTP version, which is not \
                 supported in one aggregate"
            ));
        }
    }
    let mut seen = HashSet::new();
    let mut localities = Vec::new();
    let mut base = 0;
    for (_, _, endpoints) in &usable {
        let Ok(endpoints) = endpoints else {
            continue;
        };
        let mut next = base;
        for locality in &endpoints.localities {
            let mut locality = locality.clone();
            locality
                .endpoints
                .retain(|endpoint| seen.insert(endpoint.address));
            locality.priority += base;
            next = next.max(locality.priority + 1);
            localities.push(locality);
        }
        base = next;
    }
    let config = config::Cluster {
        name: name.clone(),
        discovery: spec.config.discovery.clone(),
        ..config::Cluster::clone(first)
    };
    // What is dropped before a call looks at any endpoint is what the first member wants dropped.
    let rules = usable
        .iter()
        .find_map(|(_, _, endpoints)| endpoints.as_ref().ok());
    let endpoints = ClusterEndpoints {
        drop_overloads: rules.map_or_else(Vec::new, |rules| rules.drop_overloads.clone()),
        overprovisioning_factor: rules.and_then(|rules| rules.overprovisioning_factor),
        ..ClusterEndpoints::new(name.as_str(), localities)
    };
    ClusterTree {
        cluster: Ok(Arc::new(config)),
        endpoints: Ok(Arc::new(endpoints)),
    }
}
