//! The connections of one address, and how a request is sent on them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, Response, Version, uri::Scheme};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::{config::HttpVersion, stats::Connectivity};
use tokio::{sync::Notify, task::AbortHandle};

use super::{
    dial::Dialer,
    http1::{Pool, Pooled},
    http2::{self, Http2Body},
    keeper,
};
use crate::{
    Body, BoxError, Outgoing,
    cluster::{BoxExchange, EndpointContext, EndpointService, Exchange},
    error::{DispatchError, DispatchErrorKind},
    identity::Identity,
    telemetry::Protocol,
    tls::Alpn,
};

/// Connections to one address.
pub struct HyperEndpoint {
    context: EndpointContext,
    identity: Option<Identity>,
    /// Made when it is first wanted: most endpoints of a large mesh never are. `None` when the
    /// endpoint left its cluster before.
    used: OnceLock<Option<Box<Used>>>,
}

/// An endpoint that was wanted.
struct Used {
    shared: Arc<Shared>,
    keeper: OnceLock<AbortOnDrop>,
}

/// What the keeper and the requests share.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    /// The HTTP/2 connection for new requests.
    http2: ArcSwapOption<http2::Connection>,
    /// Idle HTTP/1.1 connections.
    pub(super) http1: Pool,
    /// Asks the keeper for a new connection, or to end.
    pub(super) reconnect: Notify,
    /// One on-demand HTTP/2 connect at a time.
    on_demand: tokio::sync::Mutex<()>,
    /// Left its cluster.
    is_gone: AtomicBool,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HyperEndpoint {
    pub(super) fn new(context: EndpointContext, identity: Option<&Identity>) -> Self {
        Self {
            context,
            identity: identity.cloned(),
            used: OnceLock::new(),
        }
    }

    fn used(&self) -> Option<&Used> {
        let used = self.used.get_or_init(|| {
            let shared = Shared {
                dialer: Dialer::new(self.context.clone(), self.identity.as_ref()),
                http2: ArcSwapOption::empty(),
                http1: Pool::default(),
                reconnect: Notify::new(),
                on_demand: tokio::sync::Mutex::new(()),
                is_gone: AtomicBool::new(false),
            };
            Some(Box::new(Used {
                shared: Arc::new(shared),
                keeper: OnceLock::new(),
            }))
        });
        used.as_deref()
    }
}

impl fmt::Debug for HyperEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperEndpoint")
            .field("context", &self.context)
            .finish()
    }
}

impl EndpointService for HyperEndpoint {
    type ResponseBody = HyperBody;
    type Exchange = HyperExchange;

    fn connect(&self) {
        let Some(Used { shared, keeper }) = self.used() else {
            return;
        };
        keeper.get_or_init(|| {
            shared.set_connectivity(Connectivity::Connecting);
            let task = tokio::spawn(keeper::run(Arc::clone(shared)));
            AbortOnDrop(task.abort_handle())
        });
    }

    fn disconnect(&self) {
        let Some(Used { shared, .. }) = self.used.get_or_init(|| None).as_deref() else {
            return;
        };
        shared.is_gone.store(true, Relaxed);
        shared.reconnect.notify_one();
        // Streams hold the connection until they end.
        shared.http2.store(None);
        shared.http1.clear();
    }

    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> HyperExchange {
        let Some(Used { shared, .. }) = self.used() else {
            return HyperExchange::failed(gone(outgoing.take_absolute()));
        };
        let version = shared.dialer.context.cluster.http_version;
        if version != HttpVersion::Http1
            && let Some(exchange) = shared.begin_http2(outgoing)
        {
            return exchange;
        }
        let is_http1 = version == HttpVersion::Http1
            || version == HttpVersion::ByRequest
                && Protocol::of(&outgoing.head().headers) == Protocol::Http;
        let request = outgoing.take_absolute();
        if shared.is_gone() {
            return HyperExchange::failed(gone(request));
        }
        let shared = Arc::clone(shared);
        if is_http1 {
            HyperExchange::other(shared.send_http1(request))
        } else {
            HyperExchange::other(shared.send_http2_on_demand(request))
        }
    }
}

/// A request on a connection, or on its way to one.
pub struct HyperExchange {
    way: Way,
}

enum Way {
    Http2(http2::Exchange),
    /// Over HTTP/1.1, or over a connection that is yet to be made.
    Other(BoxExchange<HyperBody>),
}

impl HyperExchange {
    fn other(
        exchange: impl Future<Output = Result<Response<HyperBody>, DispatchError>> + Send + 'static,
    ) -> Self {
        let way = Way::Other(Box::pin(exchange));
        Self { way }
    }

    fn failed(error: DispatchError) -> Self {
        Self::other(std::future::ready(Err(error)))
    }
}

impl Exchange for HyperExchange {
    type ResponseBody = HyperBody;

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<HyperBody>, DispatchError>> {
        match &mut self.way {
            Way::Http2(exchange) => {
                let response = ready!(exchange.poll_response(cx))?;
                Poll::Ready(Ok(response.map(|body| HyperBody {
                    kind: Kind::Http2(body),
                })))
            }
            Way::Other(exchange) => exchange.poll_response(cx),
        }
    }
}

impl fmt::Debug for HyperExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperExchange").finish_non_exhaustive()
    }
}

