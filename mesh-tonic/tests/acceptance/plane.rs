//! A control plane on a real socket that says whatever a scenario wants, right or wrong.
//!
//! State of the world. What is subscribed and not there is named in `resource_errors` (xRFC TP3).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        ResourceError, ResourceName,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    google::{protobuf::Any, rpc},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, UnboundedReceiverStream},
};
use tonic::{Request, Response, Status, Streaming};

use super::resources::{CDS, EDS, LDS, RDS, SDS};

/// gRPC's NOT_FOUND.
const NOT_FOUND: i32 = 5;

/// All resources, by type and name.
type Resources = BTreeMap<(&'static str, String), Any>;

/// The control plane of one scenario.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    resources: watch::Sender<Resources>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    streams: AtomicUsize,
    opened: AtomicUsize,
    answered: AtomicUsize,
    nacks: Mutex<Vec<String>>,
    /// Names that each stream wants, by its number and type.
    wanted: Mutex<BTreeMap<(usize, &'static str), BTreeSet<String>>>,
    is_silent: AtomicBool,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (resources, changes) = watch::channel(Resources::new());
        let shared = Arc::<Shared>::default();
        let service = AggregatedDiscoveryServiceServer::new(Service {
            resources: changes,
            shared: Arc::clone(&shared),
        });
        let task = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            resources,
            shared,
            task,
        }
    }

    /// Holds these as well, or instead of those of the same name.
    pub(crate) fn set(
        &self,
        resources: impl IntoIterator<Item = (&'static str, &'static str, Any)>,
    ) {
        self.resources.send_modify(|held| {
            for (kind, name, resource) in resources {
                held.insert((kind, name.to_owned()), resource);
            }
        });
    }

    /// Has these no longer.
    pub(crate) fn remove(&self, names: impl IntoIterator<Item = (&'static str, &'static str)>) {
        self.resources.send_modify(|held| {
            for (kind, name) in names {
                held.remove(&(kind, name.to_owned()));
            }
        });
    }

    pub(crate) fn remove_all(&self) {
        self.resources.send_replace(Resources::new());
    }

    /// What is not there is not named any more: absence alone says so.
    pub(crate) fn keep_silent(&self) {
        self.shared.is_silent.store(true, SeqCst);
    }

    /// How many responses with listeners were answered.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(SeqCst)
    }

    /// Streams that are open now.
    pub(crate) fn streams(&self) -> usize {
        self.shared.streams.load(SeqCst)
    }

    /// Streams that were ever opened.
    pub(crate) fn opened(&self) -> usize {
        self.shared.opened.load(SeqCst)
    }

    /// Names of a type that any stream wants now.
    pub(crate) fn wanted(&self, kind: &str) -> BTreeSet<String> {
        let wanted = self.shared.wanted.lock().unwrap();
        let of_kind = wanted.iter().filter(|((_, of), _)| *of == kind);
        of_kind.flat_map(|(_, names)| names.clone()).collect()
    }

    /// Texts of all refusals.
    pub(crate) fn nacks(&self) -> Vec<String> {
        self.shared.nacks.lock().unwrap().clone()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service {
    resources: watch::Receiver<Resources>,
    shared: Arc<Shared>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, rx) = mpsc::unbounded_channel();
        let stream = Session {
            resources: self.resources.clone(),
            shared: Arc::clone(&self.shared),
            responses,
            number: 0,
            types: BTreeMap::new(),
            nonce: 0,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

struct Session {
    resources: watch::Receiver<Resources>,
    shared: Arc<Shared>,
    responses: mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>,
    number: usize,
    types: BTreeMap<&'static str, Subscription>,
    nonce: u64,
}

#[derive(Default)]
struct Subscription {
    names: BTreeSet<String>,
    nonce: String,
    /// What was sent last.
    sent: Option<(Vec<Any>, Vec<String>)>,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<DiscoveryRequest>) {
        self.number = self.shared.opened.fetch_add(1, SeqCst);
        self.shared.streams.fetch_add(1, SeqCst);
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.hear(request),
                    _ => break,
                },
                changed = self.resources.changed() => if changed.is_err() { break },
            }
            // What is referred to comes first.
            for kind in [SDS, CDS, EDS, LDS, RDS] {
                self.answer(kind);
            }
        }
        let mut wanted = self.shared.wanted.lock().unwrap();
        wanted.retain(|(stream, _), _| *stream != self.number);
        drop(wanted);
        self.shared.streams.fetch_sub(1, SeqCst);
    }

    fn hear(&mut self, request: DiscoveryRequest) {
        let known = [CDS, EDS, LDS, RDS, SDS].into_iter();
        let kind = { known }.find(|kind| *kind == request.type_url);
        let Some(kind) = kind else { return };
        let held = self.types.entry(kind).or_default();
        if request.response_nonce != held.nonce {
            return;
        }
        if kind == LDS && !request.response_nonce.is_empty() {
            self.shared.answered.fetch_add(1, SeqCst);
        }
        if let Some(detail) = request.error_detail {
            self.shared.nacks.lock().unwrap().push(detail.message);
        }
        let names: BTreeSet<_> = request.resource_names.into_iter().collect();
        let mut wanted = self.shared.wanted.lock().unwrap();
        wanted.insert((self.number, kind), names.clone());
        drop(wanted);
        if held.names != names {
            held.names = names;
            held.sent = None;
        }
    }

    fn answer(&mut self, kind: &'static str) {
        let Some(held) = self.types.get_mut(kind) else {
            return;
        };
        if held.names.is_empty() {
            return;
        }
        let resources = self.resources.borrow().clone();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in &held.names {
            match resources.get(&(kind, name.clone())) {
                Some(resource) => found.push(resource.clone()),
                None => missing.push(name.clone()),
            }
        }
        if self.shared.is_silent.load(SeqCst) {
            missing.clear();
        }
        if held.sent.as_ref() == Some(&(found.clone(), missing.clone())) {
            return;
        }
        self.nonce += 1;
        held.nonce = self.nonce.to_string();
        held.sent = Some((found.clone(), missing.clone()));
        let not_found = |name| ResourceError {
            resource_name: Some(ResourceName {
                name,
                ..ResourceName::default()
            }),
            error_detail: Some(rpc::Status {
                code: NOT_FOUND,
                message: "there is none".into(),
                ..rpc::Status::default()
            }),
        };
        _ = self.responses.send(Ok(DiscoveryResponse {
            version_info: held.nonce.clone(),
            nonce: held.nonce.clone(),
            type_url: kind.into(),
            resources: found,
            resource_errors: missing.into_iter().map(not_found).collect(),
            ..DiscoveryResponse::default()
        }));
    }
}
