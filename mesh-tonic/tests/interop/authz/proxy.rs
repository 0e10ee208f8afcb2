//! An Envoy that serves the listeners of cases in front of a server that tells what it got.

use std::{net::SocketAddr, path::Path};

use envoy_types::pb::envoy::{
    config::{
        bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{
            Address, ConfigSource, Node, PathConfigSource, SocketAddress, address,
            config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
        listener::v3::{Listener, filter::ConfigType},
        route::v3::{RouteAction, route, route_action},
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
};
use prost::Message as _;
use tokio::{net::TcpListener, process::Child};

use super::super::{envoy_process, routes::any, wait::listens};

const CLUSTER: &str = "application";

/// The listener with its requests forwarded to the application, which is beside Envoy and not in it.
fn forwarding(mut listener: Listener) -> Listener {
    for chain in &mut listener.filter_chains {
        for filter in &mut chain.filters {
            let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else {
                continue;
            };
            let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
            let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else {
                continue;
            };
            for host in &mut routes.virtual_hosts {
                for route in &mut host.routes {
                    route.action = Some(route::Action::Route(RouteAction {
                        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(
                            CLUSTER.to_owned(),
                        )),
                        ..RouteAction::default()
                    }));
                }
            }
            *config = any(&manager);
        }
    }
    listener
}

pub(super) fn cluster(name: &str, server: SocketAddr, is_http2: bool) -> Cluster {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: server.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(server.port().into())),
            ..SocketAddress::default()
        })),
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    Cluster {
        name: name.to_owned(),
        typed_extension_protocol_options: if is_http2 {
            [(HTTP_OPTIONS.to_owned(), any(&http2()))].into()
        } else {
            Default::default()
        },
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn http2() -> HttpProtocolOptions {
    let config = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)),
        ..HttpProtocolOptions::default()
    }
}

/// An application that answers with what it sees.
async fn application() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let echo = super::echo();
    tokio::spawn(async move { axum::serve(socket, echo).await });
    address
}

/// Starts Envoy with all listeners; it ends when the child is dropped.
pub(super) async fn envoy(folder: &Path, listeners: Vec<Listener>, last: SocketAddr) -> Child {
    envoy_with(folder, listeners, last, Vec::new()).await
}

/// The same with more clusters.
pub(super) async fn envoy_with(
    folder: &Path,
    listeners: Vec<Listener>,
    last: SocketAddr,
    mut clusters: Vec<Cluster>,
) -> Child {
    clusters.push(cluster(CLUSTER, application().await, false));
    let listeners = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| Listener {
            name: format!("case {index}"),
            ..forwarding(listener)
        });
    let bootstrap = Bootstrap {
        // Secrets of files ask for a name.
        node: Some(Node {
            id: "envoy".to_owned(),
            cluster: "envoy".to_owned(),
            ..Node::default()
        }),
        static_resources: Some(StaticResources {
            listeners: listeners.collect(),
            clusters,
            ..StaticResources::default()
        }),
        ..Bootstrap::default()
    };
    let file = folder.join("envoy.pb");
    std::fs::write(&file, bootstrap.encode_to_vec()).unwrap();
    let mut child = envoy_process(&file).await;
    listens(&mut child, last).await;
    child
}

/// Secrets of a file.
pub(super) fn source_of_file(path: &Path) -> ConfigSource {
    let path = PathConfigSource {
        path: path.to_str().unwrap().to_owned(),
        ..PathConfigSource::default()
    };
    ConfigSource {
        initial_fetch_timeout: Some(envoy_types::pb::google::protobuf::Duration {
            seconds: 1,
            nanos: 0,
        }),
        config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(path)),
        ..ConfigSource::default()
    }
}
