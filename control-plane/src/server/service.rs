//! What tonic serves, and who is connected.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{Variant, delta::Delta, sotw::Sotw, stream::Stream};
use crate::{
    ca::{Authority, Identity, Tokens},
    cache::{Client, ResourceType, World},
    metrics::Metrics,
};

/// Responses that may wait for a client: one being sent, one ready.
const RESPONSES_WAITING: usize = 1;

/// What streams share.
pub(super) struct Shared {
    pub(super) worlds: watch::Receiver<Option<Arc<World>>>,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) authority: Arc<Authority>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) cert_ttl: Duration,
    pub(super) metrics: Metrics,
    pub(super) clients: Clients,
}

/// Aggregated discovery, both variants.
#[derive(Clone)]
pub struct AdsService {
    shared: Arc<Shared>,
}

impl AdsService {
    /// Serves the newest of `worlds` until `shutdown` becomes true.
    pub fn new(
        worlds: watch::Receiver<Option<Arc<World>>>,
        shutdown: watch::Receiver<bool>,
        (authority, tokens, cert_ttl): (Arc<Authority>, Arc<Tokens>, Duration),
        metrics: Metrics,
        clients: Clients,
    ) -> Self {
        let shared = Shared {
            worlds,
            shutdown,
            authority,
            tokens,
            cert_ttl,
            metrics,
            clients,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Who the caller proves to be. Nobody in particular may still read what is not secret, so
    /// that a client whose token expired keeps its configuration.
    fn identity(&self, metadata: &MetadataMap) -> Option<Identity> {
        let value = metadata.get("authorization")?;
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        let identity = scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| self.shared.tokens.authenticate(token.trim()))
            .flatten();
        if identity.is_none() {
            tracing::warn!("a client's join token is not known, or has expired");
        }
        identity
    }

    fn start<V: Variant>(
        &self,
        variant: V,
        identity: Option<Identity>,
        requests: Streaming<V::Request>,
    ) -> Responses<V::Response> {
        let (tx, rx) = mpsc::channel(RESPONSES_WAITING);
        let stream = Stream::new(variant, Arc::clone(&self.shared), identity, tx);
        tokio::spawn(stream.run(requests));
        ReceiverStream::new(rx)
    }
}

impl std::fmt::Debug for AdsService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdsService").finish_non_exhaustive()
    }
}

type Responses<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let identity = self.identity(request.metadata());
        Ok(Response::new(self.start(
            Sotw::default(),
            identity,
            request.into_inner(),
        )))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let identity = self.identity(request.metadata());
        Ok(Response::new(self.start(
            Delta::default(),
            identity,
            request.into_inner(),
        )))
    }
}

/// Who is connected, and what each was sent.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    held: Arc<Mutex<BTreeMap<u64, ClientStatus>>>,
    next: Arc<AtomicU64>,
    count: Arc<watch::Sender<usize>>,
}

/// One connected client.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientStatus {
    /// Node id as the client says it.
    pub node: String,
    /// `rust`, `grpc` or `envoy`.
    pub class: String,
    /// By `cds`, `eds`, `lds`, `rds`, `sds`.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// What a client was sent of one type.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TypeStatus {
    /// Version of the last response.
    pub sent: Option<String>,
    /// Version of the last response that the client accepted.
    pub acked: Option<String>,
    /// Why the client refused the last response; `null` if it did not.
    pub nack: Option<String>,
}

impl Clients {
    /// The clients that are connected now.
    pub fn list(&self) -> Vec<ClientStatus> {
        self.lock().values().cloned().collect()
    }

    /// How many are connected, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(super) fn introduce(&self, number: u64, client: &Client) {
        let status = ClientStatus {
            node: client.node_id.clone(),
            class: client.class.as_str().to_owned(),
            types: BTreeMap::new(),
        };
        self.lock().insert(number, status);
        self.recount();
    }

    pub(super) fn forget(&self, number: u64) {
        self.lock().remove(&number);
        self.recount();
    }

    pub(super) fn sent(&self, number: u64, kind: ResourceType, version: Option<String>) {
        self.with(number, kind, |status| status.sent = version);
    }

    pub(super) fn heard(
        &self,
        number: u64,
        kind: ResourceType,
        version: Option<String>,
        nack: Option<String>,
    ) {
        self.with(number, kind, |status| {
            if nack.is_none() {
                status.acked = version;
            }
            status.nack = nack;
        });
    }

    fn with(&self, number: u64, kind: ResourceType, change: impl FnOnce(&mut TypeStatus)) {
        if let Some(client) = self.lock().get_mut(&number) {
            change(client.types.entry(kind.as_str()).or_default());
        }
    }

    fn recount(&self) {
        let count = self.lock().len();
        self.count.send_replace(count);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, ClientStatus>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
