//! The watch of one client listener: what is published, and what is on its way.
//!
//! Stages 5 to 7. Only the virtual host that the dialled authority selects is followed (gRFC A74),
//! so changes of other virtual hosts in a shared route configuration publish nothing.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    ClusterName, ConfigError, ListenerName, RouteConfigName,
    config::{
        ApiListener, Forward, HttpFilter, ListenerKind, Route, RouteAction, RouteConfig,
        RouteMatch, RouteSource, RouterOptions, VirtualHost,
    },
    route::virtual_host,
    snapshot::{ClusterHandle, ConfigTree, Snapshot, SnapshotWriter},
};

use super::{Graph, Watch, WatchId};
use crate::cache::{Reference, Resolved};

/// Clusters of one listener that are asked for because requests name them, at most. The next one
/// takes the place of one that cannot be used, or of the oldest.
pub const NAMED_CLUSTERS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct ClientWatch {
    pub(super) listener: ListenerName,
    authority: String,
    writer: SnapshotWriter,
    /// Routes that are no resource; `None` for the listener's.
    fixed: Option<Arc<RouteConfig>>,
    route: Option<RouteConfigName>,
    published: Option<Plan>,
    next: Option<Plan>,
    /// Clusters of `next` without value or error.
    unresolved: BTreeSet<ClusterName>,
    /// Clusters that requests name, the oldest first. Only those that are resolved are published:
    /// a name that nobody knows holds nothing back.
    named: VecDeque<ClusterName>,
    /// Clusters of both plans, and those that are named.
    held: BTreeSet<ClusterName>,
    failed: Option<Failed>,
}

/// What a snapshot is compiled from.
#[derive(Debug)]
struct Plan {
    /// Once it is published.
    snapshot: Option<Arc<Snapshot>>,
    routes: Arc<RouteConfig>,
    settings: Settings,
    clusters: BTreeSet<ClusterName>,
    /// Those of them that only requests name.
    named: BTreeSet<ClusterName>,
}

/// What the listener says besides its routes.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    max_stream_duration: Option<Duration>,
    stream_idle_timeout: Option<Duration>,
    filters: Arc<[HttpFilter]>,
    router: RouterOptions,
}

#[derive(Debug)]
struct Failed {
    error: ConfigError,
    is_outage: bool,
}

impl ClientWatch {
    pub(super) fn new(listener: ListenerName, authority: String, writer: SnapshotWriter) -> Self {
        Self {
            listener,
            authority,
            writer,
            fixed: None,
            route: None,
            published: None,
            next: None,
            unresolved: BTreeSet::new(),
            named: VecDeque::new(),
            held: BTreeSet::new(),
            failed: None,
        }
    }

    /// Everything to one cluster, without a listener.
    pub(super) fn of_cluster(cluster: ClusterName, writer: SnapshotWriter) -> Self {
        let listener = ListenerName::from(format!("cluster {cluster}"));
        let action = RouteAction::Forward(Forward::to(cluster));
        let route = Route::new("all", RouteMatch::any(), action);
        let host = VirtualHost::new("all", ["*"], vec![route]);
        let routes = RouteConfig::new(listener.as_str(), vec![host]);
        Self {
            fixed: Some(Arc::new(routes)),
            ..Self::new(listener, String::new(), writer)
        }
    }

    /// Whether there is a listener to follow.
    pub(super) fn has_listener(&self) -> bool {
        self.fixed.is_none()
    }

    fn fail(&mut self, error: ConfigError) {
        let is_repeated = self
            .failed
            .as_ref()
            .is_some_and(|failed| failed.error == error);
        if self.published.is_none() && !is_repeated {
            self.writer.fail(error.clone(), false);
            self.failed = Some(Failed {
                error,
                is_outage: false,
            });
        }
    }

    /// An outage says less than an error about the resource itself, and does not replace it.
    pub(super) fn fail_for_outage(&mut self, error: ConfigError) {
        let is_better_known = self.failed.as_ref().is_some_and(|failed| !failed.is_outage);
        if !is_better_known {
            self.fail(error);
            if let Some(failed) = &mut self.failed {
                failed.is_outage = true;
            }
        }
    }

    /// Resources that are waited for, as far as they are known.
    pub(super) fn awaited(
        &self,
    ) -> (
        &ListenerName,
        Option<&RouteConfigName>,
        BTreeSet<ClusterName>,
    ) {
        (&self.listener, self.route.as_ref(), self.unresolved.clone())
    }

    /// The clusters of what is published.
    pub(super) fn handles(&self) -> impl Iterator<Item = &ClusterHandle> {
        let snapshot = self
            .published
            .iter()
            .filter_map(|plan| plan.snapshot.as_ref());
        snapshot.flat_map(|snapshot| &snapshot.clusters)
    }

