//! Clusters with their endpoints, and who uses them.
//!
//! Stage 5. A cluster is resolved once its policy and its endpoints have a value or an error, and
//! stays so: when it moves to endpoints that are not there yet, the old ones serve meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mesh_core::{ClusterName, EndpointsName, config::Discovery, snapshot::ClusterTree};

use super::WatchId;
use crate::cache::{Cache, Reference, Resolved};

/// All clusters that are wanted.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    nodes: BTreeMap<ClusterName, Node>,
    endpoint_users: HashMap<EndpointsName, BTreeSet<ClusterName>>,
}

#[derive(Debug, Default)]
struct Node {
    users: BTreeSet<WatchId>,
    /// The endpoints in `tree`.
    current: Option<EndpointsName>,
    /// The endpoints that are waited for.
    next: Option<EndpointsName>,
    /// The last complete value.
    tree: Option<ClusterTree>,
}

/// What [`Clusters::refresh`] did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refreshed {
    /// The cluster has another value than before.
    pub(super) is_changed: bool,
    /// The cluster had none before.
    pub(super) is_new: bool,
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
        self.nodes
            .get(name)
            .is_some_and(|node| !node.users.is_empty())
    }

    pub(super) fn is_endpoints_used(&self, name: &EndpointsName) -> bool {
        self.endpoint_users
            .get(name)
            .is_some_and(|users| !users.is_empty())
    }

    /// Who uses the cluster.
    pub(super) fn users(&self, name: &ClusterName) -> BTreeSet<WatchId> {
        self.nodes
            .get(name)
            .map(|node| node.users.clone())
            .unwrap_or_default()
    }

    /// Which clusters use the endpoints.
    pub(super) fn users_of(&self, name: &EndpointsName) -> BTreeSet<ClusterName> {
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

    /// Forgets a cluster; returns the endpoints that may be without a user now.
    pub(super) fn remove(&mut self, name: &ClusterName) -> Vec<Reference> {
        let Some(node) = self.nodes.remove(name) else {
            return Vec::new();
        };
        let mut orphans = Vec::new();
        for endpoints in node.current.into_iter().chain(node.next) {
            self.release_endpoints(&endpoints, name);
            orphans.push(Reference::Endpoints(endpoints));
        }
        orphans
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
        let (current, next, tree) = match cache.clusters.resolved(name).map(Resolved::into_result) {
            None => return Refreshed::default(),
            Some(Err(error)) => {
                let tree = ClusterTree {
                    cluster: Err(error.clone()),
                    endpoints: Err(error),
                };
                (None, None, Some(tree))
            }
            Some(Ok(cluster)) => {
                let Discovery::Eds(wanted) = &cluster.discovery;
                let wanted = wanted.clone();
                cache.request(&Reference::Endpoints(wanted.clone()));
                match cache.endpoints.resolved(&wanted).map(Resolved::into_result) {
                    Some(endpoints) => {
                        let cluster = Ok(cluster);
                        (Some(wanted), None, Some(ClusterTree { cluster, endpoints }))
                    }
                    // Until then the old policy goes on with what is known of the old endpoints.
                    None => {
                        let mut tree = node.tree.clone();
                        let known = node
                            .current
                            .as_ref()
                            .and_then(|old| cache.endpoints.resolved(old))
                            .map(Resolved::into_result);
                        if let (Some(tree), Some(endpoints)) = (&mut tree, known) {
                            tree.endpoints = endpoints;
                        }
                        (node.current.clone(), Some(wanted), tree)
                    }
                }
            }
        };
        let refreshed = Refreshed {
            is_changed: tree != node.tree,
            is_new: node.tree.is_none() && tree.is_some(),
        };
        self.replace(name, tree, [current, next], orphans);
        refreshed
    }

    /// Sets a cluster's value and the endpoints it uses now and next.
    fn replace(
        &mut self,
        name: &ClusterName,
        tree: Option<ClusterTree>,
        uses: [Option<EndpointsName>; 2],
        orphans: &mut BTreeSet<Reference>,
    ) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.tree = tree;
        for wanted in uses.iter().flatten() {
            let users = self.endpoint_users.entry(wanted.clone()).or_default();
            users.insert(name.clone());
        }
        let [current, next] = uses;
        let old_current = std::mem::replace(&mut node.current, current);
        let old_next = std::mem::replace(&mut node.next, next);
        let kept = [node.current.clone(), node.next.clone()];
        for old in old_current.into_iter().chain(old_next) {
            if !kept.iter().flatten().any(|kept| *kept == old) {
                self.release_endpoints(&old, name);
                orphans.insert(Reference::Endpoints(old));
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
