//! Discovery over real sockets: what raw clients of both variants and every class get from a
//! control plane that reads real files.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use control_plane::{ControlPlane, Running, ca::create_token, cache::ResourceType};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{Node, node},
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{Any, Struct, Value, value::Kind},
        rpc::Status as RpcStatus,
    },
};
use prost::{Message, Name};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, transport::Channel};

/// A real bound only in a failing run.
const MUST_HAPPEN: Duration = Duration::from_secs(20);
const CLUSTER: &str = "outbound|8080||greeter.default.svc.cluster.local";
const ROUTES: &str = CLUSTER;

struct World {
    dir: TempDir,
    running: Running,
}

impl World {
    async fn start() -> Self {
        Self::start_with_cert_ttl(Duration::from_secs(3600)).await
    }

    async fn start_with_cert_ttl(cert_ttl: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        write(dir.path(), &greeter(5000));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let running = ControlPlane::builder(dir.path().join("config"), dir.path().join("data"))
            .xds_listen(any)
            .http_listen(any)
            .cert_ttl(cert_ttl)
            .start()
            .await
            .unwrap();
        Self { dir, running }
    }

    fn write(&self, text: &str) {
        write(self.dir.path(), text);
    }

    async fn ads(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let uri = format!("http://{}", self.running.xds_addr());
        AggregatedDiscoveryServiceClient::connect(uri)
            .await
            .unwrap()
    }

    async fn sotw(&self, user_agent: &str) -> Sotw {
        self.sotw_as(user_agent, None).await
    }

    async fn sotw_as(&self, user_agent: &str, token: Option<&str>) -> Sotw {
        let (requests, rx) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(rx));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let responses = self
            .ads()
            .await
            .stream_aggregated_resources(request)
            .await
            .unwrap()
            .into_inner();
        Sotw {
            requests,
            responses,
            node: Some(node(user_agent)),
        }
    }

    async fn delta(&self, user_agent: &str) -> Delta {
        let (requests, rx) = mpsc::channel(16);
        let responses = self
            .ads()
            .await
            .delta_aggregated_resources(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        Delta {
            requests,
            responses,
            node: Some(node(user_agent)),
        }
    }

    /// A plain HTTP GET; status line, headers and body.
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// Writes the configuration the way editors do: a new file that takes the name.
fn write(dir: &Path, text: &str) {
    fs::write(dir.join("new"), text).unwrap();
    fs::rename(dir.join("new"), dir.join("config").join("mesh.yaml")).unwrap();
}

fn service(name: &str, port: u16) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 8080, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}, serviceAccount: {name}}}]
"
    )
}

fn greeter(port: u16) -> String {
    service("greeter", port)
}

fn node(user_agent: &str) -> Node {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("NAMESPACE", text("default")),
        ("OUTBOUND_PORT", text("15123")),
    ];
    Node {
        id: "test~ns/default/sa/frontend".into(),
        user_agent_name: user_agent.into(),
        user_agent_version_type: Some(node::UserAgentVersionType::UserAgentVersion("1".into())),
        metadata: Some(Struct {
            fields: fields.map(|(key, value)| (key.to_owned(), value)).into(),
        }),
        ..Node::default()
    }
}

struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl Sotw {
    async fn ask(&mut self, kind: ResourceType, names: &[&str], nonce: &str) {
        self.send(DiscoveryRequest {
            type_url: kind.url(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.into(),
            ..DiscoveryRequest::default()
        })
        .await;
    }

    async fn send(&mut self, mut request: DiscoveryRequest) {
        request.node = self.node.take();
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = timeout(MUST_HAPPEN, self.responses.message());
        next.await.expect("an answer").unwrap().unwrap()
    }

    /// Asks for the first time, takes the answer, and accepts it.
    async fn fetch(&mut self, kind: ResourceType, names: &[&str]) -> DiscoveryResponse {
        self.ask(kind, names, "").await;
        let response = self.next().await;
        assert_eq!(response.type_url, kind.url());
        self.ask(kind, names, &response.nonce).await;
        response
    }
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Delta {
    async fn ask(&mut self, kind: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url(),
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = timeout(MUST_HAPPEN, self.responses.message());
        next.await.expect("an answer").unwrap().unwrap()
    }

    /// The next response, accepted.
    async fn take(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await;
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
        response
    }
}

fn decode<M: Message + Name + Default>(any: &Any) -> M {
    assert_eq!(any.type_url, M::type_url());
    M::decode(&any.value[..]).unwrap()
}

/// Ports of the endpoints in a load assignment.
fn ports(any: &Any) -> Vec<u32> {
    let assignment: ClusterLoadAssignment = decode(any);
    let text = format!("{assignment:?}");
    let numbers = text.split("PortValue(").skip(1);
    numbers
        .map(|rest| rest.split(')').next().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn a_grpc_client_gets_from_the_dialled_name_to_the_endpoints_and_their_change() {
    let world = World::start().await;
    let mut stream = world.sotw("gRPC C-core").await;
    let listeners = stream
        .fetch(ResourceType::Listener, &["greeter.default:8080"])
        .await;
    let listener: Listener = decode(&listeners.resources[0]);
    assert_eq!(listener.name, "greeter.default:8080");
    assert!(format!("{listener:?}").contains("HttpConnectionManager"));
    let routes = stream.fetch(ResourceType::Route, &[ROUTES]).await;
    let routes: RouteConfiguration = decode(&routes.resources[0]);
    assert!(format!("{routes:?}").contains(CLUSTER), "{routes:?}");
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(decode::<Cluster>(&clusters.resources[0]).name, CLUSTER);
    let endpoints = stream.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(ports(&endpoints.resources[0]), [5000]);

    world.write(&greeter(5001));
    // Nothing but the endpoints changed.
    let endpoints = stream.next().await;
    assert_eq!(endpoints.type_url, ResourceType::Endpoints.url());
    assert_eq!(ports(&endpoints.resources[0]), [5001]);
}

#[tokio::test]
async fn a_refused_resource_is_shown_and_not_sent_again_until_it_changes() {
    let world = World::start().await;
    let mut stream = world.sotw("mesh-rs").await;
    let kind = ResourceType::Endpoints;
    stream.ask(kind, &[CLUSTER], "").await;
    let first = stream.next().await;
    stream
        .send(DiscoveryRequest {
            type_url: kind.url(),
            resource_names: vec![CLUSTER.to_owned()],
            response_nonce: first.nonce.clone(),
            error_detail: Some(RpcStatus {
                code: 3,
                message: "the weight is 0".into(),
                details: vec![],
            }),
            ..DiscoveryRequest::default()
        })
        .await;
    // What comes next is for the next question: the refused one is not sent again.
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(clusters.resources.len(), 1);
    let shown = world.get("/v1/clients").await;
    assert!(shown.contains("the weight is 0"), "{shown}");
    assert!(shown.contains("test~ns/default/sa/frontend"), "{shown}");
    assert_eq!(world.running.metrics().nacks_total(), 1);

    world.write(&greeter(5001));
    let second = stream.next().await;
    assert_eq!(ports(&second.resources[0]), [5001]);
    assert_ne!(first.version_info, second.version_info);
}

#[tokio::test]
async fn names_that_do_not_exist_are_answered_and_sent_when_they_appear() {
    let world = World::start().await;
    let late = "outbound|8080||late.default.svc.cluster.local";
    let mut stream = world.sotw("gRPC Go").await;
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER, late]).await;
    assert_eq!(clusters.resources.len(), 1, "absent is deleted");
    assert_eq!(clusters.resource_errors.len(), 1);
    let endpoints = stream.fetch(ResourceType::Endpoints, &[late]).await;
    assert_eq!(
        ports(&endpoints.resources[0]),
        [0; 0],
        "explicitly none: calls fail at once"
    );
    let mut delta = world.delta("mesh-rs").await;
    delta.ask(ResourceType::Cluster, &[late], &[]).await;
    assert_eq!(delta.take().await.removed_resources, [late]);

    world.write(&(greeter(5000) + &service("late", 6000)));
    let clusters = stream.next().await;
    assert_eq!(clusters.type_url, ResourceType::Cluster.url());
    assert_eq!(clusters.resources.len(), 2);
    let endpoints = stream.next().await;
    assert_eq!(ports(&endpoints.resources[0]), [6000]);
    assert_eq!(delta.take().await.resources[0].name, late);
}

#[tokio::test]
async fn envoy_gets_everything_by_wildcard_in_both_variants() {
    let world = World::start().await;
    let other = "outbound|8080||other.default.svc.cluster.local";
    let mut sotw = world.sotw("envoy").await;
    let clusters = sotw.fetch(ResourceType::Cluster, &[]).await;
    assert_eq!(decode::<Cluster>(&clusters.resources[0]).name, CLUSTER);
    let listeners = sotw.fetch(ResourceType::Listener, &[]).await;
    let listener: Listener = decode(&listeners.resources[0]);
    assert!(format!("{:?}", listener.address).contains("15123"));
    let routes = sotw.fetch(ResourceType::Route, &["outbound"]).await;
    assert_eq!(routes.resources.len(), 1);

    let mut delta = world.delta("envoy").await;
    for (kind, names) in [
        (ResourceType::Cluster, &[][..]),
        (ResourceType::Endpoints, &[CLUSTER]),
        (ResourceType::Route, &["outbound"]),
    ] {
        delta.ask(kind, names, &[]).await;
        assert_eq!(delta.take().await.resources.len(), 1, "{kind:?}");
    }
    world.write(&(greeter(5000) + &service("other", 6000)));
    let added = delta.take().await;
    assert_eq!(added.type_url, ResourceType::Cluster.url());
    let names: Vec<_> = added.resources.iter().map(|added| &added.name).collect();
    assert_eq!(names, [other], "only what is new");
    assert_eq!(delta.take().await.type_url, ResourceType::Route.url());
}

#[tokio::test]
async fn what_is_gone_is_taken_away_after_what_no_longer_refers_to_it() {
    let world = World::start().await;
    world.write(&(greeter(5000) + &service("other", 6000)));
    let other = "outbound|8080||other.default.svc.cluster.local";
    let mut delta = world.delta("envoy").await;
    delta.ask(ResourceType::Cluster, &["*", other], &[]).await;
    // The file may not have been read yet when the stream began.
    while !delta
        .take()
        .await
        .resources
        .iter()
        .any(|got| got.name == other)
    {}
    delta.ask(ResourceType::Endpoints, &[other], &[]).await;
    assert_eq!(delta.take().await.resources.len(), 1);
    delta.ask(ResourceType::Route, &["outbound"], &[]).await;
    assert_eq!(delta.take().await.resources.len(), 1);

    world.write(&greeter(5000));
    let routes = delta.take().await;
    assert_eq!(routes.type_url, ResourceType::Route.url());
    assert_eq!(routes.removed_resources, [""; 0]);
    let endpoints = delta.take().await;
    assert_eq!(endpoints.type_url, ResourceType::Endpoints.url());
    let clusters = delta.take().await;
    assert_eq!(clusters.removed_resources, [other]);
}

#[tokio::test]
async fn a_key_goes_only_to_the_holder_of_a_token_and_is_renewed() {
    let world = World::start_with_cert_ttl(Duration::from_secs(5)).await;
    let names = ["ROOTCA", "default"];
    for token in [None, Some("not a token")] {
        let mut anybody = world.sotw_as("envoy", token).await;
        let secrets = anybody.fetch(ResourceType::Secret, &names).await;
        assert_eq!(secrets.resources.len(), 1);
        assert_eq!(decode::<Secret>(&secrets.resources[0]).name, "ROOTCA");
        assert!(!String::from_utf8_lossy(&secrets.resources[0].value).contains("PRIVATE"));
    }

    let data = world.dir.path().join("data");
    let token = create_token(&data, "default", "frontend", Duration::from_secs(60)).unwrap();
    let mut frontend = world.sotw_as("envoy", Some(&token)).await;
    let secrets = frontend.fetch(ResourceType::Secret, &names).await;
    assert_eq!(secrets.resources.len(), 2);
    let leaf = leaf(&secrets);
    assert_eq!(leaf.0, ["spiffe://cluster.local/ns/default/sa/frontend"]);
    let renewed = frontend.next().await;
    assert_ne!(secrets.version_info, renewed.version_info);
    assert_eq!(renewed.resources.len(), 1, "the root did not change");
    assert_ne!(leaf.1, self::leaf(&renewed).1);
}

/// URI names and serial number of the certificate among the secrets.
fn leaf(response: &DiscoveryResponse) -> (Vec<String>, String) {
    use x509_parser::{extensions::GeneralName, pem::Pem};
    let secrets = response.resources.iter().map(decode::<Secret>);
    let text = secrets
        .map(|secret| format!("{secret:?}").replace("\\n", "\n"))
        .find(|text| text.contains("PRIVATE KEY"))
        .expect("a key");
    let start = text.find("-----BEGIN CERTIFICATE").unwrap();
    let (pem, _) = Pem::read(std::io::Cursor::new(&text.as_bytes()[start..])).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uris = names.value.general_names.iter().map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other:?}"),
    });
    (uris.collect(), certificate.raw_serial_as_string())
}

