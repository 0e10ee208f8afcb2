//! From watched names to complete configuration: LDS ► RDS ► CDS ► EDS.
//!
//! Stages 5 to 7. Knows which resource is wanted by whom, asks the cache for the closure of each
//! watched listener, and publishes when it is complete: every cluster the routes name has a value
//! or a recorded error (gRFC A74). Until then, and whenever something is refused, deleted or lost,
//! what was published before stays. A change of a cluster or its endpoints swaps that cluster
//! alone. Deviation from gRFC A88: losing the stream fails only those that have nothing yet, as a
//! whole, instead of failing single missing clusters of a new route table.

mod client;
mod clusters;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    ClusterName, ConfigError, ListenerName, SecretName,
    config::{ListenerKind, Secret, TrustBundle},
    snapshot::{Compiler, SnapshotWriter},
};
use tokio::sync::watch;

use crate::{
    ads::Update,
    cache::{Cache, Change, Failure, Reference},
    resource::Kind,
    watch::InboundState,
};
use client::ClientWatch;
use clusters::Clusters;

/// One watch of an application.
pub(crate) type WatchId = u64;

/// What is watched, and where it goes.
#[derive(Debug)]
pub(crate) enum Watcher {
    /// A client's listener.
    Client {
        listener: ListenerName,
        authority: String,
        writer: SnapshotWriter,
    },
    /// A server's listener.
    Inbound {
        listener: ListenerName,
        tx: watch::Sender<InboundState>,
    },
    /// A trust bundle.
    TrustBundle {
        name: SecretName,
        tx: watch::Sender<Option<Arc<TrustBundle>>>,
    },
}

#[derive(Debug)]
enum Watch {
    Client(Box<ClientWatch>),
    Inbound {
        listener: ListenerName,
        tx: watch::Sender<InboundState>,
    },
    TrustBundle {
        name: SecretName,
        tx: watch::Sender<Option<Arc<TrustBundle>>>,
    },
}

/// Who asks whom, for error texts.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) node: String,
    pub(crate) server: String,
}

impl Origin {
    /// The same error, saying where it comes from.
    fn annotate(&self, mut error: ConfigError) -> ConfigError {
        let Self { node, server } = self;
        error.reason = format!("{} (node {node:?}, control plane {server})", error.reason);
        error
    }
}

/// All watches and what they depend on.
#[derive(Debug)]
pub(crate) struct Graph {
    origin: Origin,
    cache: Cache,
    compiler: Compiler,
    watches: BTreeMap<WatchId, Watch>,
    /// Watches that use a listener, route configuration or secret.
    users: BTreeMap<Reference, BTreeSet<WatchId>>,
    clusters: Clusters,
    /// What may have lost its last user; dropped at the end of the turn if so.
    orphans: BTreeSet<Reference>,
    /// Why the control plane cannot be reached, while it cannot.
    outage: Option<String>,
}

impl Graph {
    /// `seed` decides where round robin starts.
    pub(crate) fn new(origin: Origin, seed: u64) -> Self {
        Self {
            origin,
            cache: Cache::default(),
            compiler: Compiler::new(seed),
            watches: BTreeMap::new(),
            users: BTreeMap::new(),
            clusters: Clusters::default(),
            orphans: BTreeSet::new(),
            outage: None,
        }
    }

    /// Starts a watch; it is served from the cache at once where possible.
    pub(crate) fn add(&mut self, id: WatchId, watcher: Watcher) {
        let watch = match watcher {
            Watcher::Client {
                listener,
                authority,
                writer,
            } => {
                self.hold(Reference::Listener(listener.clone()), id);
                Watch::Client(Box::new(ClientWatch::new(listener, authority, writer)))
            }
            Watcher::Inbound { listener, tx } => {
                self.hold(Reference::Listener(listener.clone()), id);
                Watch::Inbound { listener, tx }
            }
            Watcher::TrustBundle { name, tx } => {
                self.hold(Reference::Secret(name.clone()), id);
                Watch::TrustBundle { name, tx }
            }
        };
        self.watches.insert(id, watch);
        self.evaluate(id);
        if self.outage.is_some() {
            self.fail_for_outage(id);
        }
    }

