//! An xDS server of ten thousand clusters, in a process of its own, that can change a thousand of
//! them a second.
//!
//! It serves what our control plane compiles and encodes, in both variants, and answers nothing else
//! than first subscriptions: what it costs itself is not measured here. A changed cluster is sent
//! alone, as EDS allows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use control_plane::{
    cache::{Client, ResourceType, World},
    compile::{CompileOptions, compile},
    encode::{self, ClientClass},
    source::load_folder,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource,
            aggregated_discovery_service_server::{
                AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
            },
        },
    },
    google::protobuf::Any,
};
use futures_util::Stream;
use mesh_core::config::{ClusterEndpoints, LocalityId, TrustBundle};
use prost::Message;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use super::{CLUSTERS, HUB};
use crate::library::{ours::addresses, stub::prefix};

/// Changes are sent this often.
const TICK: Duration = Duration::from_millis(10);
/// Changes of one tick: a thousand a second.
pub(super) const CHANGES: usize = 10;

/// What the parent wants, by lines of input.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Wanted {
    /// `start` and `stop`: a thousand changes a second.
    is_churning: bool,
    /// `to ADDRESS` and `back`: where cluster 0 is instead of the real endpoints.
    moved: Option<SocketAddr>,
}

impl Wanted {
    fn apply(&mut self, line: &str) -> anyhow::Result<()> {
        match line {
            "start" => self.is_churning = true,
            "stop" => self.is_churning = false,
            "back" => self.moved = None,
            other => {
                let address = other.strip_prefix("to ");
                self.moved = Some(address.context("start, stop, to or back")?.parse()?);
            }
        }
        Ok(())
    }
}

/// Serves until the parent is gone. Cluster 0 is at `real`.
///
/// # Errors
/// When the configuration cannot be made.
pub async fn serve(real: &[SocketAddr]) -> anyhow::Result<()> {
    let (commands, wanted) = watch::channel(Wanted::default());
    let big = Big {
        world: Arc::new(world(CLUSTERS, real)?),
        clusters: CLUSTERS,
        wanted,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", serde_json::to_string(&listener.local_addr()?)?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = AggregatedDiscoveryServiceServer::new(big);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        let mut wanted = *commands.borrow();
        wanted.apply(&line)?;
        commands.send_replace(wanted);
    }
    Ok(())
}

/// A service for each cluster, and one with a route to each of them.
fn world(clusters: usize, real: &[SocketAddr]) -> anyhow::Result<World> {
    let folder = tempfile::tempdir()?;
    let mut services = String::from(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: default}\nspec: {mtls: {mode: DISABLE}}\n",
    );
    let mut routes = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {HUB}, namespace: default}}\n\
         spec:\n  hosts: [{HUB}.default.svc.cluster.local]\n  http:\n"
    );
    services += &service(HUB, real);
    for cluster in 0..clusters {
        let name = format!("s{cluster}");
        let endpoints = if cluster == 0 {
            real.to_vec()
        } else {
            addresses(cluster)
        };
        services += &service(&name, &endpoints);
        // The real one is last, where a search from the front finds it late.
        let path = if cluster == 0 {
            "/".to_owned()
        } else {
            prefix(cluster)
        };
        let route = format!(
            "  - match: [{{uri: {{prefix: {path}}}}}]\n    \
             route: [{{destination: {{host: {name}.default.svc.cluster.local}}}}]\n"
        );
        if cluster > 0 {
            routes += &route;
        }
    }
    routes += "  - route: [{destination: {host: s0.default.svc.cluster.local}}]\n";
    fs::write(folder.path().join("services.yaml"), services)?;
    fs::write(folder.path().join("routes.yaml"), routes)?;
    let loaded = load_folder(folder.path())?;
    let (compiled, found) = compile(&loaded.objects, &CompileOptions::default());
    if let Some(finding) = loaded.diagnostics.iter().chain(&found).next() {
        anyhow::bail!("the big configuration is not clean: {finding}");
    }
    let trust = TrustBundle {
        name: "ROOTCA".into(),
        roots: Vec::new(),
    };
    Ok(World::new(compiled, trust))
}

