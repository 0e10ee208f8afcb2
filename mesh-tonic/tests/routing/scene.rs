//! A scripted control plane, servers, and a client of them that speaks one protocol.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{
                HeaderValue as HeaderValueProto, HeaderValueOption, HealthStatus,
                Http1ProtocolOptions, Http2ProtocolOptions, Locality,
            },
            endpoint::v3::{
                ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router, network::http_connection_manager::v3::http_filter,
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
    google::protobuf::UInt32Value,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use mesh_tower::{
    Body, Error, Mesh, MeshBuilder, MeshService, ResponseBody, connect::HyperConnector,
    telemetry::Telemetry,
};
use mesh_xds_client::Bootstrap;
use tokio::sync::OnceCell;
use tower::ServiceExt;

use super::{
    echo::{Echo, SEEN, Seen},
    plane::Plane,
    resources::{
        CDS, EDS, RDS, TARGET, any, eds_cluster, endpoint, listener, listener_changed, to,
    },
    world::MUST_HAPPEN,
};

/// What client and servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
    Grpc,
}

impl Wire {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    pub(crate) fn request(self, path: &str) -> Request<Body> {
        let uri = format!("http://{TARGET}{path}");
        let request = match self {
            Self::Grpc => Request::post(uri)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::from(Bytes::from_static(&[0; 5]))),
            Self::Http1 | Self::Http2 => Request::get(uri).body(Body::empty()),
        };
        request.unwrap()
    }

    /// How servers see it.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 | Self::Grpc => "HTTP/2.0",
        }
    }

    fn config(self) -> ProtocolConfig {
        match self {
            Self::Http1 => ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
            Self::Http2 | Self::Grpc => {
                ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())
            }
        }
    }

    /// A cluster whose servers speak it.
    pub(crate) fn cluster(self, name: &str, change: impl FnOnce(&mut Cluster)) -> Cluster {
        let options = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
                ExplicitHttpConfig {
                    protocol_config: Some(self.config()),
                },
            )),
            ..HttpProtocolOptions::default()
        };
        let mut cluster = Cluster {
            typed_extension_protocol_options: HashMap::from([(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
                any(&options),
            )]),
            ..eds_cluster(name)
        };
        change(&mut cluster);
        cluster
    }
}

/// A client that routes as its control plane says.
pub(crate) struct Scene {
    pub(crate) wire: Wire,
    pub(crate) plane: Plane,
    configure: fn(MeshBuilder) -> MeshBuilder,
    /// Made by the first request: what it asks for is there then.
    client: OnceCell<(Mesh, MeshService<HyperConnector>)>,
}

impl Scene {
    pub(crate) async fn start(wire: Wire, host: VirtualHost) -> Self {
        Self::start_with(wire, host, |builder| builder).await
    }

    /// With options of the client's mesh.
    pub(crate) async fn start_with(
        wire: Wire,
        host: VirtualHost,
        configure: fn(MeshBuilder) -> MeshBuilder,
    ) -> Self {
        let plane = Plane::start().await;
        plane.set([listener()]);
        let scene = Self {
            wire,
            plane,
            configure,
            client: OnceCell::new(),
        };
        scene.route(RouteConfiguration {
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        });
        scene
    }

    pub(crate) async fn service(&self) -> MeshService<HyperConnector> {
        let (_, service) = self.client.get_or_init(|| self.connect()).await;
        service.clone()
    }

    async fn connect(&self) -> (Mesh, MeshService<HyperConnector>) {
        let json = serde_json::json!({
            "xds_servers": [{
                "server_uri": format!("http://{}", self.plane.address),
                "channel_creds": [{"type": "insecure"}],
            }],
            "node": {"id": "routing"},
        });
        let bootstrap = Bootstrap::from_json(&json.to_string()).unwrap();
        let mesh = Mesh::builder()
            .bootstrap(bootstrap)
            .telemetry(Telemetry::disabled());
        let mesh = (self.configure)(mesh).build().await.unwrap();
        let service = mesh.service(TARGET).unwrap();
        (mesh, service)
    }

    /// What a scraper of the client reads.
    pub(crate) async fn metrics(&self) -> String {
        let (mesh, _) = self.client.get_or_init(|| self.connect()).await;
        mesh.telemetry().metrics().encode()
    }

    /// Sets the listener, whose filters end with `router`.
    pub(crate) fn listen(&self, router: &Router) {
        let named = listener_changed(|manager| {
            if let Some(last) = manager.http_filters.last_mut() {
                last.config_type = Some(http_filter::ConfigType::TypedConfig(any(router)));
            }
        });
        self.plane.set([named]);
    }

    /// Sets the route configuration.
    pub(crate) fn route(&self, mut routes: RouteConfiguration) {
        routes.name = TARGET.into();
        self.plane.set([(RDS, TARGET, any(&routes))]);
    }

    /// Sets a cluster with its servers.
    pub(crate) fn serve(&self, name: &'static str, servers: &[&Echo]) {
        self.serve_with(name, servers, |_| {});
    }

