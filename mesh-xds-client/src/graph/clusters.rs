//! Clusters with their endpoints, and who uses them.
//!
//! Stage 5. A cluster is resolved once its policy and its endpoints have a value or an error, and
//! stays so: when it moves to endpoints that are not there yet, the old ones serve meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use mesh_core::{
    ClusterName, ConfigError, EndpointsName, config::ClusterEndpoints, snapshot::ClusterTree,
};

use super::{
    WatchId,
    few::Few,
    sources::{AGGREGATE_DEPTH_MAX, Hosts, merge},
};
use crate::{
    cache::{Cache, Reference, Resolved},
    resource::{ClusterSource, ClusterSpec, DnsHost},
};

/// All clusters that are wanted.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    nodes: HashMap<ClusterName, Box<Node>>,
    endpoint_users: HashMap<EndpointsName, Few<ClusterName>>,
    hosts: Hosts,
}

#[derive(Debug, Default)]
struct Node {
    users: Few<WatchId>,
    /// Aggregates that this is a member of.
    parents: Few<ClusterName>,
    /// Members, of an aggregate.
    children: Vec<ClusterName>,
    /// Hosts that are looked up.
    hosts: BTreeSet<String>,
    /// The endpoints in `tree`.
    current: Option<EndpointsName>,
    /// The endpoints that are waited for.
    next: Option<EndpointsName>,
    /// The last complete value.
    tree: Option<ClusterTree>,
}

/// What [`Clusters::refresh`] did.
#[derive(Clone, Debug, Default)]
pub(super) struct Refreshed {
    /// The cluster has another value than before.
    pub(super) is_changed: bool,
    /// The cluster had none before.
    pub(super) is_new: bool,
    /// Members that were not members before.
    pub(super) added: Vec<ClusterName>,
}

/// What a cluster uses, and its value.
#[derive(Default)]
struct Next {
    current: Option<EndpointsName>,
    next: Option<EndpointsName>,
    children: Vec<ClusterName>,
    hosts: BTreeSet<String>,
    tree: Option<ClusterTree>,
}

impl Clusters {
    /// Adds a user. A new cluster is asked for.
    pub(super) fn hold(&mut self, name: &ClusterName, id: WatchId, cache: &mut Cache) {
        cache.request(&Reference::Cluster(name.clone()));
        self.nodes.entry(name.clone()).or_default().users.insert(id);
    }