fn service(name: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: default}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  \
         resolution: STATIC\n  ports: [{{number: 8080, name: main, protocol: GRPC}}]\n  \
         endpoints:\n"
    );
    for address in endpoints {
        text += &format!(
            "  - {{address: {}, ports: {{main: {}}}}}\n",
            address.ip(),
            address.port()
        );
    }
    text
}

#[derive(Clone)]
struct Big {
    world: Arc<World>,
    clusters: usize,
    wanted: watch::Receiver<Wanted>,
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Big {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(follow(self.clone(), requests.into_inner())))
    }

    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(follow(self.clone(), requests.into_inner())))
    }
}

/// What the variants of the protocol say differently.
pub(super) trait Variant: Message + Default + 'static {
    type Response: Message + 'static;

    fn node(&mut self) -> Option<Node>;
    fn nack(&self) -> Option<&str>;
    fn type_url(&self) -> &str;
    /// All names, now that `held` are subscribed.
    fn names(self, held: &BTreeSet<String>) -> BTreeSet<String>;
    fn response(kind: ResourceType, version: u64, resources: Vec<Named>) -> Self::Response;
}

pub(super) type Named = (String, Any);

impl Variant for DiscoveryRequest {
    type Response = DiscoveryResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn nack(&self) -> Option<&str> {
        Some(&self.error_detail.as_ref()?.message)
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn names(self, _: &BTreeSet<String>) -> BTreeSet<String> {
        self.resource_names.into_iter().collect()
    }

    fn response(kind: ResourceType, version: u64, resources: Vec<Named>) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_string(),
            nonce: version.to_string(),
            type_url: kind.url(),
            resources: resources.into_iter().map(|(_, any)| any).collect(),
            ..DiscoveryResponse::default()
        }
    }
}

impl Variant for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn nack(&self) -> Option<&str> {
        Some(&self.error_detail.as_ref()?.message)
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn names(self, held: &BTreeSet<String>) -> BTreeSet<String> {
        let mut names = held.clone();
        names.extend(self.resource_names_subscribe);
        names.retain(|name| !self.resource_names_unsubscribe.contains(name));
        names
    }

    fn response(kind: ResourceType, version: u64, resources: Vec<Named>) -> DeltaDiscoveryResponse {
        let resource = |(name, any)| Resource {
            name,
            version: version.to_string(),
            resource: Some(any),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: version.to_string(),
            nonce: version.to_string(),
            type_url: kind.url(),
            resources: resources.into_iter().map(resource).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// One stream.
pub(super) struct Subscriber {
    big: Big,
    client: Option<Client>,
    named: BTreeMap<ResourceType, BTreeSet<String>>,
    changed: usize,
    /// Where cluster 0 was sent to.
    moved: Option<SocketAddr>,
}

fn follow<V: Variant>(big: Big, mut requests: Streaming<V>) -> Responses<V::Response> {
    let (sender, responses) = mpsc::channel(16);
    let mut subscriber = Subscriber::new(big);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut version = 0;
        loop {
            let news = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => subscriber.subscribe(request),
                    Ok(None) | Err(_) => return,
                },
                _ = subscriber.big.wanted.changed() => subscriber.move_first(),
                _ = tick.tick() => subscriber.change(),
            };
            let Some((kind, resources)) = news.filter(|(_, resources)| !resources.is_empty())
            else {
                continue;
            };
            version += 1;
            let response = V::response(kind, version, resources);
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(responses))
}

impl Subscriber {
    fn new(big: Big) -> Self {
        Self {
            big,
            client: None,
            named: BTreeMap::new(),
            changed: 0,
            moved: None,
        }
    }

    /// One of so many clusters, whose endpoints change whenever it is [asked](Self::change) for that.
    pub(super) fn alone(clusters: usize) -> anyhow::Result<Self> {
        let wanted = Wanted {
            is_churning: true,
            moved: None,
        };
        Ok(Self::new(Big {
            world: Arc::new(world(clusters, &addresses(0))?),
            clusters,
            wanted: watch::channel(wanted).1,
        }))
    }

