//! Clusters with their endpoints, and who uses them.
//!
//! Stage 5. A cluster is resolved once its policy and its endpoints have a value or an error, and
//! stays so: when it moves to endpoints that are not there yet, the old ones serve meanwhile. The same
//! holds for secrets that its TLS names: until each has a value or an error, the old policy goes on.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use mesh_core::{
    ClusterName, ConfigError, EndpointsName, SecretName, config::ClusterEndpoints,
    snapshot::ClusterTree,
};

use super::{
    WatchId,
    few::Few,
    sources::{AGGREGATE_DEPTH_MAX, HostQuery, Hosts, merge, queries},
};
use crate::{
    cache::{Cache, Reference, Resolved},
    resource::{ClusterSource, ClusterSpec, DnsSource},
};

/// All clusters that are wanted.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    nodes: HashMap<ClusterName, Box<Node>>,
    endpoint_users: HashMap<EndpointsName, Few<ClusterName>>,
    secret_users: HashMap<SecretName, Few<ClusterName>>,
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
    hosts: BTreeSet<HostQuery>,
    /// Secrets of the policy in `tree`, and of the one that is waited for.
    secrets: BTreeSet<SecretName>,
    /// The endpoints in `tree`.
    current: Option<EndpointsName>,
    /// The endpoints that are waited for.
    next: Option<EndpointsName>,
    /// Whether `tree` has the endpoints of another source, while secrets for this one are waited for.
    is_tree_apart: bool,
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
    /// Secrets that were not used before.
    pub(super) secrets: Vec<SecretName>,
}

/// What a cluster uses, and its value.
#[derive(Default)]
struct Next {
    current: Option<EndpointsName>,
    next: Option<EndpointsName>,
    children: Vec<ClusterName>,
    hosts: BTreeSet<HostQuery>,
    secrets: BTreeSet<SecretName>,
    is_tree_apart: bool,
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
    pub(super) fn take_host_changes(&mut self) -> Vec<(HostQuery, bool)> {
        self.hosts.take_changes()
    }

    /// See [`Hosts::resolved`].
    pub(super) fn resolved(
        &mut self,
        host: &HostQuery,
        answer: Result<Vec<IpAddr>, String>,
    ) -> BTreeSet<ClusterName> {
        self.hosts.resolved(host, answer)
    }

    pub(super) fn is_endpoints_used(&self, name: &EndpointsName) -> bool {
        self.endpoint_users
            .get(name)
            .is_some_and(|users| !users.is_empty())
    }

    pub(super) fn is_secret_used(&self, name: &SecretName) -> bool {
        self.secret_users.contains_key(name)
    }

    /// Which clusters use the secret.
    pub(super) fn users_of_secret(&self, name: &SecretName) -> Few<ClusterName> {
        self.secret_users.get(name).cloned().unwrap_or_default()
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
            Some(Ok(spec)) => {
                let next = match &spec.source {
                    ClusterSource::Eds(wanted) => eds(node, &spec, wanted, cache),
                    ClusterSource::Dns(source) => self.dns(name, &spec, source),
                    ClusterSource::Aggregate(children) => {
                        self.aggregate(name, &spec, children, cache)
                    }
                    ClusterSource::OriginalDst(_) => passing(name, &spec),
                };
                with_secrets(&self.nodes[name], &spec, next, cache)
            }
        };
        let refreshed = Refreshed {
            is_changed: next.tree != old,
            is_new: old.is_none() && next.tree.is_some(),
            added: Vec::new(),
            secrets: self.new_secrets(name, &next),
        };
        let added = self.replace(name, next, orphans);
        Refreshed { added, ..refreshed }
    }

    fn new_secrets(&self, name: &ClusterName, next: &Next) -> Vec<SecretName> {
        let held = &self.nodes[name].secrets;
        next.secrets.difference(held).cloned().collect()
    }

    fn dns(&mut self, name: &ClusterName, spec: &ClusterSpec, source: &DnsSource) -> Next {
        let hosts = queries(source);
        for host in &hosts {
            self.hosts.hold(host, name);
        }
        let node = &self.nodes[name];
        let endpoints = self.hosts.endpoints(name, source);
        let is_known = endpoints.is_some();
        let tree = endpoints.map(|endpoints| ClusterTree {
            cluster: Ok(Arc::clone(&spec.config)),
            endpoints,
        });
        Next {
            // What it was before serves until the names are known.
            current: node.current.clone().filter(|_| !is_known),
            hosts,
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
        node.is_tree_apart = next.is_tree_apart;
        // As with every change of endpoints: no name is looked up, none is cloned.
        if node.current == next.current
            && node.next == next.next
            && node.children == next.children
            && node.hosts == next.hosts
            && node.secrets == next.secrets
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
        let old_secrets = std::mem::replace(&mut node.secrets, next.secrets.clone());
        for old in old.into_iter().flatten() {
            if !wanted.iter().flatten().any(|kept| *kept == old) {
                self.release_endpoints(&old, name);
                orphans.insert(Reference::Endpoints(old));
            }
        }
        for secret in &next.secrets {
            let users = self.secret_users.entry(secret.clone()).or_default();
            users.insert(name.clone());
        }
        for secret in old_secrets.difference(&next.secrets) {
            self.release_secret(secret, name);
            orphans.insert(Reference::Secret(secret.clone()));
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

    fn release_secret(&mut self, secret: &SecretName, cluster: &ClusterName) {
        if let Some(users) = self.secret_users.get_mut(secret) {
            users.remove(cluster);
            if users.is_empty() {
                self.secret_users.remove(secret);
            }
        }
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

/// What comes next, where the policy names secrets: nothing new until each has a value or an error, and
/// nothing that could be called where one has an error.
fn with_secrets(node: &Node, spec: &ClusterSpec, mut next: Next, cache: &mut Cache) -> Next {
    next.secrets = spec.config.secrets().cloned().collect();
    let mut is_complete = true;
    let mut failure = None;
    for secret in &next.secrets {
        cache.request(&Reference::Secret(secret.clone()));
        match cache.secrets.resolved(secret).map(Resolved::into_result) {
            None => is_complete = false,
            Some(Ok(_)) => {}
            Some(Err(error)) => failure = Some(error),
        }
    }
    if !is_complete {
        // Other endpoints than before may need the TLS that is not there yet.
        next.is_tree_apart = node.is_tree_apart
            || node.current != next.current
            || node.hosts != next.hosts
            || node.children != next.children;
        next.tree = match (&node.tree, next.tree.take()) {
            (Some(old), Some(new)) if !next.is_tree_apart => Some(ClusterTree {
                endpoints: new.endpoints,
                ..old.clone()
            }),
            (old, _) => old.clone(),
        };
        next.secrets.extend(node.secrets.iter().cloned());
    } else if let (Some(error), Some(tree)) = (failure, &mut next.tree) {
        tree.endpoints = Err(error);
    }
    next
}
/// A cluster whose endpoints are those that requests name.
fn passing(name: &ClusterName, spec: &ClusterSpec) -> Next {
    let endpoints = ClusterEndpoints::new(name.as_str(), Vec::new());
    Next {
        tree: Some(ClusterTree {
            cluster: Ok(Arc::clone(&spec.config)),
            endpoints: Ok(Arc::new(endpoints)),
        }),
        ..Next::default()
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