    pub(crate) fn serve_with(
        &self,
        name: &'static str,
        servers: &[&Echo],
        change: impl FnOnce(&mut Cluster),
    ) {
        self.serve_as(name, servers, &[], change);
    }

    /// Sets a cluster with servers that have no names.
    pub(crate) fn serve_at(&self, name: &'static str, servers: &[SocketAddr]) {
        let endpoints = servers
            .iter()
            .map(|address| endpoint(&address.ip().to_string(), address.port()));
        self.serve_endpoints(name, endpoints.collect(), |_| {});
    }

    /// The same, while some of them drain.
    pub(crate) fn serve_as(
        &self,
        name: &'static str,
        servers: &[&Echo],
        draining: &[&str],
        change: impl FnOnce(&mut Cluster),
    ) {
        let named = |server: &&Echo| {
            let address = server.address;
            let mut endpoint = endpoint(&address.ip().to_string(), address.port());
            if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier {
                endpoint.hostname = format!("{}.example", server.name);
            }
            if draining.contains(&server.name) {
                endpoint.health_status = HealthStatus::Draining as i32;
            }
            endpoint
        };
        self.serve_endpoints(name, servers.iter().map(named).collect(), change);
    }

    pub(crate) fn serve_endpoints(
        &self,
        name: &'static str,
        lb_endpoints: Vec<LbEndpoint>,
        change: impl FnOnce(&mut Cluster),
    ) {
        self.serve_priorities(&priorities(name, vec![lb_endpoints]), name, change);
    }

    /// The same with endpoints of several priorities.
    pub(crate) fn serve_priorities(
        &self,
        assignment: &ClusterLoadAssignment,
        name: &'static str,
        change: impl FnOnce(&mut Cluster),
    ) {
        self.plane.set([
            (EDS, name, any(assignment)),
            (CDS, name, any(&self.wire.cluster(name, change))),
        ]);
    }

    /// The response to a request for `path`.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.wire.request(path)).await.unwrap()
    }

    /// The same with headers.
    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.try_with(path, headers).await.unwrap()
    }

    pub(crate) async fn try_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Reply, Error> {
        let mut request = self.wire.request(path);
        for (name, value) in headers {
            let name = http::HeaderName::try_from(*name).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        self.send(request).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Reply, Error> {
        let call = async {
            let response = self.service().await.oneshot(request).await?;
            Reply::read(response).await
        };
        tokio::time::timeout(MUST_HAPPEN, call)
            .await
            .expect("an answer")
    }

    /// Asks until the control plane's newest word is heard, which `is_so` tells.
    pub(crate) async fn until(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        is_so: impl Fn(&Result<Reply, Error>) -> bool,
    ) -> Result<Reply, Error> {
        let asked = async {
            loop {
                let reply = self.try_with(path, headers).await;
                if is_so(&reply) {
                    return reply;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(MUST_HAPPEN, asked)
            .await
            .expect("becomes so")
    }
}

/// A response that was read.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Reply {
    pub(crate) async fn read(
        response: Response<ResponseBody<HyperConnector>>,
    ) -> Result<Self, Error> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        })
    }

    /// What the server was asked.
    #[track_caller]
    pub(crate) fn seen(&self) -> Seen {
        let text = self.headers.get(SEEN).unwrap_or_else(|| panic!("{self:?}"));
        serde_json::from_slice(text.as_bytes()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    }

    /// Its gRPC status.
    pub(crate) fn grpc(&self) -> Option<&str> {
        let status = self.headers.get("grpc-status");
        let status = status.or_else(|| self.trailers.get("grpc-status"));
        status.map(|status| status.to_str().unwrap())
    }
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get(name).into_iter().flatten();
        values.map(String::as_str).collect()
    }
}

/// The endpoints of a cluster, by priority.
pub(crate) fn priorities(name: &str, priorities: Vec<Vec<LbEndpoint>>) -> ClusterLoadAssignment {
    let localities = (0..).zip(priorities);
    let localities = localities.map(|(priority, lb_endpoints)| LocalityLbEndpoints {
        locality: Some(Locality {
            zone: format!("zone {priority}"),
            ..Locality::default()
        }),
        lb_endpoints,
        priority,
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    });
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: localities.collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// All domains.
pub(crate) fn host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes,
        ..VirtualHost::default()
    }
}

/// A route from a path prefix.
pub(crate) fn prefix(prefix: &str, action: Action) -> Route {
    Route {
        name: format!("from {prefix}"),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.into())),
            ..RouteMatch::default()
        }),
        action: Some(action),
        ..Route::default()
    }
}

/// To a cluster, changed.
pub(crate) fn forward(cluster: &str, change: impl FnOnce(&mut RouteAction)) -> Action {
    let mut action = to(cluster);
    change(&mut action);
    Action::Route(action)
}

pub(crate) fn add_header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValueProto {
            key: name.into(),
            value: value.into(),
            ..HeaderValueProto::default()
        }),
        ..HeaderValueOption::default()
    }
}
