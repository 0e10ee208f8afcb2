//! Certificates and roots over SDS by names of their own, on both sides of a connection.

use std::{
    collections::BTreeSet, future::Future, net::SocketAddr, panic::Location, sync::Arc,
    time::Duration,
};

use axum::{Extension, Router, routing::get};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::TransportSocketMatch},
        core::v3::{
            Address, DataSource, Metadata, SocketAddress as SocketAddressProto, TransportSocket,
            address, data_source::Specifier, socket_address::PortSpecifier,
            transport_socket::ConfigType,
        },
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints},
        listener::v3::{Filter, FilterChain, Listener, filter},
        route::v3::{
            NonForwardingAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
            route_match::PathSpecifier,
        },
    },
    extensions::{
        filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier,
        transport_sockets::raw_buffer::v3::RawBuffer,
        transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            Secret, SubjectAltNameMatcher, TlsCertificate, UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            secret::Type,
            subject_alt_name_matcher::SanType as SanTypeProto,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use envoy_types::pb::google::protobuf::{
    BoolValue, Struct, UInt32Value, Value as ValueProto, value::Kind as ValueKind,
};
use mesh_tower::{Body, Mesh, MeshService, connect::HyperConnector, identity::PeerIdentity};
use mesh_xds_client::Bootstrap;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

use super::{
    plane::Plane,
    resources::{
        CDS, EDS, LDS, Named, SDS, TARGET, ads, any, eds_cluster, endpoint, endpoints, listener,
        manager, route_to,
    },
    scene::{Reply, Wire},
    world::MUST_HAPPEN,
};

const SERVER_CERTIFICATE: &str = "kubernetes://reviews-tls";
const SERVER_ROOTS: &str = "clients-ca";
const CLIENT_CERTIFICATE: &str = "web-tls";
const CLIENT_ROOTS: &str = "spiffe://partner.example";
const SERVER_ID: &str = "spiffe://partner.example/sa/reviews";
const CLIENT_ID: &str = "spiffe://partner.example/sa/web";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A secret with a certificate of `id`.
    fn certificate(&self, name: &'static str, id: &str) -> Named {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let chain = params.signed_by(&key, &self.0).unwrap().pem();
        secret(
            name,
            Type::TlsCertificate(TlsCertificate {
                certificate_chain: text(chain),
                private_key: text(key.serialize_pem()),
                ..TlsCertificate::default()
            }),
        )
    }

    /// A secret with its root.
    fn roots(&self, name: &'static str) -> Named {
        secret(
            name,
            Type::ValidationContext(CertificateValidationContext {
                trusted_ca: text(self.0.pem()),
                ..CertificateValidationContext::default()
            }),
        )
    }

    /// Everything that both sides name.
    fn secrets(&self, client: &str) -> [Named; 4] {
        [
            self.certificate(SERVER_CERTIFICATE, SERVER_ID),
            self.roots(SERVER_ROOTS),
            self.certificate(CLIENT_CERTIFICATE, client),
            self.roots(CLIENT_ROOTS),
        ]
    }
}

fn text(pem: String) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineString(pem)),
        ..DataSource::default()
    })
}

fn secret(name: &'static str, value: Type) -> Named {
    let secret = Secret {
        name: name.into(),
        r#type: Some(value),
    };
    (SDS, name, any(&secret))
}

fn sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.into(),
        sds_config: ads(),
    }
}

fn socket<T: prost::Message + prost::Name>(context: &T) -> Option<TransportSocket> {
    Some(TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(any(context))),
    })
}