#[tokio::test]
async fn a_restart_gives_the_same_versions() {
    let world = World::start().await;
    let mut versions = Vec::new();
    let mut again = Some(world);
    for _ in 0..2 {
        let World { dir, running } = again.take().unwrap();
        let world = World { dir, running };
        let mut stream = world.sotw("envoy").await;
        let clusters = stream.fetch(ResourceType::Cluster, &[]).await;
        let secrets = stream.fetch(ResourceType::Secret, &["ROOTCA"]).await;
        versions.push((clusters.version_info, secrets.version_info));
        let World { dir, running } = world;
        running.shutdown().await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let running = ControlPlane::builder(dir.path().join("config"), dir.path().join("data"))
            .xds_listen(any)
            .http_listen(any)
            .start()
            .await
            .unwrap();
        again = Some(World { dir, running });
    }
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test]
async fn a_shutdown_ends_the_streams_in_good_order() {
    let world = World::start().await;
    let ready = world.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let mut stream = world.sotw("mesh-rs").await;
    stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    let World { dir, running } = world;
    let stopping = tokio::spawn(running.shutdown());
    let end = timeout(MUST_HAPPEN, stream.responses.message()).await;
    assert!(end.expect("the end").expect("not an error").is_none());
    drop(stream);
    timeout(MUST_HAPPEN, stopping)
        .await
        .expect("stopped")
        .unwrap();
    drop(dir);
}