    /// Removes a user.
    pub(super) fn release(&mut self, name: &ClusterName, id: WatchId) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.users.remove(&id);
        }
    }

    pub(super) fn is_used(&self, name: &ClusterName) -> bool {
        // Upwards, as aggregates in a circle must not keep each other.
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        if !node.users.is_empty() {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut due = vec![name];
        while let Some(name) = due.pop() {
            let Some(node) = self.nodes.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            if !node.users.is_empty() {
                return true;
            }
            due.extend(node.parents.iter());
        }
        false
    }

    /// Aggregates that a cluster is a member of.
    pub(super) fn parents(&self, name: &ClusterName) -> Few<ClusterName> {
        let node = self.nodes.get(name);
        node.map(|node| node.parents.clone()).unwrap_or_default()
    }

    /// See [`Hosts::take_changes`].
    pub(super) fn take_host_changes(&mut self) -> Vec<(String, bool)> {
        self.hosts.take_changes()
    }

    /// See [`Hosts::resolved`].
    pub(super) fn resolved(
        &mut self,
        host: &str,
        answer: Result<Vec<IpAddr>, String>,
    ) -> BTreeSet<ClusterName> {
        self.hosts.resolved(host, answer)
    }

    pub(super) fn is_endpoints_used(&self, name: &EndpointsName) -> bool {
        self.endpoint_users
            .get(name)
            .is_some_and(|users| !users.is_empty())
    }

    /// Who uses the cluster.
    pub(super) fn users(&self, name: &ClusterName) -> Few<WatchId> {
        self.nodes
            .get(name)
            .map(|node| node.users.clone())
            .unwrap_or_default()
    }

    /// Which clusters use the endpoints.
    pub(super) fn users_of(&self, name: &EndpointsName) -> Few<ClusterName> {
        self.endpoint_users.get(name).cloned().unwrap_or_default()
    }

    /// The last complete value.
    pub(super) fn tree(&self, name: &ClusterName) -> Option<&ClusterTree> {
        self.nodes.get(name).and_then(|node| node.tree.as_ref())
    }

    /// Names that a cluster without a value waits for: its own, or its endpoints'.
    pub(super) fn awaited(&self, name: &ClusterName) -> Option<String> {
        let node = self.nodes.get(name)?;
        if node.tree.is_some() {
            return None;
        }
        match &node.next {
            Some(endpoints) => Some(endpoints.to_string()),
            None => Some(name.to_string()),
        }
    }

    /// Forgets a cluster; returns what may be without a user now.
    pub(super) fn remove(&mut self, name: &ClusterName) -> Vec<Reference> {
        let mut orphans = BTreeSet::new();
        self.replace(name, Next::default(), &mut orphans);
        self.nodes.remove(name);
        orphans.into_iter().collect()
    }

    /// Brings a cluster up to date with the cache.
    pub(super) fn refresh(
        &mut self,
        name: &ClusterName,
        cache: &mut Cache,
        orphans: &mut BTreeSet<Reference>,
    ) -> Refreshed {
        let Some(node) = self.nodes.get(name) else {
            return Refreshed::default();
        };
        let old = node.tree.clone();
        let next = match cache.clusters.resolved(name).map(Resolved::into_result) {
            None => return Refreshed::default(),
            Some(Err(error)) => Next {
                tree: Some(failed(error)),
                ..Next::default()
            },
            Some(Ok(spec)) => match &spec.source {
                ClusterSource::Eds(wanted) => eds(node, &spec, wanted, cache),
                ClusterSource::Dns(hosts) => self.dns(name, &spec, hosts),
                ClusterSource::Aggregate(children) => self.aggregate(name, &spec, children, cache),
                ClusterSource::OriginalDst(_) => Next {
                    tree: Some(ClusterTree {
                        cluster: Ok(Arc::clone(&spec.config)),
                        endpoints: Ok(Arc::new(ClusterEndpoints::new(name.as_str(), Vec::new()))),
                    }),
                    ..Next::default()
                },
            },
        };
        let refreshed = Refreshed {
            is_changed: next.tree != old,
            is_new: old.is_none() && next.tree.is_some(),
            added: Vec::new(),
        };
        let added = self.replace(name, next, orphans);
        Refreshed { added, ..refreshed }
    }

    fn dns(&mut self, name: &ClusterName, spec: &ClusterSpec, hosts: &[DnsHost]) -> Next {
        for host in hosts {
            self.hosts.hold(&host.name, name);
        }
        let node = &self.nodes[name];
        let endpoints = self.hosts.endpoints(name, hosts);
        let is_known = endpoints.is_some();
        let tree = endpoints.map(|endpoints| ClusterTree {
            cluster: Ok(Arc::clone(&spec.config)),
            endpoints,
        });
        Next {
            // What it was before serves until the names are known.
            current: node.current.clone().filter(|_| !is_known),
            hosts: hosts.iter().map(|host| host.name.clone()).collect(),
            tree: tree.or_else(|| node.tree.clone()),
            ..Next::default()
        }
    }

    fn aggregate(
        &mut self,
        name: &ClusterName,
        spec: &ClusterSpec,
        children: &[ClusterName],
        cache: &mut Cache,
    ) -> Next {
        for child in children {
            cache.request(&Reference::Cluster(child.clone()));
            self.nodes.entry(child.clone()).or_default();
        }
        let Some(node) = self.nodes.get_mut(name) else {
            return Next::default();
        };
        let old_children = std::mem::replace(&mut node.children, children.to_vec());
        let is_too_deep = self.height(name, 1, &mut HashMap::new()).is_none();
        let Some(node) = self.nodes.get_mut(name) else {
            return Next::default();
        };
        node.children = old_children;
        let members: Option<Vec<_>> = children
            .iter()
            .map(|child| Some((child.clone(), self.nodes[child].tree.clone()?)))
            .collect();
        let tree = if is_too_deep {
            let reason = format!(
                "contains itself, or aggregates are nested deeper than {AGGREGATE_DEPTH_MAX}"
            );
            let resource = format!("cluster {name}");
            Some(failed(ConfigError::new(resource, "cluster_type", reason)))
        } else {
            members.map(|members| merge(name, spec, &members))
        };
        let node = &self.nodes[name];
        Next {
            current: node.current.clone().filter(|_| tree.is_none()),
            children: children.to_vec(),
            tree: tree.or_else(|| node.tree.clone()),
            ..Next::default()
        }
    }

    /// How deep the aggregates below a cluster are nested; `None` when too deep or in a circle.
    fn height(
        &self,
        name: &ClusterName,
        depth: usize,
        known: &mut HashMap<ClusterName, usize>,
    ) -> Option<usize> {
        if depth > AGGREGATE_DEPTH_MAX {
            return None;
        }
        if let Some(height) = known.get(name) {
            return (depth + height <= AGGREGATE_DEPTH_MAX).then_some(*height);
        }
        let mut height = 0;
        let children = self.nodes.get(name).map(|node| &node.children);
        for child in children.into_iter().flatten() {
            height = height.max(1 + self.height(child, depth + 1, known)?);
        }
        known.insert(name.clone(), height);
        Some(height)
    }

    /// Sets a cluster's value and what it uses. Returns new members.
    fn replace(
        &mut self,
        name: &ClusterName,
        next: Next,
        orphans: &mut BTreeSet<Reference>,
    ) -> Vec<ClusterName> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Vec::new();
        };
        node.tree = next.tree;
        // As with every change of endpoints: no name is looked up, none is cloned.
        if node.current == next.current
            && node.next == next.next
            && node.children == next.children
            && node.hosts == next.hosts
        {
            return Vec::new();
        }
        let wanted = [next.current.clone(), next.next.clone()];
        for wanted in wanted.iter().flatten() {
            let users = self.endpoint_users.entry(wanted.clone()).or_default();
            users.insert(name.clone());
        }
        let old = [
            std::mem::replace(&mut node.current, next.current),
            std::mem::replace(&mut node.next, next.next),
        ];
        let old_children = std::mem::replace(&mut node.children, next.children.clone());
        let old_hosts = std::mem::replace(&mut node.hosts, next.hosts.clone());
        for old in old.into_iter().flatten() {
            if !wanted.iter().flatten().any(|kept| *kept == old) {
                self.release_endpoints(&old, name);
                orphans.insert(Reference::Endpoints(old));
            }
        }
        for host in old_hosts.difference(&next.hosts) {
            self.hosts.release(host, name);
        }
        let mut added = Vec::new();
        for child in &next.children {
            let node = self.nodes.entry(child.clone()).or_default();
            if node.parents.insert(name.clone()) {
                added.push(child.clone());
            }
        }
        for child in old_children {
            if !next.children.contains(&child) {
                if let Some(node) = self.nodes.get_mut(&child) {
                    node.parents.remove(name);
                }
                orphans.insert(Reference::Cluster(child));
            }
        }
        added
    }

    fn release_endpoints(&mut self, endpoints: &EndpointsName, cluster: &ClusterName) {
        if let Some(users) = self.endpoint_users.get_mut(endpoints) {
            users.remove(cluster);
            if users.is_empty() {
                self.endpoint_users.remove(endpoints);
            }
        }
    }
}

fn failed(error: ConfigError) -> ClusterTree {
    ClusterTree {
        cluster: Err(error.clone()),
        endpoints: Err(error),
    }
}

fn eds(node: &Node, spec: &ClusterSpec, wanted: &EndpointsName, cache: &mut Cache) -> Next {
    let resolve = |cache: &Cache, name| cache.endpoints.resolved(name).map(Resolved::into_result);
    cache.request(&Reference::Endpoints(wanted.clone()));
    if let Some(endpoints) = resolve(cache, wanted) {
        return Next {
            current: Some(wanted.clone()),
            tree: Some(ClusterTree {
                cluster: Ok(Arc::clone(&spec.config)),
                endpoints,
            }),
            ..Next::default()
        };
    }
    // Until then the old policy goes on with what is known of the old endpoints.
    let mut tree = node.tree.clone();
    let known = node.current.as_ref().and_then(|old| resolve(cache, old));
    if let (Some(tree), Some(endpoints)) = (&mut tree, known) {
        tree.endpoints = endpoints;
    }
    Next {
        current: node.current.clone(),
        next: Some(wanted.clone()),
        tree,
        ..Next::default()
    }
}
