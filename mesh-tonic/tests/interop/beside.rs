//! An Envoy with the routes, filters and servers that a client of ours has.

use std::net::SocketAddr;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster,
            cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType},
        },
        core::v3::CidrRange,
        endpoint::v3::ClusterLoadAssignment,
        route::v3::{RouteConfiguration, VirtualHost},
    },
    extensions::filters::{
        http::router::v3::Router, network::http_connection_manager::v3::HttpFilter,
    },
};

use mesh_examples::ports::free_port;

use super::routes;

/// An Envoy of its own, gone when this is.
pub(crate) struct Beside {
    pub(crate) address: SocketAddr,
    _process: tokio::process::Child,
    _folder: tempfile::TempDir,
}

/// What it is told besides its routes.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) filters: Vec<HttpFilter>,
    pub(crate) router: Router,
    /// Whose headers are believed.
    pub(crate) internal: Option<CidrRange>,
    /// Of the cluster.
    pub(crate) balancing: Option<CommonLbConfig>,
    pub(crate) breakers: Option<CircuitBreakers>,
}

impl Beside {
    /// With the virtual host's routes, and a cluster with these endpoints.
    pub(crate) async fn start(
        host: VirtualHost,
        assignment: ClusterLoadAssignment,
        options: Options,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let routes = RouteConfiguration {
            name: "r".into(),
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        };
        let port = free_port().unwrap();
        let Options {
            filters,
            router,
            internal,
            balancing,
            breakers,
        } = options;
        let listener = routes::listener(port, routes, filters, &router, internal);
        let cluster = Cluster {
            name: assignment.cluster_name.clone(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
            load_assignment: Some(assignment),
            common_lb_config: balancing,
            circuit_breakers: breakers,
            ..Cluster::default()
        };
        let started = routes::start(folder.path(), vec![listener], vec![cluster], port);
        let (process, address) = started.await;
        Self {
            address,
            _process: process,
            _folder: folder,
        }
    }
}