    pub(super) fn subscribe<V: Variant>(
        &mut self,
        mut request: V,
    ) -> Option<(ResourceType, Vec<Named>)> {
        if let Some(error) = request.nack() {
            eprintln!("NACK: {error}");
        }
        let node = request.node();
        let client = self
            .client
            .get_or_insert_with(|| client(node.unwrap_or_default()));
        let kind = ResourceType::from_url(request.type_url())?;
        let held = self.named.get(&kind).cloned();
        let mut names = request.names(held.as_ref().unwrap_or(&BTreeSet::new()));
        names.remove("*");
        if names.is_empty() && kind.is_full_set() {
            names = self.big.world.wildcard(client, kind).into_iter().collect();
        }
        if held.as_ref() == Some(&names) {
            return None;
        }
        let is_new = |name: &&String| {
            kind.is_full_set() || held.as_ref().is_none_or(|held| !held.contains(*name))
        };
        let resources = names.iter().filter(is_new).filter_map(|name| {
            let resource = self.big.world.resource(client, kind, name)?;
            Some((name.clone(), Any::decode(&*resource.any).ok()?))
        });
        let resources = resources.collect();
        self.named.insert(kind, names);
        Some((kind, resources))
    }

    /// Cluster 0 where it is wanted, if that is new.
    fn move_first(&mut self) -> Option<(ResourceType, Vec<Named>)> {
        let moved = self.big.wanted.borrow_and_update().moved;
        if moved == self.moved {
            return None;
        }
        self.moved = moved;
        let name = cluster_name(0);
        let held = self.big.world.compiled().endpoints.get(name.as_str())?;
        let mut endpoints = ClusterEndpoints::clone(held);
        if let Some(address) = moved {
            let locality = endpoints.localities.first_mut()?;
            locality.endpoints.truncate(1);
            locality.endpoints.first_mut()?.address = address;
        }
        Some((ResourceType::Endpoints, vec![(name, encoded(&endpoints))]))
    }

    /// The next clusters with one endpoint that moved.
    pub(super) fn change(&mut self) -> Option<(ResourceType, Vec<Named>)> {
        if !self.big.wanted.borrow().is_churning {
            return None;
        }
        let named = self.named.get(&ResourceType::Endpoints)?;
        let mut resources = Vec::new();
        for _ in 0..CHANGES {
            self.changed += 1;
            let cluster = 1 + self.changed % (self.big.clusters - 1);
            let name = cluster_name(cluster);
            if !named.contains(&name) {
                continue;
            }
            let held = self.big.world.compiled().endpoints.get(name.as_str())?;
            let mut moved = ClusterEndpoints::clone(held);
            let last = moved.localities.last_mut()?.endpoints.last_mut()?;
            last.address
                .set_port(1000 + (self.changed / self.big.clusters % 2000) as u16);
            resources.push((name, encoded(&moved)));
        }
        Some((ResourceType::Endpoints, resources))
    }
}

fn cluster_name(cluster: usize) -> String {
    format!("outbound|8080||s{cluster}.default.svc.cluster.local")
}

fn encoded(endpoints: &ClusterEndpoints) -> Any {
    Any {
        type_url: ResourceType::Endpoints.url(),
        value: encode::endpoints(endpoints).encode_to_vec(),
    }
}

fn client(node: Node) -> Client {
    let port = node.metadata.as_ref().and_then(|metadata| {
        use envoy_types::pb::google::protobuf::value::Kind;
        match metadata.fields.get("OUTBOUND_PORT")?.kind.as_ref()? {
            Kind::StringValue(text) => text.parse().ok(),
            _ => None,
        }
    });
    Client {
        class: ClientClass::of(&node.user_agent_name, &node.client_features),
        release: None,
        node_id: node.id,
        namespace: "default".to_owned(),
        labels: BTreeMap::new(),
        locality: LocalityId::default(),
        outbound_port: port.unwrap_or_default(),
    }
}
