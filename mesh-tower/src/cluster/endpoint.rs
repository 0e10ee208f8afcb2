//! The seam between the mesh and what sends a request to one address.

use std::{
    error::Error,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use mesh_core::{
    config::Cluster,
    health::ConnectionCircuit,
    stats::{Connectivity, EndpointStats},
};
use tokio::sync::Notify;

use crate::{
    BoxError, Outgoing,
    error::{Causes, DispatchError},
    telemetry::HandshakeFailures,
};

/// Makes the [`EndpointService`] of an address.
pub trait MakeEndpoint: Send + Sync + 'static {
    /// What it makes.
    type Endpoint: EndpointService;

    /// Makes the service of one endpoint. Must not block and must not connect yet.
    fn make(&self, context: EndpointContext) -> Self::Endpoint;
}

/// Sends requests to one address and keeps the connections for it.
pub trait EndpointService: Send + Sync + 'static {
    /// Body of the responses.
    type ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin;

    /// A request on its way to its response. [`BoxExchange`] will do where an allocation does not
    /// count.
    type Exchange: Exchange<ResponseBody = Self::ResponseBody>;

    /// Connects and stays connected, reporting through
    /// [`EndpointContext::set_connectivity`]. Called once or more often, not on every request. Where
    /// [connections are made on demand](EndpointContext::is_on_demand), one that is lost leaves the
    /// endpoint idle until this is called again.
    fn connect(&self);

    /// The endpoint left its cluster: no connection is made any more, requests in flight finish. A
    /// request that comes nevertheless is [`Refused`](crate::DispatchErrorKind::Refused) and given
    /// back. Called once; the service itself lives until the calls end that could use it.
    fn disconnect(&self) {}

    /// Takes one request and sends it. Must not block. When it turns out that nobody has looked at
    /// it, the request is given back with an error that is [`unsent`](DispatchError::unsent).
    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> Self::Exchange;
}

/// A request on its way to its response. Dropping it cancels the request.
pub trait Exchange: Send + Unpin + 'static {
    /// Body of the response.
    type ResponseBody;

    /// The head of the response. Not polled again once it was ready.
    ///
    /// # Errors
    /// When there is no response.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Self::ResponseBody>, DispatchError>>;
}

/// An [`Exchange`] that is any future.
pub type BoxExchange<B> = Pin<Box<dyn Future<Output = Result<Response<B>, DispatchError>> + Send>>;

impl<B: 'static> Exchange for BoxExchange<B> {
    type ResponseBody = B;

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<B>, DispatchError>> {
        self.as_mut().poll(cx)
    }
}

/// What an endpoint knows of itself.
#[derive(Clone)]
pub struct EndpointContext {
    /// Where to connect; its identity.
    pub address: SocketAddr,
    /// Where to connect besides, if it has several addresses: whichever takes the connection first
    /// (gRFC A61).
    pub additional_addresses: Option<Arc<[SocketAddr]>>,
    /// Policy of the cluster, with TLS as it is for this endpoint.
    pub cluster: Arc<Cluster>,
    pub(crate) stats: Arc<EndpointStats>,
    pub(crate) signals: Arc<Signals>,
}

/// What the endpoints of a cluster share: who is told that one has changed, and how many connections
/// there are.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Requests that wait for an endpoint.
    pub(crate) waiting: Notify,
    /// The task that maintains the cluster.
    pub(crate) maintenance: Notify,
    /// Limits on connections and on requests that wait for one.
    pub(crate) connections: ConnectionCircuit,
    /// A connection has ended: there may be another one.
    pub(crate) freed: Notify,
    /// Whether endpoints are connected when they are picked, and not before.
    pub(crate) is_on_demand: AtomicBool,
    /// TLS handshakes that failed.
    pub(crate) handshakes: HandshakeFailures,
    /// The endpoint that could not be connected to last, and why.
    unreachable: Mutex<Option<(SocketAddr, String)>>,
}

impl Signals {
    /// Those of a new cluster.
    pub(crate) fn new(handshakes: HandshakeFailures) -> Self {
        Self {
            handshakes,
            ..Self::default()
        }
    }

    /// The last failure to connect, for whoever asks why nothing can be reached.
    pub(crate) fn last_failure(&self) -> Option<String> {
        let last = self.unreachable.lock();
        let last = last.unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .map(|(address, why)| format!("{address}: {why}"))
    }
}

impl EndpointContext {
    /// Whether the endpoint is connected when it is picked, and not before (gRFC A42, A62).
    pub fn is_on_demand(&self) -> bool {
        self.signals.is_on_demand.load(Relaxed)
    }

    /// Reports whether requests can be sent; wakes the requests that wait for it.
    pub fn set_connectivity(&self, connectivity: Connectivity) {
        self.stats.set_connectivity(connectivity);
        self.signals.waiting.notify_waiters();
        self.signals.maintenance.notify_one();
    }

    /// Reports that the endpoint cannot be connected to
    /// ([`TransientFailure`](Connectivity::TransientFailure)), and why: callers are told when no other
    /// endpoint can be reached either. Returns whether the last one failed otherwise.
    pub fn set_unreachable(&self, error: &(dyn Error + 'static)) -> bool {
        let why = Some((self.address, Causes(error).to_string()));
        let last = self.signals.unreachable.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        let is_new = *last != why;
        *last = why;
        drop(last);
        self.set_connectivity(Connectivity::TransientFailure);
        is_new
    }
}

impl fmt::Debug for EndpointContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointContext")
            .field("address", &self.address)
            .field("cluster", &self.cluster.name)
            .finish_non_exhaustive()
    }
}
