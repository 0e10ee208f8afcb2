//! A scripted control plane on a real socket: the test sees each stream's requests and writes its
//! responses.

use std::{net::SocketAddr, pin::Pin};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ApiConfigSource, ConfigSource, DataSource,
                GrpcService, SelfConfigSource, SocketAddress, address,
                config_source::ConfigSourceSpecifier,
                data_source::Specifier,
                grpc_service::{GoogleGrpc, TargetSpecifier},
                socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
            listener::v3::{ApiListener, Filter, FilterChain, Listener, filter},
            route::v3::{
                NonForwardingAction, Route, RouteAction, RouteConfiguration, RouteMatch,
                VirtualHost, route::Action, route_action::ClusterSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::RouteSpecifier, http_filter,
                },
            },
            transport_sockets::tls::v3::{CertificateValidationContext, Secret, secret::Type},
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_server::{
                AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
            },
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use futures_util::Stream;
use prost::{Message, Name};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{ports::free_address, translate::Translator, within};

pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// One stream of one client.
pub(crate) struct ServerStream {
    requests: mpsc::UnboundedReceiver<DiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>,
    /// The token that came with the call.
    pub(crate) authorization: Option<String>,
}

impl ServerStream {
    /// The next request; `None` when the client has closed the stream.
    pub(crate) async fn next(&mut self) -> Option<DiscoveryRequest> {
        within(self.requests.recv()).await
    }

    /// The next request, which must be of this type.
    pub(crate) async fn expect(&mut self, type_url: &str) -> DiscoveryRequest {
        let request = self.next().await.expect("the stream is open");
        assert_eq!(request.type_url, type_url, "{request:?}");
        request
    }

    pub(crate) fn send(&self, type_url: &str, version: &str, resources: Vec<Any>) {
        let response = DiscoveryResponse {
            version_info: version.into(),
            nonce: format!("nonce-{version}"),
            type_url: type_url.into(),
            resources,
            ..DiscoveryResponse::default()
        };
        self.responses
            .send(Ok(response))
            .expect("the stream is open");
    }

    /// Sends and waits for the acceptance.
    pub(crate) async fn serve(&mut self, type_url: &str, version: &str, resources: Vec<Any>) {
        self.send(type_url, version, resources);
        loop {
            let request = self.next().await.expect("the stream is open");
            if request.type_url == type_url && request.response_nonce == format!("nonce-{version}")
            {
                assert_eq!(request.error_detail, None);
                assert_eq!(request.version_info, version);
                return;
            }
        }
    }

    /// Serves one listener `l` with one cluster `c` and one endpoint.
    pub(crate) async fn serve_all(&mut self, port: u16) {
        self.expect(LDS).await;
        self.serve(LDS, "l1", vec![listener("l", "r")]).await;
        self.serve(RDS, "r1", vec![routes("r", "c")]).await;
        self.serve(CDS, "c1", vec![cluster("c")]).await;
        self.serve(EDS, "e1", vec![endpoints("c", port)]).await;
    }
}

/// The control plane.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    streams: mpsc::UnboundedReceiver<ServerStream>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_at(free_address().expect("a port")).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        Self::start_as(address, false).await
    }

    /// One that does not know the incremental variant.
    pub(crate) async fn start_sotw_only() -> Self {
        Self::start_as(free_address().expect("a port"), true).await
    }

    async fn start_as(address: SocketAddr, is_sotw_only: bool) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (service, streams) = service(is_sotw_only);
        let task = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.expect("serve");
        });
        Self {
            address,
            streams,
            task,
        }
    }

    /// Streams that have not been accepted.
    pub(crate) fn connections(&mut self) -> usize {
        self.streams.len()
    }

    pub(crate) async fn accept(&mut self) -> ServerStream {
        within(self.streams.recv()).await.expect("the server runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn service(
    is_sotw_only: bool,
) -> (
    AggregatedDiscoveryServiceServer<Service>,
    mpsc::UnboundedReceiver<ServerStream>,
) {
    let (tx, streams) = mpsc::unbounded_channel();
    let service = AggregatedDiscoveryServiceServer::new(Service {
        streams: tx,
        is_sotw_only,
    });
    // A request with 10,000 names is large too.
    (service.max_decoding_message_size(64 << 20), streams)
}

pub(crate) struct Service {
    streams: mpsc::UnboundedSender<ServerStream>,
    is_sotw_only: bool,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let authorization = authorization(request.metadata());
        let mut incoming = request.into_inner();
        let (request_tx, requests) = mpsc::unbounded_channel();
        let (responses, response_rx) = mpsc::unbounded_channel();
        // As servers in Go do: no headers before the first request has been read.
        if let Some(first) = incoming.message().await? {
            _ = request_tx.send(first);
        }
        _ = self.streams.send(ServerStream {
            requests,
            responses,
            authorization,
        });
        tokio::spawn(async move {
            while let Ok(Some(request)) = incoming.message().await {
                if request_tx.send(request).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            response_rx,
        ))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if self.is_sotw_only {
            return Err(Status::unimplemented("state of the world only"));
        }
        let authorization = authorization(request.metadata());
        let mut incoming = request.into_inner();
        let (request_tx, requests) = mpsc::unbounded_channel();
        let (responses, mut response_rx) = mpsc::unbounded_channel();
        let (tx, delta_rx) = mpsc::unbounded_channel();
        _ = self.streams.send(ServerStream {
            requests,
            responses,
            authorization,
        });
        tokio::spawn(async move {
            let mut translator = Translator::default();
            loop {
                tokio::select! {
                    request = incoming.message() => match request {
                        Ok(Some(request)) => {
                            _ = request_tx.send(translator.request(request));
                        }
                        _ => return,
                    },
                    response = response_rx.recv() => match response {
                        Some(response) => {
                            let response: Result<DiscoveryResponse, Status> = response;
                            _ = tx.send(response.map(|r| translator.response(r)));
                        }
                        None => return,
                    },
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            delta_rx,
        ))))
    }
}

fn authorization(metadata: &tonic::metadata::MetadataMap) -> Option<String> {
    let value = metadata.get("authorization")?;
    value.to_str().ok().map(str::to_owned)
}

fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

fn manager(routes: RouteSpecifier) -> Any {
    any(&HttpConnectionManager {
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(
                any(&Router::default()),
            )),
            ..HttpFilter::default()
        }],
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    })
}

