//! A control plane over real files, and raw clients of both variants.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use control_plane::{ControlPlane, Running, cache::ResourceType};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                DataSource, Node, SocketAddress, address, data_source::Specifier, node,
                socket_address::PortSpecifier,
            },
            endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
        },
        extensions::transport_sockets::tls::v3::{Secret, secret},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
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
use tonic::{Request, Status, Streaming, transport::Channel};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

/// A real bound only in a failing run.
pub(crate) const MUST_HAPPEN: Duration = Duration::from_secs(20);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const CLUSTER: &str = "outbound|8080||greeter.default.svc.cluster.local";

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) running: Running,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with_cert_ttl(HOUR).await
    }

    pub(crate) async fn start_with_cert_ttl(cert_ttl: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        write(dir.path(), &greeter(5000));
        let running = launch(dir.path(), cert_ttl).await;
        Self { dir, running }
    }

    pub(crate) fn write(&self, text: &str) {
        write(self.dir.path(), text);
    }

    async fn ads(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let uri = format!("http://{}", self.running.xds_addr());
        AggregatedDiscoveryServiceClient::connect(uri)
            .await
            .unwrap()
            .max_encoding_message_size(usize::MAX)
            .max_decoding_message_size(usize::MAX)
    }

    pub(crate) async fn sotw(&self, user_agent: &str) -> Sotw {
        self.sotw_as(user_agent, None).await
    }

    pub(crate) async fn sotw_as(&self, user_agent: &str, token: Option<&str>) -> Sotw {
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

    /// Opens a stream that may be refused.
    pub(crate) async fn try_sotw(&self) -> Result<Streaming<DiscoveryResponse>, Status> {
        let (_requests, rx) = mpsc::channel(1);
        let request = Request::new(ReceiverStream::new(rx));
        let opened = self
            .ads()
            .await
            .stream_aggregated_resources(request)
            .await?;
        Ok(opened.into_inner())
    }

    pub(crate) async fn delta(&self, user_agent: &str) -> Delta {
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

    /// Waits until so many objects are kept for a restart.
    pub(crate) async fn kept(&self, count: usize) {
        let folder = self.dir.path().join("data/objects");
        let kept = async || {
            let found = fs::read_dir(&folder).unwrap().map(Result::unwrap);
            let is_kept =
                |entry: &fs::DirEntry| entry.path().extension() == Some("object".as_ref());
            found.filter(is_kept).count()
        };
        let wait = async {
            while kept().await != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(MUST_HAPPEN, wait).await.expect("kept");
    }

    /// A plain HTTP GET; status line, headers and body.
    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

pub(crate) async fn launch(dir: &Path, cert_ttl: Duration) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    ControlPlane::builder(dir.join("config"), dir.join("data"))
        .xds_listen(any)
        .http_listen(any)
        .cert_ttl(cert_ttl)
        .start()
        .await
        .unwrap()
}

/// Writes the configuration the way editors do: a new file that takes the name.
pub(crate) fn write(dir: &Path, text: &str) {
    fs::write(dir.join("new"), text).unwrap();
    fs::rename(dir.join("new"), dir.join("config").join("mesh.yaml")).unwrap();
}

pub(crate) fn service(name: &str, port: u16) -> String {
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

pub(crate) fn greeter(port: u16) -> String {
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

pub(crate) struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    pub(crate) responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl Sotw {
    pub(crate) async fn ask(&mut self, kind: ResourceType, names: &[&str], nonce: &str) {
        self.send(DiscoveryRequest {
            type_url: kind.url(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.into(),
            ..DiscoveryRequest::default()
        })
        .await;
    }

    pub(crate) async fn send(&mut self, mut request: DiscoveryRequest) {
        request.node = self.node.take();
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        let next = timeout(MUST_HAPPEN, self.responses.message());
        next.await.expect("an answer").unwrap().unwrap()
    }

    /// Asks for the first time, takes the answer, and accepts it.
    pub(crate) async fn fetch(&mut self, kind: ResourceType, names: &[&str]) -> DiscoveryResponse {
        self.ask(kind, names, "").await;
        let response = self.next().await;
        assert_eq!(response.type_url, kind.url());
        self.ask(kind, names, &response.nonce).await;
        response
    }
}

pub(crate) struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Delta {
    pub(crate) async fn ask(
        &mut self,
        kind: ResourceType,
        subscribe: &[&str],
        unsubscribe: &[&str],
    ) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url(),
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = timeout(MUST_HAPPEN, self.responses.message());
        next.await.expect("an answer").unwrap().unwrap()
    }

    /// The next response, accepted.
    pub(crate) async fn take(&mut self) -> DeltaDiscoveryResponse {
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

pub(crate) fn decode<M: Message + Name + Default>(any: &Any) -> M {
    assert_eq!(any.type_url, M::type_url());
    M::decode(&any.value[..]).unwrap()
}

/// Ports of the endpoints in a load assignment.
pub(crate) fn ports(any: &Any) -> Vec<u32> {
    let assignment: ClusterLoadAssignment = decode(any);
    let localities = assignment.endpoints.into_iter();
    let port = |endpoint: LbEndpoint| {
        let HostIdentifier::Endpoint(endpoint) = endpoint.host_identifier.unwrap() else {
            panic!("a name")
        };
        match endpoint.address.unwrap().address.unwrap() {
            address::Address::SocketAddress(SocketAddress {
                port_specifier: Some(PortSpecifier::PortValue(port)),
                ..
            }) => port,
            other => panic!("{other:?}"),
        }
    };
    localities
        .flat_map(|locality| locality.lb_endpoints)
        .map(port)
        .collect()
}

/// URI names and serial number of the certificate among the secrets, which has a key.
pub(crate) fn leaf(response: &DiscoveryResponse) -> (Vec<String>, String) {
    let mut secrets = response.resources.iter().map(decode::<Secret>);
    let certificate = secrets.find_map(|secret| match secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificate = certificate.expect("a certificate");
    let text = |source: Option<DataSource>| match source.unwrap().specifier {
        Some(Specifier::InlineString(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(text(certificate.private_key).contains("PRIVATE KEY"));
    let chain = text(certificate.certificate_chain);
    let (_, pem) = parse_x509_pem(chain.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uris = names.value.general_names.iter().map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other:?}"),
    });
    (uris.collect(), certificate.raw_serial_as_string())
}