impl Shared {
    /// Whether no connection is to be made any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    /// Reports the connectivity, unless somebody else may have the address by now.
    pub(super) fn set_connectivity(&self, connectivity: Connectivity) {
        if !self.is_gone() {
            self.dialer.context.set_connectivity(connectivity);
        }
    }

    /// Takes a new HTTP/2 connection for the requests to come.
    pub(super) fn put_http2(&self, connection: http2::Connection) -> Weak<http2::Connection> {
        let connection = Arc::new(connection);
        let held = Arc::downgrade(&connection);
        self.http2.store(Some(connection));
        if self.is_gone() {
            self.http2.store(None);
        }
        held
    }

    /// Begins a stream if there is an HTTP/2 connection.
    fn begin_http2(&self, outgoing: &mut Outgoing<'_>) -> Option<HyperExchange> {
        let connection = self.http2.load();
        let connection = connection.as_ref()?;
        self.make_absolute(outgoing);
        Some(match connection.begin(outgoing) {
            Ok(exchange) => HyperExchange {
                way: Way::Http2(exchange),
            },
            Err(error) => {
                self.replace_http2(connection);
                HyperExchange::failed(error)
            }
        })
    }

    /// `ended` takes no more requests (GOAWAY, closed): those that come wait for the keeper to make
    /// another one, unless that has happened.
    fn replace_http2(&self, ended: &Arc<http2::Connection>) {
        let before = self.http2.compare_and_swap(ended, None);
        if !before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, ended))
        {
            return;
        }
        if ended.is_kept {
            self.set_connectivity(Connectivity::Connecting);
            if self.http2.load().is_some() {
                // The keeper was faster.
                self.set_connectivity(Connectivity::Ready);
            }
        }
        self.reconnect.notify_one();
    }

    /// For a gRPC request to an endpoint whose connections are HTTP/1.1 so far.
    async fn send_http2_on_demand(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        let guard = self.on_demand.lock().await;
        if self.http2.load().is_none() {
            let dialed = async {
                let stream = self.dialer.dial(Alpn::Http2).await?;
                http2::handshake(stream, false).await
            };
            let (connection, driver) = match dialed.await {
                Ok(dialed) => dialed,
                Err(error) => return Err(unreachable(error, request)),
            };
            let held = self.put_http2(connection);
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                _ = driver.await;
                shared.forget_http2(&held);
            });
        }
        drop(guard);
        let mut outgoing = Outgoing::new(request, None);
        match self.begin_http2(&mut outgoing) {
            Some(mut exchange) => std::future::poll_fn(|cx| exchange.poll_response(cx)).await,
            None => {
                let error = "the connection ended at once".into();
                Err(unreachable(error, outgoing.take()))
            }
        }
    }

    /// Takes the handle of a connection that ended out of use.
    pub(super) fn forget_http2(&self, ended: &Weak<http2::Connection>) {
        let held = self.http2.load_full();
        if held
            .as_ref()
            .is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), ended.as_ptr()))
        {
            self.http2.compare_and_swap(&held, None);
        }
    }

    async fn send_http1(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        let mut connection = match self.http1.take() {
            Some(connection) => connection,
            None => match Pooled::connect(&self.dialer).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.reconnect.notify_one();
                    return Err(unreachable(error, request));
                }
            },
        };
        let mut outgoing = Outgoing::new(request, None);
        outgoing.make_origin();
        let mut request = outgoing.take();
        *request.version_mut() = Version::HTTP_11;
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| HyperBody {
                kind: Kind::Http1(body, Some((connection, self))),
            })),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    let error = error.into_error();
                    Err(DispatchError::new(DispatchErrorKind::Refused, error).unsent(unsent))
                }
                None => Err(DispatchError::new(
                    DispatchErrorKind::Reset,
                    error.into_error(),
                )),
            },
        }
    }

    fn make_absolute(&self, outgoing: &mut Outgoing<'_>) {
        let scheme = match self.dialer.context.cluster.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        };
        let address = || self.dialer.context.address.to_string().parse().ok();
        outgoing.make_absolute(scheme, address);
    }
}

fn gone(request: Request<Body>) -> DispatchError {
    let error = DispatchError::new(DispatchErrorKind::Refused, "the endpoint left its cluster");
    error.unsent(request)
}

fn unreachable(error: BoxError, request: Request<Body>) -> DispatchError {
    DispatchError::new(DispatchErrorKind::Connect, error).unsent(request)
}

/// The body of a response; gives an HTTP/1.1 connection back when it has ended.
pub struct HyperBody {
    kind: Kind,
}

enum Kind {
    Http2(Http2Body),
    Http1(Incoming, Option<(Pooled, Arc<Shared>)>),
}

impl Drop for HyperBody {
    fn drop(&mut self) {
        // A body that was not read to its end leaves a connection that hyper closes; the pool
        // does not hand out closed ones.
        if let Kind::Http1(_, pooled) = &mut self.kind
            && let Some((connection, shared)) = pooled.take()
            && !shared.is_gone()
        {
            shared.http1.put(connection);
        }
    }
}

impl fmt::Debug for HyperBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Http2(body) => body.fmt(f),
            Kind::Http1(body, _) => body.fmt(f),
        }
    }
}

impl http_body::Body for HyperBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Http2(body) => Pin::new(body).poll_frame(cx),
            Kind::Http1(body, _) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Http2(body) => body.is_end_stream(),
            Kind::Http1(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Http2(body) => body.size_hint(),
            Kind::Http1(body, _) => body.size_hint(),
        }
    }
}