#[tokio::test]
async fn a_server_listener_follows_the_policy_of_its_address() {
    let world = World::start().await;
    let name = "mesh/inbound/127.0.0.1:5000";
    let mut rust = world.sotw("mesh-rs").await;
    let listener = rust.fetch(ResourceType::Listener, &[name]).await;
    let listener: Listener = decode(&listener.resources[0]);
    assert_eq!(listener.name, name);
    assert_eq!(listener.filter_chains.len(), 2, "PERMISSIVE: both");
    let mut grpc = world.sotw("gRPC C-core").await;
    let listener = grpc.fetch(ResourceType::Listener, &[name]).await;
    let listener: Listener = decode(&listener.resources[0]);
    assert_eq!(
        listener.filter_chains.len(),
        1,
        "gRPC cannot tell them apart"
    );
    assert!(listener.filter_chains[0].filter_chain_match.is_none());

    let strict = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
";
    world.write(&(greeter(5000) + strict));
    for stream in [&mut rust, &mut grpc] {
        let listener = stream.next().await;
        assert_eq!(listener.type_url, ResourceType::Listener.url());
        let listener: Listener = decode(&listener.resources[0]);
        assert_eq!(listener.filter_chains.len(), 1);
        assert!(listener.filter_chains[0].transport_socket.is_some());
    }
}
