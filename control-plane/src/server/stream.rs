//! The task of one stream: requests in, the newest world out.
//!
//! Latest value only: while a slow client takes a response, any number of worlds may pass, and the
//! next response is made from the newest. Nothing is answered before the first world.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use envoy_types::pb::{
    envoy::config::{cluster::v3::Cluster, core::v3::Node},
    google::protobuf::{Any, Struct, value::Kind},
};
use mesh_core::config::Secret;
use prost::{Message, Name};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{Variant, View, service::Shared};
use crate::{
    ca::Identity,
    cache::{Client, ENVOY_OUTBOUND_PORT, OWN_CERTIFICATE, Resource, ResourceType, World},
    encode::ClientClass,
};

/// Namespace of a client that does not say where it is.
const DEFAULT_NAMESPACE: &str = "default";

/// What is gone is taken from a client so long after a change: until then it can get what replaces
/// it, or has dropped it by itself.
const REMOVAL_DELAY: Duration = Duration::from_secs(2);
/// After so long another attempt is made to issue a certificate.
const ISSUE_AGAIN: Duration = Duration::from_secs(10);

/// Longer than any stream lives.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A certificate that was made for a client; `None` until one could be.
struct Leaf {
    resource: Option<Arc<Resource>>,
    /// When it is replaced.
    renew_at: Instant,
}

pub(super) struct Stream<V: Variant> {
    variant: V,
    shared: Arc<Shared>,
    /// Who the caller proved to be.
    identity: Option<Identity>,
    client: Option<Client>,
    number: u64,
    /// Made when the client asks for it.
    leaf: Option<Leaf>,
    /// When the client is told what is gone.
    removals_at: Option<Instant>,
    /// When each type was last sent, until it is accepted.
    sent_at: BTreeMap<ResourceType, Instant>,
    responses: mpsc::Sender<Result<V::Response, Status>>,
}

/// The client is gone.
struct Gone;

impl<V: Variant> Stream<V> {
    pub(super) fn new(
        variant: V,
        shared: Arc<Shared>,
        identity: Option<Identity>,
        responses: mpsc::Sender<Result<V::Response, Status>>,
    ) -> Self {
        let number = shared.clients.next_number();
        Self {
            variant,
            shared,
            identity,
            client: None,
            number,
            leaf: None,
            removals_at: None,
            sent_at: BTreeMap::new(),
            responses,
        }
    }