    fn is_published(
        &self,
        routes: &RouteConfig,
        host: &VirtualHost,
        settings: &Settings,
        named: &BTreeSet<ClusterName>,
    ) -> bool {
        self.published.as_ref().is_some_and(|plan| {
            plan.settings == *settings
                && plan.named == *named
                && hold_alike(&plan.routes, routes)
                && virtual_host(&plan.routes, &self.authority) == Some(host)
        })
    }
}

/// Whether both say the same to every virtual host.
fn hold_alike(a: &RouteConfig, b: &RouteConfig) -> bool {
    let RouteConfig {
        name: _,
        virtual_hosts: _,
        headers,
        filters,
        most_specific_mutations_win,
        // Decides which virtual host it is, which is compared.
        ignore_port: _,
    } = a;
    *headers == b.headers
        && *filters == b.filters
        && *most_specific_mutations_win == b.most_specific_mutations_win
}

/// What the listener and its routes say.
enum Found {
    /// Not all of it is there.
    Nothing,
    Error(ConfigError),
    /// What was used must not be used any more.
    Dropped(ConfigError),
    Routes(Arc<RouteConfig>, Settings),
}

impl Graph {
    /// Looks at the listener and its routes anew.
    pub(super) fn evaluate_client(&mut self, id: WatchId, watch: &mut ClientWatch) {
        let (routes, settings) = match self.find_routes(id, watch) {
            Found::Nothing => return,
            Found::Error(error) => return watch.fail(error),
            Found::Dropped(error) => return self.drop_published(id, watch, error),
            Found::Routes(routes, settings) => (routes, settings),
        };
        let Some(host) = virtual_host(&routes, &watch.authority) else {
            return self.withdraw(id, watch, &routes);
        };
        if !watch.named.is_empty() && !host.routes.iter().any(Route::has_cluster_header) {
            watch.named.clear();
        }
        let named = watch.named.iter();
        let named = named.filter(|name| self.clusters.tree(name).is_some());
        let named: BTreeSet<_> = named.cloned().collect();
        if watch.is_published(&routes, host, &settings, &named) {
            watch.next = None;
            return self.hold_clusters(id, watch);
        }
        let mut clusters: BTreeSet<_> = named.clone();
        clusters.extend(host.routes.iter().flat_map(Route::clusters).cloned());
        watch.next = Some(Plan {
            snapshot: None,
            routes,
            settings,
            clusters,
            named,
        });
        self.hold_clusters(id, watch);
        let wanted = watch.next.iter().flat_map(|plan| &plan.clusters);
        watch.unresolved = wanted
            .filter(|name| self.clusters.tree(name).is_none())
            .cloned()
            .collect();
        self.publish_if_complete(id, watch);
    }

    /// A cluster has its first value.
    pub(super) fn settle(&mut self, id: WatchId, cluster: &ClusterName) {
        let Some(Watch::Client(mut watch)) = self.watches.remove(&id) else {
            return;
        };
        if watch.unresolved.remove(cluster) {
            self.publish_if_complete(id, &mut watch);
        }
        if watch.named.contains(cluster) {
            self.evaluate_client(id, &mut watch);
        }
        self.watches.insert(id, Watch::Client(watch));
    }

    /// A request names a cluster. It is asked for, and published once it is resolved.
    pub(crate) fn name_cluster(&mut self, id: WatchId, cluster: ClusterName) {
        let Some(Watch::Client(mut watch)) = self.watches.remove(&id) else {
            return;
        };
        if !watch.held.contains(&cluster) {
            if watch.named.len() == NAMED_CLUSTERS_MAX {
                let is_unusable = |name: &ClusterName| {
                    let tree = self.clusters.tree(name);
                    tree.is_none_or(|tree| tree.cluster.is_err())
                };
                let place = watch.named.iter().position(is_unusable);
                watch.named.remove(place.unwrap_or(0));
            }
            watch.named.push_back(cluster);
            // Another listener may have it already.
            self.hold_clusters(id, &mut watch);
            self.evaluate_client(id, &mut watch);
        }
        self.watches.insert(id, Watch::Client(watch));
    }

    /// Gives back all that a watch holds.
    pub(super) fn release_client(&mut self, id: WatchId, mut watch: ClientWatch) {
        watch.published = None;
        watch.next = None;
        watch.named.clear();
        self.hold_clusters(id, &mut watch);
        if let Some(route) = watch.route.take() {
            self.release(Reference::Route(route), id);
        }
        if watch.has_listener() {
            self.release(Reference::Listener(watch.listener), id);
        }
    }

