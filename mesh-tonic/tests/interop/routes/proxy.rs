//! An Envoy with one route configuration, and servers behind it that tell what they got.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                Address, CidrRange, Http2ProtocolOptions, SocketAddress,
                address::Address as AnyAddress, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::RouteConfiguration,
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter,
                    http_connection_manager::{
                        CodecType, InternalAddressConfig, RouteSpecifier,
                        ServerHeaderTransformation,
                    },
                    http_filter,
                },
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    google::protobuf::{Any, BoolValue},
};
use http::{Request, Response};
use mesh_examples::ports::free_port;
use prost::{Message, Name};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::{
    super::peer,
    generate::{CLUSTERS, NAMES},
};

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn address(address: SocketAddr) -> Option<Address> {
    Some(Address {
        address: Some(AnyAddress::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..SocketAddress::default()
        })),
    })
}

/// A server that answers with what it got: its name, path, authority, and the headers that count.
pub(super) async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(name, stream));
        }
    });
    address
}

async fn serve(name: &'static str, stream: TcpStream) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(next) = connection.accept().await {
        let (request, mut respond) = next?;
        let body = Bytes::from(seen(name, &request));
        let response = Response::builder()
            .header("x-c", "of-server")
            .header("x-d", "1")
            .body(())
            .unwrap();
        respond
            .send_response(response, false)?
            .send_data(body, true)?;
    }
    Ok(())
}

/// The text that a server answers with.
pub(super) fn seen<B>(name: &str, request: &Request<B>) -> String {
    let path = request
        .uri()
        .path_and_query()
        .map_or("", |path| path.as_str());
    let authority = request
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    format!("{name} {authority} {path}\n{}", values(request.headers()))
}

fn cluster(name: &str, server: SocketAddr) -> Cluster {
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(server),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let http2 = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                    Http2ProtocolOptions::default(),
                )),
            },
        )),
        ..HttpProtocolOptions::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        typed_extension_protocol_options: [(key, any(&http2))].into(),
        ..Cluster::default()
    }
}

/// A listener that routes, whose filters end with `router`. Of callers that are `internal` it takes
/// headers that tell it what to do.
pub(crate) fn listener(
    port: u16,
    routes: RouteConfiguration,
    mut filters: Vec<HttpFilter>,
    router: &Router,
    internal: Option<CidrRange>,
) -> Listener {
    filters.push(HttpFilter {
        name: "router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(router))),
        ..HttpFilter::default()
    });
    let manager = HttpConnectionManager {
        stat_prefix: "routes".into(),
        codec_type: CodecType::Auto as i32,
        http_filters: filters,
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        server_header_transformation: ServerHeaderTransformation::PassThrough as i32,
        generate_request_id: Some(BoolValue { value: false }),
        use_remote_address: Some(BoolValue {
            value: internal.is_some(),
        }),
        internal_address_config: internal.map(|range| InternalAddressConfig {
            cidr_ranges: vec![range],
            ..InternalAddressConfig::default()
        }),
        ..HttpConnectionManager::default()
    };
    Listener {
        name: "routes".into(),
        address: address(SocketAddr::from(([127, 0, 0, 1], port))),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "manager".into(),
                config_type: Some(ConfigType::TypedConfig(any(&manager))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// Starts Envoy with `routes` and `filters` before its router; it ends when the child is dropped.
pub(super) async fn envoy(
    folder: &Path,
    routes: RouteConfiguration,
    filters: Vec<HttpFilter>,
) -> (Child, SocketAddr) {
    let port = free_port().unwrap();
    let mut clusters = Vec::new();
    for name in CLUSTERS {
        clusters.push(cluster(name, echo(name).await));
    }
    let router = Router {
        suppress_envoy_headers: true,
        ..Router::default()
    };
    let listener = listener(port, routes, filters, &router, None);
    start(folder, vec![listener], clusters, port).await
}

/// Starts Envoy with these, the last listener on `port`.
pub(crate) async fn start(
    folder: &Path,
    listeners: Vec<Listener>,
    clusters: Vec<Cluster>,
    port: u16,
) -> (Child, SocketAddr) {
    let bootstrap = Bootstrap {
        static_resources: Some(StaticResources {
            listeners,
            clusters,
            ..StaticResources::default()
        }),
        ..Bootstrap::default()
    };
    let file = folder.join("envoy.pb");
    std::fs::write(&file, bootstrap.encode_to_vec()).unwrap();
    let mut child = Command::new(peer("bin/envoy").await)
        .arg("-c")
        .arg(&file)
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let ready = async {
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("Envoy ended: {status}; its log says why");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready)
        .await
        .expect("Envoy listens");
    (child, address)
}

/// The values of the headers that are compared, in order.
pub(super) fn values(headers: &http::HeaderMap) -> String {
    let of = |name: &&str| {
        let values = headers.get_all(*name).iter();
        let values: Vec<_> = values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        (!values.is_empty()).then(|| format!("{name}={}\n", values.join(",")))
    };
    NAMES.iter().filter_map(of).collect()
}
