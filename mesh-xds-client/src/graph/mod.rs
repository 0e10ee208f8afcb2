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
mod faults;
mod few;
mod follow;
mod inbound;
mod secrets;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use mesh_core::{
    ClusterName, ConfigError, ListenerName, SecretName,
    balance::LbPolicyFactory,
    config::{ClientPosition, LocalZones, LocalityId, Secret, TrustBundle},
    secrets::SecretWriter,
    snapshot::{Compiler, SnapshotWriter},
};
use tokio::sync::watch;

use crate::{
    ads::{Expired, Update},
    cache::{Cache, Cause, Change, Reference, Resolved},
    dump::ResourceDump,
    metrics::ResourceKey,
    resource::{Accepted, ClusterSource, Config, Kind},
    store::StoredResource,
    transport::lrs::LoadSource,
    watch::InboundState,
    watcher::Gate,
};
use client::ClientWatch;
pub use client::NAMED_CLUSTERS_MAX;
use clusters::Clusters;
pub(crate) use faults::Source;
use faults::{Origin, Outage, named};
use follow::Followers;
pub use follow::Resource;
pub(crate) use follow::{Follow, Follower};
use inbound::InboundWatch;
pub(crate) use sources::HostQuery;

/// One watch of an application.
pub(crate) type WatchId = u64;

/// The watch of the local cluster, which is nobody's.
const LOCAL_CLUSTER: WatchId = WatchId::MAX;

/// What is watched, and where it goes.
#[derive(Debug)]
pub(crate) enum Watcher {
    /// A client's listener.
    Client {
        listener: ListenerName,
        authority: String,
        writer: SnapshotWriter,
    },
    /// A cluster without a listener that leads to it.
    Cluster {
        name: ClusterName,
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
    /// One resource.
    Resource(Box<dyn Follow>),
}

#[derive(Debug)]
enum Watch {
    Client(Box<ClientWatch>),
    Inbound(InboundWatch),
    TrustBundle {
        name: SecretName,
        tx: watch::Sender<Option<Arc<TrustBundle>>>,
    },
    /// One of the followers.
    Resource(Reference),
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
    followers: Followers,
    /// What TLS finds secrets in.
    secrets: SecretWriter,
    /// What may have lost its last user; dropped at the end of the turn if so.
    orphans: BTreeSet<Reference>,
    /// Why an authority's control planes cannot be reached, while they cannot.
    outages: BTreeMap<Option<String>, Outage>,
    /// Whether other clusters than before may be asked for their load.
    has_new_sources: bool,
    /// Whether any cluster has ever asked for reports: most control planes never do.
    has_reports: bool,
    /// Servers of clusters that report to the one they came from.
    senders: BTreeMap<ClusterName, Arc<str>>,
    /// The cluster of this process's own service, and where this process is.
    local: Option<(ClusterName, LocalityId)>,
}

impl Graph {
    /// `seed` decides where round robin starts.
    pub(crate) fn new(node: String, server: String, seed: u64) -> Self {
        Self {
            origin: Origin {
                node,
                server,
                last_nack: None,
            },
            cache: Cache::default(),
            compiler: Compiler::new(seed),
            watches: BTreeMap::new(),
            users: BTreeMap::new(),
            clusters: Clusters::default(),
            followers: Followers::default(),
            secrets: mesh_core::secrets::pair().0,
            orphans: BTreeSet::new(),
            outages: BTreeMap::new(),
            has_new_sources: false,
            has_reports: false,
            senders: BTreeMap::new(),
            local: None,
        }
    }

    /// The same, with policies of the application, by name.
    pub(crate) fn with_policies(
        mut self,
        policies: impl IntoIterator<Item = (String, Arc<dyn LbPolicyFactory>)>,
    ) -> Self {
        for (name, factory) in policies {
            self.compiler = self.compiler.with_policy(name, factory);
        }
        self
    }