    fn find_routes(&mut self, id: WatchId, watch: &mut ClientWatch) -> Found {
        if let Some(routes) = &watch.fixed {
            let settings = Settings {
                max_stream_duration: None,
                stream_idle_timeout: None,
                filters: Arc::default(),
                router: RouterOptions::default(),
            };
            return Found::Routes(Arc::clone(routes), settings);
        }
        let listener = match self.cache.listeners.resolved(&watch.listener) {
            None => return Found::Nothing,
            Some(Resolved::Error(error)) => return Found::Error(error),
            Some(Resolved::Dropped(error)) => return Found::Dropped(error),
            Some(Resolved::Value(listener)) => listener,
        };
        let ListenerKind::Api(ApiListener {
            routes,
            max_stream_duration,
            stream_idle_timeout,
            filters,
            router,
        }) = &listener.kind
        else {
            let what = "a server's, not a client's: it has no api_listener";
            return Found::Error(self.wrong_kind(&watch.listener, what));
        };
        let name = match routes {
            RouteSource::Rds(name) => Some(name.clone()),
            RouteSource::Inline(_) => None,
        };
        if watch.route != name {
            let old = std::mem::replace(&mut watch.route, name.clone());
            if let Some(name) = name {
                self.hold(Reference::Route(name), id);
            }
            if let Some(old) = old {
                self.release(Reference::Route(old), id);
            }
        }
        let routes = match routes {
            RouteSource::Inline(routes) => Some(Resolved::Value(Arc::clone(routes))),
            RouteSource::Rds(name) => self.cache.routes.resolved(name),
        };
        match routes {
            None => Found::Nothing,
            Some(Resolved::Error(error)) => Found::Error(error),
            Some(Resolved::Dropped(error)) => Found::Dropped(error),
            Some(Resolved::Value(routes)) => {
                let settings = Settings {
                    max_stream_duration: *max_stream_duration,
                    stream_idle_timeout: *stream_idle_timeout,
                    filters: Arc::clone(filters),
                    router: *router,
                };
                Found::Routes(routes, settings)
            }
        }
    }

    /// The control plane has taken the authority out of the routes: a valid change, so what was
    /// published ends.
    fn withdraw(&mut self, id: WatchId, watch: &mut ClientWatch, routes: &RouteConfig) {
        let error = ConfigError::new(
            format!("route configuration {}", routes.name),
            "virtual_hosts",
            format!(
                "no domain matches the dialled authority {:?}",
                watch.authority
            ),
        );
        let advice = "dial one of its domains, or add this one";
        let error = self.origin.annotate_any(error, advice);
        self.drop_published(id, watch, error);
    }

    /// Ends what was published.
    fn drop_published(&mut self, id: WatchId, watch: &mut ClientWatch, error: ConfigError) {
        let is_repeated = watch
            .failed
            .as_ref()
            .is_some_and(|failed| failed.error == error);
        if is_repeated && watch.published.is_none() {
            return;
        }
        tracing::warn!(%error, listener = %watch.listener, "no route table");
        watch.published = None;
        watch.next = None;
        watch.unresolved.clear();
        self.hold_clusters(id, watch);
        watch.writer.fail(error.clone(), true);
        watch.failed = Some(Failed {
            error,
            is_outage: false,
        });
    }

    fn publish_if_complete(&mut self, id: WatchId, watch: &mut ClientWatch) {
        if !watch.unresolved.is_empty() {
            return;
        }
        let Some(mut plan) = watch.next.take() else {
            return;
        };
        let clusters = plan
            .clusters
            .iter()
            .filter_map(|name| Some((name.clone(), self.clusters.tree(name)?.clone())))
            .collect();
        let tree = ConfigTree {
            listener: watch.listener.clone(),
            authority: watch.authority.clone(),
            max_stream_duration: plan.settings.max_stream_duration,
            stream_idle_timeout: plan.settings.stream_idle_timeout,
            filters: Arc::clone(&plan.settings.filters),
            router: plan.settings.router,
            routes: Arc::clone(&plan.routes),
            clusters,
        };
        match self.compiler.compile(&tree) {
            Ok(snapshot) => {
                tracing::debug!(
                    listener = %watch.listener,
                    generation = snapshot.generation,
                    clusters = plan.clusters.len(),
                    "published"
                );
                plan.snapshot = Some(Arc::clone(&snapshot));
                watch.writer.publish(snapshot);
                self.has_new_sources = true;
                watch.published = Some(plan);
                watch.failed = None;
            }
            Err(error) => {
                let error = self.origin.annotate_any(error, "correct the routes");
                tracing::warn!(%error, listener = %watch.listener, "the routes cannot be used");
                watch.fail(error);
            }
        }
        self.hold_clusters(id, watch);
    }

    /// Holds the clusters of both plans and no others: new ones first, so that a cluster that
    /// changes hands is never without a user.
    fn hold_clusters(&mut self, id: WatchId, watch: &mut ClientWatch) {
        let plans = watch.published.iter().chain(&watch.next);
        let planned = plans.flat_map(|plan| &plan.clusters);
        let wanted: BTreeSet<_> = planned.chain(&watch.named).cloned().collect();
        let mut added = Vec::new();
        for name in wanted.difference(&watch.held) {
            self.clusters.hold(name, id, &mut self.cache);
            added.push(name.clone());
        }
        for name in watch.held.difference(&wanted) {
            self.clusters.release(name, id);
            self.orphans.insert(Reference::Cluster(name.clone()));
        }
        watch.held = wanted;
        for name in added {
            // What the cache has already, for another user or since this turn began.
            self.refresh(&name);
        }
    }
}