/// A cluster whose server must be [`SERVER_ID`].
fn cluster() -> Cluster {
    let expected = SubjectAltNameMatcher {
        san_type: SanTypeProto::Uri as i32,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(SERVER_ID.into())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![sds(CLIENT_CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(CertificateValidationContext {
                        match_typed_subject_alt_names: vec![expected],
                        ..CertificateValidationContext::default()
                    }),
                    validation_context_sds_secret_config: Some(sds(CLIENT_ROOTS)),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    Cluster {
        transport_socket: socket(&context),
        ..eds_cluster(TARGET)
    }
}

/// The listener of the server at `address`, which takes nobody without a certificate.
fn inbound(address: SocketAddr) -> Named {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(Action::NonForwardingAction(NonForwardingAction {})),
        ..Route::default()
    };
    let routes = RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let manager = manager(Vec::new(), RouteSpecifier::RouteConfig(routes));
    let context = DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![sds(SERVER_CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                sds(SERVER_ROOTS),
            )),
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    let name: &'static str = format!("in/{address}").leak();
    let at = SocketAddressProto {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddressProto::default()
    };
    let listener = Listener {
        name: name.into(),
        address: Some(Address {
            address: Some(address::Address::SocketAddress(at)),
        }),
        filter_chains: vec![FilterChain {
            transport_socket: socket(&context),
            filters: vec![Filter {
                name: "http".into(),
                config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    };
    (LDS, name, any(&listener))
}

/// An endpoint with Istio's label, or without.
fn labelled(address: SocketAddr, is_mtls: bool) -> LbEndpoint {
    let label = ValueProto {
        kind: Some(ValueKind::StringValue("istio".into())),
    };
    let labels = Struct {
        fields: [("tlsMode".to_owned(), label)].into(),
    };
    let metadata = Metadata {
        filter_metadata: [("envoy.transport_socket_match".to_owned(), labels)].into(),
        ..Metadata::default()
    };
    LbEndpoint {
        metadata: is_mtls.then_some(metadata),
        ..endpoint(&address.ip().to_string(), address.port())
    }
}

/// The cluster, whose endpoints with the label take mTLS, and the others plaintext.
fn mixed_cluster() -> Cluster {
    let tls = cluster().transport_socket;
    let labels = labelled(([127, 0, 0, 1], 1).into(), true).metadata.unwrap();
    let socket = |name: &str, labels, socket| TransportSocketMatch {
        name: name.into(),
        r#match: Some(labels),
        transport_socket: socket,
    };
    let raw = TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".into(),
        config_type: Some(ConfigType::TypedConfig(any(&RawBuffer::default()))),
    };
    let of_label = labels.filter_metadata["envoy.transport_socket_match"].clone();
    Cluster {
        transport_socket_matches: vec![
            socket("tlsMode-istio", of_label, tls),
            socket("tlsMode-disabled", Struct::default(), Some(raw)),
        ],
        ..eds_cluster(TARGET)
    }
}

async fn member(plane: &Plane) -> Mesh {
    let json = serde_json::json!({
        "xds_servers": [{
            "server_uri": format!("http://{}", plane.address),
            "channel_creds": [{"type": "insecure"}],
        }],
        "server_listener_resource_name_template": "in/%s",
        "node": {"id": "secrets"},
    });
    let bootstrap = Bootstrap::from_json(&json.to_string()).unwrap();
    let telemetry = mesh_tower::telemetry::Telemetry::disabled();
    let mesh = Mesh::builder().bootstrap(bootstrap).telemetry(telemetry);
    mesh.build().await.unwrap()
}

/// A control plane, and a server that says who called.
struct World {
    plane: Plane,
    release: Arc<Notify>,
    /// Of the server.
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl World {
    async fn start() -> Self {
        let plane = Plane::start().await;
        let release = Arc::new(Notify::new());
        let held = Arc::clone(&release);
        let who = async |Extension(peer): Extension<PeerIdentity>| peer.names().join(",");
        let hold = async move |Extension(peer): Extension<PeerIdentity>| {
            held.notified().await;
            peer.names().join(",")
        };
        let router = Router::new()
            .route("/who", get(who))
            .route("/hold", get(hold));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let server = member(&plane).await;
        tasks.spawn(async move { server.serve(tcp, router).await.unwrap() });
        let world = Self {
            plane,
            release,
            address,
            tasks,
        };
        world.plane.set([
            inbound(address),
            listener(),
            route_to(TARGET),
            (CDS, TARGET, any(&cluster())),
            endpoints(TARGET, &[address]),
        ]);
        world
    }

    async fn client(&self) -> MeshService<HyperConnector> {
        member(&self.plane).await.service(TARGET).unwrap()
    }
}

async fn ask(client: &MeshService<HyperConnector>, path: &str) -> Result<String, String> {
    let request: http::Request<Body> = Wire::Http1.request(path);
    let call = async {
        let response = client.clone().oneshot(request).await;
        let response = response.map_err(|error| error.to_string())?;
        let reply = Reply::read(response)
            .await
            .map_err(|error| error.to_string())?;
        match reply.status.is_success() {
            true => Ok(String::from_utf8(reply.body.to_vec()).unwrap()),
            false => Err(reply.status.to_string()),
        }
    };
    timeout(MUST_HAPPEN, call).await.expect("an answer")
}

/// Asks with new clients until the answer is so, as the server hears of secrets by a stream of its own.
#[track_caller]
fn becomes<'w>(
    world: &'w World,
    is_so: impl Fn(&Result<String, String>) -> bool + 'w,
) -> impl Future<Output = ()> + 'w {
    let place = Location::caller();
    async move {
        let mut last = None;
        let asked = async {
            loop {
                let answer = ask(&world.client().await, "/who").await;
                if is_so(&answer) {
                    return;
                }
                last = Some(answer);
                sleep(Duration::from_millis(20)).await;
            }
        };
        let became = timeout(MUST_HAPPEN, asked).await;
        assert!(became.is_ok(), "{place}: still {last:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_speak_mtls_with_secrets_by_any_name_and_rotate_without_touching_connections() {
    let world = World::start().await;
    let client = world.client().await;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { ask(&client, "/who").await })
    };
    world.plane.set(Authority::new().secrets(CLIENT_ID));
    let first = waiting.await.unwrap();
    assert_eq!(
        first.as_deref(),
        Ok(CLIENT_ID),
        "it waits for what its TLS needs"
    );
    let all = [
        SERVER_CERTIFICATE,
        SERVER_ROOTS,
        CLIENT_CERTIFICATE,
        CLIENT_ROOTS,
    ];
    let all = all.map(str::to_owned).into();
    assert_eq!(world.plane.wanted(SDS), all);

    let held = {
        let client = client.clone();
        tokio::spawn(async move { ask(&client, "/hold").await })
    };
    let renewed = "spiffe://partner.example/sa/renewed";
    world.plane.set(Authority::new().secrets(renewed));
    becomes(&world, |answer| answer.as_deref() == Ok(renewed)).await;
    assert_eq!(
        ask(&client, "/who").await.as_deref(),
        Ok(CLIENT_ID),
        "the same connection"
    );
    world.release.notify_one();
    assert_eq!(held.await.unwrap().as_deref(), Ok(CLIENT_ID));
    assert_eq!(world.plane.nacks(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_wanted_for_as_long_as_something_names_them() {
    let world = World::start().await;
    world.plane.set(Authority::new().secrets(CLIENT_ID));
    let client = world.client().await;
    assert_eq!(ask(&client, "/who").await.as_deref(), Ok(CLIENT_ID));
    world.plane.set([(CDS, TARGET, any(&eds_cluster(TARGET)))]);
    let of_server = [SERVER_CERTIFICATE, SERVER_ROOTS].map(str::to_owned).into();
    let gone = async {
        while world.plane.wanted(SDS) != of_server {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(MUST_HAPPEN, gone).await.expect("given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_cannot_be_used_keeps_the_last_one_and_a_stranger_is_refused() {
    let world = World::start().await;
    let (ours, stranger) = (Authority::new(), Authority::new());
    world.plane.set(ours.secrets(CLIENT_ID));
    becomes(&world, |answer| answer.as_deref() == Ok(CLIENT_ID)).await;

    let (_, _, mut broken) = ours.certificate(SERVER_CERTIFICATE, SERVER_ID);
    let mut secret: Secret = prost::Message::decode(&*broken.value).unwrap();
    if let Some(Type::TlsCertificate(pair)) = &mut secret.r#type {
        pair.private_key = text(KeyPair::generate().unwrap().serialize_pem());
    }
    broken = any(&secret);
    world.plane.set([(SDS, SERVER_CERTIFICATE, broken)]);
    let refused = async {
        while world.plane.nacks().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(MUST_HAPPEN, refused).await.expect("a NACK");
    let nack = world.plane.nacks().concat();
    assert!(nack.contains(SERVER_CERTIFICATE), "{nack}");
    assert!(
        nack.contains("tls_certificate.private_key: does not fit"),
        "{nack}"
    );
    assert_eq!(
        ask(&world.client().await, "/who").await.as_deref(),
        Ok(CLIENT_ID)
    );

    world.plane.set([stranger.roots(CLIENT_ROOTS)]);
    becomes(&world, |answer| {
        answer
            .as_ref()
            .is_err_and(|error| error.contains("unknown_issuer"))
    })
    .await;
    world.plane.set([
        ours.roots(CLIENT_ROOTS),
        stranger.certificate(CLIENT_CERTIFICATE, CLIENT_ID),
    ]);
    becomes(&world, |answer| {
        answer
            .as_ref()
            .is_err_and(|error| error.contains("the peer refused us"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_endpoint_of_a_mixed_cluster_is_spoken_to_as_its_label_says() {
    let mut world = World::start().await;
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = tcp.local_addr().unwrap();
    let router = Router::new().route("/who", get(async || "plaintext"));
    world
        .tasks
        .spawn(async move { axum::serve(tcp, router).await.unwrap() });
    let assignment = ClusterLoadAssignment {
        cluster_name: TARGET.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![labelled(world.address, true), labelled(plain, false)],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    world.plane.set([
        (CDS, TARGET, any(&mixed_cluster())),
        (EDS, TARGET, any(&assignment)),
    ]);
    world.plane.set(Authority::new().secrets(CLIENT_ID));
    let client = world.client().await;
    let mut seen = BTreeSet::new();
    let both = async {
        while seen.len() < 2 {
            seen.insert(ask(&client, "/who").await.unwrap());
        }
    };
    timeout(MUST_HAPPEN, both).await.expect("both are called");
    assert_eq!(seen, [CLIENT_ID, "plaintext"].map(str::to_owned).into());

    // Without its label the server would have to be spoken to in plaintext, which it refuses: there is no
    // way from one to the other by failing.
    let unlabelled = ClusterLoadAssignment {
        cluster_name: TARGET.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![labelled(world.address, false)],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    world.plane.set([(EDS, TARGET, any(&unlabelled))]);
    becomes(&world, Result::is_err).await;
}