    /// The same, with secrets that clusters and listeners name put there.
    pub(crate) fn with_secrets(mut self, secrets: SecretWriter) -> Self {
        self.secrets = secrets;
        self
    }

    /// The same for a process at `place` whose own service is `cluster`, which is followed for as long as
    /// the graph lives: clusters with zone-aware routing want to know where its endpoints are.
    pub(crate) fn with_local_cluster(mut self, cluster: ClusterName, place: LocalityId) -> Self {
        self.clusters.hold(&cluster, LOCAL_CLUSTER, &mut self.cache);
        self.local = Some((cluster, place));
        self
    }

    /// The same for a process that has this place among all clients.
    pub(crate) fn with_client_position(mut self, position: ClientPosition) -> Self {
        self.compiler = self.compiler.with_client_position(position);
        self
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
            Watcher::Cluster { name, writer } => {
                Watch::Client(Box::new(ClientWatch::of_cluster(name, writer)))
            }
            Watcher::Inbound { listener, tx } => {
                self.hold(Reference::Listener(listener.clone()), id);
                Watch::Inbound(InboundWatch::new(listener, tx))
            }
            Watcher::TrustBundle { name, tx } => {
                self.hold(Reference::Secret(name.clone()), id);
                Watch::TrustBundle { name, tx }
            }
            Watcher::Resource(follower) => Watch::Resource(self.add_follower(id, follower)),
        };
        self.watches.insert(id, watch);
        self.evaluate(id);
        self.fail_for_outage(id);
    }

    /// Ends a watch.
    pub(crate) fn remove(&mut self, id: WatchId) {
        self.has_new_sources = true;
        match self.watches.remove(&id) {
            Some(Watch::Client(watch)) => self.release_client(id, *watch),
            Some(Watch::Inbound(watch)) => self.release_inbound(id, watch),
            Some(Watch::TrustBundle { name, .. }) => self.release(Reference::Secret(name), id),
            Some(Watch::Resource(reference)) => {
                self.followers.remove(&reference, id);
                self.orphans.insert(reference);
            }
            None => {}
        }
    }

    /// Takes what a response changed.
    pub(crate) fn apply(&mut self, update: Update, source: &Source, now: SystemTime) {
        let kind = update.kind;
        if let Some(nack) = update.nack {
            self.origin.last_nack = Some(nack);
        }
        let mut changed = Vec::new();
        for accepted in update.accepted {
            if let Config::Cluster(spec) = &accepted.config
                && spec.load_reports.is_some()
            {
                self.has_reports = true;
                let name = spec.config.name.clone();
                self.senders.insert(name, Arc::clone(&source.server));
            }
            changed.extend(self.cache.accept(accepted, now));
        }
        let rejected = update.rejected.into_iter();
        let failures = rejected.map(|(name, error)| (name, error, Cause::Rejected));
        let errors = update.errors.into_iter().map(|error| {
            let cause = match error.is_data_error {
                true => Cause::DataError,
                false => Cause::ServerError,
            };
            (error.name, error.error, cause)
        });
        for (name, error, cause) in failures.chain(errors) {
            changed.extend(self.fail(kind, &name, error, cause, source, now));
        }
        for name in update.removed {
            let error = named(kind, &name, "was removed by the control plane");
            changed.extend(self.fail(kind, &name, error, Cause::Removed, source, now));
        }
        self.propagate(changed, Some(&source.gate));
    }

    /// Takes what did not come in time, and what may not be used any longer.
    pub(crate) fn expire(&mut self, expired: Expired, source: &Source, now: SystemTime) {
        let mut changed = Vec::new();
        for (kind, name) in expired.missing {
            let (cause, reason) = if source.policy.resource_timer_is_transient {
                (
                    Cause::TimedOut,
                    "the control plane did not send it within 30 s",
                )
            } else {
                let reason = "does not exist: the control plane did not send it within 15 s";
                (Cause::Missing, reason)
            };
            let error = named(kind, &name, reason);
            changed.extend(self.fail(kind, &name, error, cause, source, now));
        }
        for (kind, name) in expired.ended {
            let error = named(kind, &name, "its time to live is over");
            changed.extend(self.fail(kind, &name, error, Cause::Expired, source, now));
        }
        self.propagate(changed, None);
    }

