//! What tonic serves: aggregated discovery, both variants.
//!
//! Written by hand where generated code would fix the codec: responses share their bytes.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::SERVICE_NAME;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    metadata::MetadataMap,
    server::{Grpc, NamedService, StreamingService},
};
use tower::Service;

use super::{
    Clients, Variant,
    admit::{Admission, Limits},
    delta::Delta,
    listen::ConnectionEnd,
    sotw::Sotw,
    stream::{Opened, Stream},
    wire::{self, SharedBytes},
};
use crate::{
    ca::{Authority, Callers, ConnectionPeer, Identity},
    cache::World,
    metrics::Metrics,
};

/// Responses that may wait for a client: one being sent, one ready.
const RESPONSES_WAITING: usize = 1;

/// What streams share.
pub(super) struct Shared {
    pub(super) worlds: watch::Receiver<Option<Arc<World>>>,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) authority: Arc<Authority>,
    pub(super) callers: Arc<Callers>,
    pub(super) cert_ttl: Duration,
    pub(super) metrics: Metrics,
    pub(super) clients: Clients,
    pub(super) admission: Admission,
    /// Nobody is served who does not prove who it is.
    pub(super) needs_identity: bool,
}

/// Aggregated discovery, both variants.
#[derive(Clone)]
pub struct AdsService {
    shared: Arc<Shared>,
}

impl AdsService {
    /// Serves the newest of `worlds` until `shutdown` becomes true.
    ///
    /// With `needs_identity` a stream is refused whose client does not prove who it is; without, as
    /// on a machine of its own, it is served what is not secret.
    pub fn new(
        worlds: watch::Receiver<Option<Arc<World>>>,
        shutdown: watch::Receiver<bool>,
        (authority, callers, cert_ttl): (Arc<Authority>, Arc<Callers>, Duration),
        metrics: Metrics,
        (clients, limits): (Clients, Limits),
        needs_identity: bool,
    ) -> Self {
        let shared = Shared {
            worlds,
            shutdown,
            authority,
            callers,
            cert_ttl,
            metrics,
            clients,
            admission: Admission::new(limits),
            needs_identity,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Who the caller proves to be. Where identity is not needed, nobody in particular may still read
    /// what is not secret, so that a client whose token expired keeps its configuration.
    fn identity(
        &self,
        metadata: &MetadataMap,
        peer: Option<&ConnectionPeer>,
    ) -> Result<Option<Identity>, Status> {
        let shared = &self.shared;
        let is_anonymous = peer.is_none_or(|peer| peer.identity.is_none());
        if is_anonymous && metadata.get("authorization").is_none() && !shared.needs_identity {
            return Ok(None);
        }
        match shared.callers.authenticate(metadata, peer) {
            Ok(caller) => Ok(Some(caller.identity)),
            Err(reason) if shared.needs_identity => {
                Err(Status::unauthenticated(reason.to_string()))
            }
            Err(reason) => {
                tracing::warn!(%reason, "a client is served as nobody");
                Ok(None)
            }
        }
    }

    fn open<V: Variant>(
        &self,
        mut request: Request<Streaming<V::Request>>,
    ) -> Result<Response<Responses>, Status> {
        let shared = &self.shared;
        // An answer from a part of the configuration would read as a deletion of the rest.
        if shared.worlds.borrow().is_none() {
            return Err(Status::unavailable("the configuration is not read yet"));
        }
        let identity = self.identity(
            request.metadata(),
            request.extensions().get::<ConnectionPeer>(),
        )?;
        let place = shared.admission.admit(identity.as_ref(), Instant::now());
        let place = place.inspect_err(|_| shared.metrics.stream_refused())?;
        let end = request.extensions_mut().remove::<ConnectionEnd>();
        let opened = Opened {
            identity,
            end: end.map_or_else(|| watch::channel(false).1, |end| end.0),
            place,
        };
        let (tx, rx) = mpsc::channel(RESPONSES_WAITING);
        let stream = Stream::<V>::new(Arc::clone(shared), opened, tx);
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

impl std::fmt::Debug for AdsService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdsService").finish_non_exhaustive()
    }
}

type Responses = ReceiverStream<Result<wire::Response, Status>>;

/// One method of the service.
struct Method<V>(AdsService, PhantomData<V>);

impl<V: Variant> StreamingService<V::Request> for Method<V> {
    type Response = wire::Response;
    type ResponseStream = Responses;
    type Future = Ready<Result<Response<Responses>, Status>>;

    fn call(&mut self, request: Request<Streaming<V::Request>>) -> Self::Future {
        ready(self.0.open::<V>(request))
    }
}

impl AdsService {
    fn streaming<V: Variant>(
        &self,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>> {
        let method = Method::<V>(self.clone(), PhantomData);
        let mut grpc = Grpc::new(SharedBytes::<V::Request>::default())
            .max_decoding_message_size(self.shared.admission.limits().request_bytes);
        Box::pin(async move { Ok(grpc.streaming(method, request).await) })
    }
}

impl NamedService for AdsService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for AdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        match method {
            Some("StreamAggregatedResources") => self.streaming::<Sotw>(request),
            Some("DeltaAggregatedResources") => self.streaming::<Delta>(request),
            _ => {
                let unknown = Status::unimplemented("aggregated discovery has no such method");
                Box::pin(ready(Ok(unknown.into_http())))
            }
        }
    }
}
