//! A hand-made configuration in a few lines, for tests and benchmarks (feature `test-util`).

use std::{net::SocketAddr, sync::Arc};

use crate::{
    config::{
        Cluster, ClusterEndpoints, Endpoint, Forward, HealthStatus, LocalityEndpoints, LocalityId,
        PathMatcher, PathPattern, Route, RouteAction, RouteConfig, RouteMatch, RouterOptions,
        VirtualHost,
    },
    snapshot::{ClusterTree, Compiler, ConfigTree, SnapshotReader, SnapshotWriter, pair},
};

/// Builds a [`ConfigTree`].
#[derive(Clone, Debug)]
#[must_use]
pub struct TreeBuilder {
    tree: ConfigTree,
    routes: Vec<Route>,
}

/// A tree for the listener `name`, which is also the dialled authority.
pub fn tree(name: &str) -> TreeBuilder {
    let routes = RouteConfig::new(name, Vec::new());
    TreeBuilder {
        tree: ConfigTree {
            listener: name.into(),
            authority: name.into(),
            max_stream_duration: None,
            stream_idle_timeout: None,
            filters: [].into(),
            router: RouterOptions::default(),
            routes: Arc::new(routes),
            clusters: std::collections::BTreeMap::new(),
        },
        routes: Vec::new(),
    }
}

/// Healthy endpoints in one locality.
pub fn endpoints(name: &str, addresses: &[SocketAddr]) -> ClusterEndpoints {
    let endpoints = addresses.iter().map(|address| Endpoint {
        address: *address,
        weight: 1,
        health: HealthStatus::Healthy,
        details: None,
    });
    let locality = LocalityEndpoints {
        locality: LocalityId::default(),
        priority: 0,
        weight: 1,
        endpoints: endpoints.collect(),
    };
    ClusterEndpoints::new(name, vec![locality])
}

impl TreeBuilder {
    /// A round-robin cluster.
    pub fn cluster(self, name: &str, addresses: &[SocketAddr]) -> Self {
        self.cluster_with(name, addresses, |_| {})
    }

    /// A cluster with other settings.
    pub fn cluster_with(
        mut self,
        name: &str,
        addresses: &[SocketAddr],
        change: impl FnOnce(&mut Cluster),
    ) -> Self {
        let mut cluster = Cluster::new(name);
        change(&mut cluster);
        let tree = ClusterTree {
            cluster: Ok(Arc::new(cluster)),
            endpoints: Ok(Arc::new(endpoints(name, addresses))),
        };
        self.tree.clusters.insert(name.into(), tree);
        self
    }

    /// A route from a path prefix to one cluster.
    pub fn route(self, prefix: &str, cluster: &str) -> Self {
        self.route_with(prefix, cluster, |_| {})
    }

    /// A route with other settings.
    pub fn route_with(
        mut self,
        prefix: &str,
        cluster: &str,
        change: impl FnOnce(&mut Forward),
    ) -> Self {
        let mut forward = Forward::to(cluster);
        change(&mut forward);
        let path = PathMatcher::new(PathPattern::Prefix(prefix.into()));
        self.routes.push(Route::new(
            prefix,
            RouteMatch::path(path),
            RouteAction::Forward(forward),
        ));
        self
    }

    /// Any route.
    pub fn add_route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// The tree.
    pub fn build(mut self) -> ConfigTree {
        let host = VirtualHost::new("any", ["*"], std::mem::take(&mut self.routes));
        let name = self.tree.routes.name.clone();
        self.tree.routes = Arc::new(RouteConfig::new(name, vec![host]));
        self.tree
    }
}

/// A configuration that a test changes while it is in use.
#[derive(Debug)]
pub struct HandMade {
    compiler: Compiler,
    writer: SnapshotWriter,
}

impl HandMade {
    /// Nothing published yet.
    pub fn new() -> (Self, SnapshotReader) {
        let (writer, reader) = pair();
        (
            Self {
                compiler: Compiler::new(1),
                writer,
            },
            reader,
        )
    }

    /// Compiles and publishes `tree`.
    ///
    /// # Panics
    /// When it does not compile.
    pub fn publish(&mut self, tree: &ConfigTree) {
        let snapshot = self
            .compiler
            .compile(tree)
            .unwrap_or_else(|error| panic!("{error}"));
        self.writer.publish(snapshot);
    }
}