    /// Ends a watch.
    pub(crate) fn remove(&mut self, id: WatchId) {
        match self.watches.remove(&id) {
            Some(Watch::Client(watch)) => self.release_client(id, *watch),
            Some(Watch::Inbound { listener, .. }) => {
                self.release(Reference::Listener(listener), id);
            }
            Some(Watch::TrustBundle { name, .. }) => self.release(Reference::Secret(name), id),
            None => {}
        }
    }

    /// Takes what a response changed.
    pub(crate) fn apply(&mut self, update: Update) {
        let kind = update.kind;
        let mut changed = Vec::new();
        for (name, config) in update.accepted {
            changed.extend(self.cache.accept(&name, config));
        }
        for (name, error) in update.rejected {
            let failure = Failure::Rejected(self.origin.annotate(error));
            changed.extend(self.cache.fail(kind, &name, failure));
        }
        for (name, error) in update.errors {
            let failure = Failure::Absent(self.origin.annotate(error));
            changed.extend(self.cache.fail(kind, &name, failure));
        }
        for name in update.removed {
            let failure = self.absent(kind, &name, "was removed by the control plane");
            changed.extend(self.cache.fail(kind, &name, failure));
        }
        self.propagate(changed);
    }

    /// Takes what did not come in time.
    pub(crate) fn expire(&mut self, missing: Vec<(Kind, String)>) {
        let mut changed = Vec::new();
        for (kind, name) in missing {
            let reason = "does not exist: the control plane did not send it within 15 s";
            let failure = self.absent(kind, &name, reason);
            changed.extend(self.cache.fail(kind, &name, failure));
        }
        self.propagate(changed);
    }

    fn absent(&self, kind: Kind, name: &str, reason: &str) -> Failure {
        let error = ConfigError::new(format!("{} {name}", kind.noun()), "", reason);
        Failure::Absent(self.origin.annotate(error))
    }

    /// The control plane cannot be reached. Those that have nothing yet fail until it can.
    pub(crate) fn disconnected(&mut self, error: &str) {
        self.outage = Some(format!("the control plane cannot be reached: {error}"));
        let ids: Vec<_> = self.watches.keys().copied().collect();
        for id in ids {
            self.fail_for_outage(id);
        }
    }

    /// The control plane can be reached.
    pub(crate) fn connected(&mut self) {
        self.outage = None;
    }

    fn fail_for_outage(&mut self, id: WatchId) {
        let Some(outage) = &self.outage else {
            return;
        };
        let describe = |listener: &ListenerName| {
            let error = ConfigError::new(format!("listener {listener}"), "", outage.clone());
            self.origin.annotate(error)
        };
        match self.watches.get_mut(&id) {
            Some(Watch::Client(watch)) => {
                let error = describe(&watch.listener);
                watch.fail_for_outage(error);
            }
            Some(Watch::Inbound { listener, tx }) => {
                let error = describe(listener);
                let is_pending = |state: &InboundState| matches!(state, InboundState::Pending);
                tx.send_if_modified(|state| {
                    let is_changed = is_pending(state);
                    if is_changed {
                        *state = InboundState::Failed(error);
                    }
                    is_changed
                });
            }
            Some(Watch::TrustBundle { .. }) | None => {}
        }
    }

    /// Drops what nobody uses any more. Called at the end of a turn, so that a resource that only
    /// changes hands keeps its value.
    pub(crate) fn collect(&mut self) {
        let mut is_cluster_gone = false;
        while let Some(reference) = self.orphans.pop_first() {
            let is_used = match &reference {
                Reference::Cluster(name) => self.clusters.is_used(name),
                Reference::Endpoints(name) => self.clusters.is_endpoints_used(name),
                other => self.users.get(other).is_some_and(|users| !users.is_empty()),
            };
            if is_used {
                continue;
            }
            if let Reference::Cluster(name) = &reference {
                is_cluster_gone = true;
                self.orphans.extend(self.clusters.remove(name));
            }
            self.users.remove(&reference);
            self.cache.forget(&reference);
        }
        if is_cluster_gone {
            let clusters = &self.clusters;
            self.compiler.retain_clusters(|name| clusters.is_used(name));
        }
    }