pub(crate) fn listener(name: &str, route: &str) -> Any {
    let rds = Rds {
        config_source: ads(),
        route_config_name: route.into(),
    };
    any(&Listener {
        name: name.into(),
        api_listener: Some(ApiListener {
            api_listener: Some(manager(RouteSpecifier::Rds(rds))),
        }),
        ..Listener::default()
    })
}

pub(crate) fn inbound(name: &str) -> Any {
    let serve = Action::NonForwardingAction(NonForwardingAction {});
    let routes = RouteConfiguration {
        virtual_hosts: vec![host(vec![serve])],
        ..RouteConfiguration::default()
    };
    let manager = manager(RouteSpecifier::RouteConfig(routes));
    any(&Listener {
        name: name.into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "hcm".into(),
                config_type: Some(filter::ConfigType::TypedConfig(manager)),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    })
}

fn host(actions: Vec<Action>) -> VirtualHost {
    let route = |action| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..RouteMatch::default()
        }),
        action: Some(action),
        ..Route::default()
    };
    VirtualHost {
        name: "h".into(),
        domains: vec!["*".into()],
        routes: actions.into_iter().map(route).collect(),
        ..VirtualHost::default()
    }
}

pub(crate) fn routes_to(name: &str, clusters: &[String]) -> Any {
    let forward = |cluster: &String| {
        Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.clone())),
            ..RouteAction::default()
        })
    };
    any(&RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![host(clusters.iter().map(forward).collect())],
        ..RouteConfiguration::default()
    })
}

pub(crate) fn routes(name: &str, cluster: &str) -> Any {
    routes_to(name, &[cluster.to_owned()])
}

pub(crate) fn cluster(name: &str) -> Any {
    any(&eds_cluster(name))
}

fn eds_cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    }
}

/// A cluster with a field that has no effect here.
pub(crate) fn cluster_with_load_reports(name: &str) -> Any {
    any(&Cluster {
        lrs_server: ads(),
        ..eds_cluster(name)
    })
}

/// A cluster whose load the control plane wants to know.
pub(crate) fn cluster_with_own_load_reports(name: &str) -> Any {
    any(&Cluster {
        lrs_server: Some(ConfigSource {
            config_source_specifier: Some(
                ConfigSourceSpecifier::Self_(SelfConfigSource::default()),
            ),
            ..ConfigSource::default()
        }),
        ..eds_cluster(name)
    })
}

/// A cluster whose load this server wants to know.
pub(crate) fn cluster_with_load_reports_at(name: &str, server: &str) -> Any {
    let target = GoogleGrpc {
        target_uri: server.into(),
        ..GoogleGrpc::default()
    };
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::GoogleGrpc(target)),
        ..GrpcService::default()
    };
    let source = ApiConfigSource {
        grpc_services: vec![service],
        ..ApiConfigSource::default()
    };
    any(&Cluster {
        lrs_server: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            ..ConfigSource::default()
        }),
        ..eds_cluster(name)
    })
}

/// A cluster of one host.
pub(crate) fn dns_cluster(name: &str, host: &str, port: u16) -> Any {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
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
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(2)),
        load_assignment: Some(ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    })
}

/// A cluster with a policy that is not supported.
pub(crate) fn bad_cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        lb_policy: 6,
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    })
}

pub(crate) fn endpoints(name: &str, port: u16) -> Any {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "10.0.0.1".into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    };
    any(&ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                    address: Some(address),
                    ..Endpoint::default()
                })),
                ..LbEndpoint::default()
            }],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    })
}

pub(crate) fn trust_bundle(name: &str, pem: &str) -> Any {
    any(&Secret {
        name: name.into(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(pem.into())),
                ..DataSource::default()
            }),
            ..CertificateValidationContext::default()
        })),
    })
}