    /// Whether something may have lost its last user.
    pub(crate) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Whether a value or an error is known of a resource.
    pub(crate) fn is_known(&self, kind: Kind, name: &str) -> bool {
        self.cache.is_known(kind, name)
    }

    /// The last good values.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// See [`Cache::preload`].
    pub(crate) fn preload(&mut self, resources: Vec<(Accepted, SystemTime, u8)>) {
        self.has_reports |= !resources.is_empty();
        self.cache.preload(resources);
    }

    /// See [`Cache::take_dirty`].
    pub(crate) fn take_dirty(&mut self) -> bool {
        self.cache.take_dirty()
    }

    /// See [`Cache::save`].
    pub(crate) fn save(&self) -> Vec<StoredResource> {
        self.cache.save()
    }

    /// See [`Cache::stored_in_use`].
    pub(crate) fn stored_in_use(&self) -> usize {
        self.cache.stored_in_use()
    }

    /// See [`Cache::counts`].
    pub(crate) fn counts(&self) -> BTreeMap<ResourceKey, u64> {
        self.cache.counts()
    }

    /// Every resource as people see it.
    pub(crate) fn dump(&self) -> Vec<ResourceDump> {
        self.cache.dump()
    }

    /// Drops what nobody uses any more. Called at the end of a turn, so that a resource that only
    /// changes hands keeps its value.
    pub(crate) fn collect(&mut self) {
        let mut is_cluster_gone = false;
        while let Some(reference) = self.orphans.pop_first() {
            let is_used = match &reference {
                Reference::Cluster(name) => self.clusters.is_used(name),
                Reference::Endpoints(name) => self.clusters.is_endpoints_used(name),
                Reference::Secret(name) => self.is_secret_used(name),
                other => self.users.get(other).is_some_and(|users| !users.is_empty()),
            };
            if is_used {
                continue;
            }
            if let Reference::Cluster(name) = &reference {
                is_cluster_gone = true;
                self.orphans.extend(self.clusters.remove(name));
                self.senders.remove(name);
            }
            if let Reference::Secret(name) = &reference {
                self.secrets.remove(name);
            }
            self.users.remove(&reference);
            if self.followers.has(&reference) {
                continue;
            }
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

    /// Brings all watches up to date with the cache. `gate` is that of the stream the changes came by.
    fn propagate(&mut self, changed: Vec<Reference>, gate: Option<&Gate>) {
        self.tell(&changed, gate);
        let beside = self.cache.take_beside();
        self.tell(&beside, gate);
        self.publish_secrets(&changed);
        for reference in changed {
            match reference {
                Reference::Cluster(name) => {
                    self.has_new_sources = true;
                    self.refresh(&name);
                }
                Reference::Endpoints(name) => {
                    for cluster in self.clusters.users_of(&name) {
                        self.refresh(&cluster);
                    }
                }
                Reference::Secret(name) => self.secret_changed(&name),
                other => {
                    let ids = self.users.get(&other).cloned().unwrap_or_default();
                    for id in ids {
                        self.evaluate(id);
                    }
                }
            }
        }
    }

    /// Brings a cluster up to date with the cache, with its members and the aggregates around it, and
    /// finishes those that waited for it.
    fn refresh(&mut self, name: &ClusterName) {
        let mut due = VecDeque::from([name.clone()]);
        while let Some(name) = due.pop_front() {
            let refreshed = self
                .clusters
                .refresh(&name, &mut self.cache, &mut self.orphans);
            due.extend(refreshed.added);
            for secret in &refreshed.secrets {
                self.publish_secret(secret);
            }
            if !refreshed.is_changed {
                continue;
            }
            if let Some(tree) = self.clusters.tree(&name) {
                self.compiler.update_cluster(&name, tree);
                if let Some((_, place)) = self.local.as_ref().filter(|(own, _)| *own == name) {
                    let endpoints = tree.endpoints.as_ref().ok();
                    let zones = endpoints.map(|all| LocalZones::new(place.clone(), all));
                    self.compiler.set_local_zones(zones);
                }
            }
            due.extend(self.clusters.parents(&name));
            if refreshed.is_new {
                for id in self.clusters.users(&name) {
                    self.settle(id, &name);
                }
            }
        }
    }

    /// Clusters whose load is to be reported, when that may have changed since the last call.
    pub(crate) fn take_load_sources(&mut self) -> Option<Vec<LoadSource>> {
        if !std::mem::take(&mut self.has_new_sources) || !self.has_reports {
            return None;
        }
        let mut sources = BTreeMap::new();
        let clients = self.watches.values().filter_map(|watch| match watch {
            Watch::Client(client) => Some(client),
            Watch::Inbound(_) | Watch::TrustBundle { .. } | Watch::Resource(_) => None,
        });
        for handle in clients.flat_map(|client| client.handles()) {
            let Some(Resolved::Value(spec)) = self.cache.clusters.resolved(&handle.name) else {
                continue;
            };
            let Some(reports) = &spec.load_reports else {
                handle.load.select_metrics(&[]);
                continue;
            };
            handle.load.select_metrics(&reports.metrics);
            let sender = || self.senders.get(&handle.name).cloned();
            let server = reports.server.clone().or_else(sender);
            let service = match &spec.source {
                ClusterSource::Eds(name) => name.to_string(),
                ClusterSource::Dns(_) | ClusterSource::Aggregate(_) => String::new(),
            };
            sources.entry(handle.name.clone()).or_insert(LoadSource {
                cluster: handle.name.to_string(),
                service,
                // One of an earlier run has no sender yet.
                server: server.unwrap_or_else(|| self.origin.server.as_str().into()),
                current: handle.current.clone(),
                load: Arc::clone(&handle.load),
            });
        }
        Some(sources.into_values().collect())
    }

    /// Hosts that are to be looked up or not any more, since the last call.
    pub(crate) fn take_host_changes(&mut self) -> Vec<(HostQuery, bool)> {
        self.clusters.take_host_changes()
    }

    /// Takes an answer for a host.
    pub(crate) fn resolved(&mut self, host: &HostQuery, answer: Result<Vec<IpAddr>, String>) {
        for cluster in self.clusters.resolved(host, answer) {
            self.refresh(&cluster);
        }
    }

    fn evaluate(&mut self, id: WatchId) {
        match self.watches.remove(&id) {
            Some(Watch::Client(mut watch)) => {
                self.evaluate_client(id, &mut watch);
                self.watches.insert(id, Watch::Client(watch));
            }
            Some(Watch::Inbound(mut watch)) => {
                self.evaluate_inbound(id, &mut watch);
                self.watches.insert(id, Watch::Inbound(watch));
            }
            Some(watch) => {
                self.evaluate_value(&watch);
                self.watches.insert(id, watch);
            }
            None => {}
        }
    }

    /// Publishes a trust bundle.
    fn evaluate_value(&self, watch: &Watch) {
        match watch {
            Watch::Client(_) | Watch::Inbound(_) | Watch::Resource(_) => {}
            Watch::TrustBundle { name, tx } => {
                // The cache has logged an error, and the stream's state says the rest.
                let secret = match self.cache.secrets.resolved(name) {
                    Some(Resolved::Value(secret)) => secret,
                    // Without trusted roots nobody is trusted: the server asked for that.
                    Some(Resolved::Dropped(_)) => {
                        tx.send_replace(None);
                        return;
                    }
                    Some(Resolved::Error(_)) | None => return,
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
        let advice = "check the name that is dialled or served";
        self.origin.annotate_any(error, advice)
    }
}