    /// Changes of what is wanted on the wire, since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        self.cache.take_changes()
    }

    fn hold(&mut self, reference: Reference, id: WatchId) {
        self.cache.request(&reference);
        self.users.entry(reference).or_default().insert(id);
    }

    fn release(&mut self, reference: Reference, id: WatchId) {
        if let Some(users) = self.users.get_mut(&reference) {
            users.remove(&id);
        }
        self.orphans.insert(reference);
    }

    fn propagate(&mut self, changed: Vec<Reference>) {
        for reference in changed {
            match reference {
                Reference::Cluster(name) => self.refresh(&name),
                Reference::Endpoints(name) => {
                    for cluster in self.clusters.users_of(&name) {
                        self.refresh(&cluster);
                    }
                }
                other => {
                    let ids = self.users.get(&other).cloned().unwrap_or_default();
                    for id in ids {
                        self.evaluate(id);
                    }
                }
            }
        }
    }

    /// Brings a cluster up to date with the cache, and finishes those that waited for it.
    fn refresh(&mut self, name: &ClusterName) {
        let refreshed = self
            .clusters
            .refresh(name, &mut self.cache, &mut self.orphans);
        if !refreshed.is_changed {
            return;
        }
        if let Some(tree) = self.clusters.tree(name) {
            self.compiler.update_cluster(name, tree);
        }
        if refreshed.is_new {
            for id in self.clusters.users(name) {
                self.settle(id, name);
            }
        }
    }

    fn evaluate(&mut self, id: WatchId) {
        match self.watches.remove(&id) {
            Some(Watch::Client(mut watch)) => {
                self.evaluate_client(id, &mut watch);
                self.watches.insert(id, Watch::Client(watch));
            }
            Some(watch) => {
                self.evaluate_value(&watch);
                self.watches.insert(id, watch);
            }
            None => {}
        }
    }

    /// Publishes an inbound listener or a trust bundle.
    fn evaluate_value(&self, watch: &Watch) {
        match watch {
            Watch::Client(_) => {}
            Watch::Inbound { listener, tx } => match self.cache.listeners.resolved(listener) {
                None => {}
                Some(Ok(value)) => match &value.kind {
                    ListenerKind::Inbound(inbound) => {
                        tx.send_replace(InboundState::Ready(Arc::new(inbound.clone())));
                    }
                    ListenerKind::Api(_) => {
                        fail_inbound(tx, self.wrong_kind(listener, "a client's, not a server's"));
                    }
                },
                Some(Err(error)) => fail_inbound(tx, error),
            },
            Watch::TrustBundle { name, tx } => {
                // The cache has logged an error, and the stream's state says the rest.
                let Some(Ok(secret)) = self.cache.secrets.resolved(name) else {
                    return;
                };
                match &*secret {
                    Secret::TrustBundle(bundle) => {
                        tx.send_replace(Some(Arc::new(bundle.clone())));
                    }
                    Secret::Certificate { .. } => {
                        tracing::warn!(%name, "the secret is a certificate, not a trust bundle");
                    }
                }
            }
        }
    }

    fn wrong_kind(&self, listener: &ListenerName, what: &str) -> ConfigError {
        let error = ConfigError::new(format!("listener {listener}"), "", format!("is {what}"));
        self.origin.annotate(error)
    }
}

fn fail_inbound(tx: &watch::Sender<InboundState>, error: ConfigError) {
    tx.send_if_modified(|state| {
        if matches!(state, InboundState::Ready(_)) {
            return false;
        }
        *state = InboundState::Failed(error);
        true
    });
}