    /// Serves until either side ends.
    pub(super) async fn run(mut self, mut requests: Streaming<V::Request>) {
        let mut worlds = self.shared.worlds.clone();
        let mut shutdown = self.shared.shutdown.clone();
        loop {
            let renewal = self.leaf.as_ref().map(|leaf| leaf.renew_at);
            let removals = self.removals_at;
            let served = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request, &mut worlds).await,
                    Ok(None) | Err(_) => break,
                },
                changed = worlds.changed() => match changed {
                    Ok(()) => self.push(&mut worlds).await,
                    Err(_) => break,
                },
                () = at(renewal), if renewal.is_some() => {
                    self.issue();
                    self.push(&mut worlds).await
                }
                () = at(removals), if removals.is_some() => self.remove(&worlds).await,
                () = ended(&mut shutdown) => break,
            };
            if served.is_err() {
                break;
            }
        }
        if let Some(client) = &self.client {
            self.shared.metrics.stream_closed(client.class.as_str());
        }
        self.shared.clients.forget(self.number);
    }

    async fn request(
        &mut self,
        mut request: V::Request,
        worlds: &mut watch::Receiver<Option<Arc<World>>>,
    ) -> Result<(), Gone> {
        let node = V::node(&mut request);
        if self.client.is_none() {
            self.introduce(node.unwrap_or_default());
        }
        let Some(heard) = self.variant.hear(request) else {
            return Ok(());
        };
        if let Some(text) = &heard.nack {
            self.shared.metrics.nacked(heard.kind.as_str());
            let node = self.client.as_ref().map(|client| client.node_id.as_str());
            tracing::warn!(kind = heard.kind.as_str(), node, text, "NACK");
        }
        if heard.ack || heard.nack.is_some() {
            let version = self.variant.sent_version(heard.kind);
            if let Some(sent_at) = self.sent_at.remove(&heard.kind).filter(|_| heard.ack) {
                self.shared
                    .metrics
                    .acked(heard.kind.as_str(), sent_at.elapsed());
            }
            self.shared
                .clients
                .heard(self.number, heard.kind, version, heard.nack);
        }
        if worlds.has_changed().unwrap_or(false) {
            // This type alone out of a new world could refer to what the client has not got yet.
            return self.push(worlds).await;
        }
        let world = worlds.borrow().clone();
        let Some(world) = world else { return Ok(()) };
        self.answer(heard.kind, &world, self.removals_at.is_some())
            .await
    }

    /// The client says who it is, once a stream.
    fn introduce(&mut self, node: Node) {
        let client = client(node);
        tracing::debug!(
            node = client.node_id,
            class = client.class.as_str(),
            "stream opened"
        );
        self.shared.metrics.stream_opened(client.class.as_str());
        self.shared.clients.introduce(self.number, &client);
        self.client = Some(client);
    }

    /// Sends what changed: what is referred to first. What is gone comes later.
    async fn push(&mut self, worlds: &mut watch::Receiver<Option<Arc<World>>>) -> Result<(), Gone> {
        let world = worlds.borrow_and_update().clone();
        let Some(world) = world else { return Ok(()) };
        for kind in ResourceType::ALL {
            self.answer(kind, &world, true).await?;
        }
        self.removals_at = self
            .variant
            .keeps_some()
            .then(|| Instant::now() + REMOVAL_DELAY);
        Ok(())
    }

    /// Sends what is gone: what refers to others first.
    async fn remove(&mut self, worlds: &watch::Receiver<Option<Arc<World>>>) -> Result<(), Gone> {
        self.removals_at = None;
        let world = worlds.borrow().clone();
        let Some(world) = world else { return Ok(()) };
        for kind in ResourceType::ALL.into_iter().rev() {
            self.answer(kind, &world, false).await?;
        }
        Ok(())
    }

    async fn answer(
        &mut self,
        kind: ResourceType,
        world: &World,
        keeps_removed: bool,
    ) -> Result<(), Gone> {
        if kind == ResourceType::Secret && self.leaf.is_none() && self.variant.wants_leaf() {
            self.issue();
        }
        let Some(client) = &self.client else {
            return Ok(());
        };
        let leaf = self.leaf.as_ref().and_then(|leaf| leaf.resource.as_ref());
        let view = View {
            world,
            client,
            leaf,
        };
        let mut clusters = Vec::new();
        while let Some(response) = self.variant.answer(kind, &view, keeps_removed) {
            if client.class == ClientClass::Envoy {
                clusters.extend(V::clusters_in(&response));
            }
            self.shared.metrics.pushed(kind.as_str());
            self.shared
                .clients
                .sent(self.number, kind, self.variant.sent_version(kind));
            self.sent_at.insert(kind, Instant::now());
            self.responses.send(Ok(response)).await.map_err(|_| Gone)?;
        }
        if clusters.is_empty() {
            return Ok(());
        }
        self.variant.endpoints_again(&clusters);
        Box::pin(self.answer(ResourceType::Endpoints, world, keeps_removed)).await
    }

    /// Makes the client's certificate, if it proved who it is. When that fails it keeps the one it
    /// has, and another attempt follows.
    fn issue(&mut self) {
        let node = self.client.as_ref().map(|client| client.node_id.as_str());
        let Some(identity) = &self.identity else {
            tracing::warn!(
                node,
                "asks for a certificate over SDS without a valid join token in `authorization`: \
                 it gets none on this stream"
            );
            // Nothing on this stream can change who the caller is.
            let renew_at = Instant::now() + NEVER;
            self.leaf = Some(Leaf {
                resource: None,
                renew_at,
            });
            return;
        };
        match self.shared.authority.issue(identity, self.shared.cert_ttl) {
            Ok(issued) => {
                let life = issued
                    .not_after
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                let version = issued.serial.clone();
                let secret = Secret::Certificate {
                    name: OWN_CERTIFICATE.into(),
                    chain_pem: issued.chain_pem.concat(),
                    key_pem: issued.key_pem,
                };
                let resource = Some(Resource::secret(&secret, &version));
                self.leaf = Some(Leaf {
                    resource,
                    renew_at: Instant::now() + life / 2,
                });
            }
            Err(error) => {
                tracing::error!(node, %error, "cannot issue a certificate for SDS");
                let resource = self.leaf.take().and_then(|leaf| leaf.resource);
                self.leaf = Some(Leaf {
                    resource,
                    renew_at: Instant::now() + ISSUE_AGAIN,
                });
            }
        }
    }
}

/// At `deadline`; at once without one.
async fn at(deadline: Option<Instant>) {
    sleep_until(deadline.unwrap_or_else(Instant::now)).await;
}

async fn ended(shutdown: &mut watch::Receiver<bool>) {
    _ = shutdown.wait_for(|shutdown| *shutdown).await;
}

/// Reads who the client is from its node.
fn client(node: Node) -> Client {
    let metadata = node.metadata.unwrap_or_default();
    let namespace = text(&metadata, "NAMESPACE")
        .or_else(|| namespace_of(&node.id))
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let outbound_port = text(&metadata, "OUTBOUND_PORT").and_then(|port| port.parse().ok());
    let labels = metadata
        .fields
        .get("LABELS")
        .and_then(|value| match &value.kind {
            Some(Kind::StructValue(labels)) => Some(labels),
            _ => None,
        });
    let labels = labels.into_iter().flat_map(|labels| {
        labels
            .fields
            .keys()
            .filter_map(|key| Some((key.clone(), text(labels, key)?)))
    });
    Client {
        class: ClientClass::of(&node.user_agent_name, &node.client_features),
        labels: labels.collect(),
        node_id: node.id,
        namespace,
        outbound_port: outbound_port.unwrap_or(ENVOY_OUTBOUND_PORT),
    }
}

/// The namespace in a node id such as `web~ns/default/sa/web`.
fn namespace_of(node_id: &str) -> Option<String> {
    let (_, rest) = node_id.split_once("ns/")?;
    let (namespace, _) = rest.split_once("/sa/")?;
    (!namespace.is_empty()).then(|| namespace.to_owned())
}

fn text(metadata: &Struct, key: &str) -> Option<String> {
    match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Endpoint names of the clusters among `bodies`.
pub(super) fn cluster_names<'a>(
    type_url: &str,
    bodies: impl Iterator<Item = &'a Any>,
) -> Vec<String> {
    if type_url != Cluster::type_url() {
        return Vec::new();
    }
    bodies
        .filter_map(|body| Some(Cluster::decode(&body.value[..]).ok()?.name))
        .collect()
}
