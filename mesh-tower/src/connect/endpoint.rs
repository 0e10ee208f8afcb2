//! The connections of one address, and how a request is sent on them.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, Version, header, uri};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2};
use mesh_core::{config::HttpVersion, stats::Connectivity};
use tokio::{sync::Notify, task::AbortHandle};

use super::{
    dial::Dialer,
    http1::{Pool, Pooled},
    keeper::{self, handshake_http2},
};
use crate::{
    Body,
    cluster::{EndpointContext, EndpointService},
    error::{DispatchError, DispatchErrorKind},
    identity::Identity,
    telemetry::Protocol,
    tls::Alpn,
};

/// Connections to one address.
pub struct HyperEndpoint {
    shared: Arc<Shared>,
    keeper: OnceLock<AbortOnDrop>,
}

/// What the keeper and the requests share.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    /// The HTTP/2 connection for new requests.
    pub(super) http2: ArcSwapOption<http2::SendRequest<Body>>,
    /// Idle HTTP/1.1 connections.
    pub(super) http1: Pool,
    /// Asks the keeper for a new connection.
    pub(super) reconnect: Notify,
    /// One on-demand HTTP/2 connect at a time.
    on_demand: tokio::sync::Mutex<()>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HyperEndpoint {
    pub(super) fn new(context: EndpointContext, identity: Option<&Identity>) -> Self {
        let shared = Shared {
            dialer: Dialer::new(context, identity),
            http2: ArcSwapOption::empty(),
            http1: Pool::default(),
            reconnect: Notify::new(),
            on_demand: tokio::sync::Mutex::new(()),
        };
        Self {
            shared: Arc::new(shared),
            keeper: OnceLock::new(),
        }
    }
}

impl fmt::Debug for HyperEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperEndpoint")
            .field("context", &self.shared.dialer.context)
            .finish()
    }
}

impl EndpointService for HyperEndpoint {
    type ResponseBody = HyperBody;

    fn connect(&self) {
        self.keeper.get_or_init(|| {
            self.shared
                .dialer
                .context
                .set_connectivity(Connectivity::Connecting);
            let task = tokio::spawn(keeper::run(Arc::clone(&self.shared)));
            AbortOnDrop(task.abort_handle())
        });
    }

    async fn dispatch(&self, request: Request<Body>) -> Result<Response<HyperBody>, DispatchError> {
        let shared = &self.shared;
        let http2 = shared.http2.load_full();
        match shared.dialer.context.cluster.http_version {
            HttpVersion::Http1 => shared.send_http1(request).await,
            HttpVersion::ByRequest
                if http2.is_none() && Protocol::of(request.headers()) == Protocol::Http =>
            {
                shared.send_http1(request).await
            }
            HttpVersion::Http2 | HttpVersion::ByRequest => match http2 {
                Some(sender) => shared.send_http2(sender, request).await,
                None => shared.send_http2_on_demand(request).await,
            },
        }
    }
}

impl Shared {
    async fn send_http2(
        &self,
        sender: Arc<http2::SendRequest<Body>>,
        mut request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        self.absolute_form(&mut request);
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        let mut handle = http2::SendRequest::clone(&sender);
        match handle.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| HyperBody { body, pooled: None })),
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                if unsent.is_some() || handle.is_closed() {
                    self.replace_http2(&sender);
                }
                Err(self.failed(unsent, is_refused(&error), error))
            }
        }
    }

    /// For a gRPC request to an endpoint whose connections are HTTP/1.1 so far.
    async fn send_http2_on_demand(
        self: &Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        let guard = self.on_demand.lock().await;
        let sender = match self.http2.load_full() {
            Some(sender) => sender,
            None => {
                let dialed = async {
                    let stream = self.dialer.dial(Alpn::Http2).await?;
                    handshake_http2(stream).await
                };
                let (sender, connection) = match dialed.await {
                    Ok(connected) => connected,
                    Err(error) => return Err(self.unreachable(request, error)),
                };
                let sender = Arc::new(sender);
                self.http2.store(Some(Arc::clone(&sender)));
                let shared = Arc::clone(self);
                let held = Arc::downgrade(&sender);
                tokio::spawn(async move {
                    _ = connection.await;
                    shared.forget_http2(&held);
                });
                sender
            }
        };
        drop(guard);
        self.send_http2(sender, request).await
    }

    /// Asks for another connection in place of one that takes no more requests (GOAWAY, closed),
    /// unless that has happened.
    fn replace_http2(&self, ended: &Arc<http2::SendRequest<Body>>) {
        if self
            .http2
            .load()
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, ended))
        {
            self.reconnect.notify_one();
        }
    }

    /// Takes the handle of a connection that ended out of use.
    pub(super) fn forget_http2(&self, ended: &std::sync::Weak<http2::SendRequest<Body>>) {
        let held = self.http2.load_full();
        if held
            .as_ref()
            .is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), ended.as_ptr()))
        {
            self.http2.compare_and_swap(&held, None);
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        let mut connection = match self.http1.take() {
            Some(connection) => connection,
            None => match Pooled::connect(&self.dialer).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.reconnect.notify_one();
                    return Err(self.unreachable(request, error));
                }
            },
        };
        self.origin_form(&mut request);
        *request.version_mut() = Version::HTTP_11;
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| HyperBody {
                body,
                pooled: Some((connection, Arc::clone(self))),
            })),
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                Err(self.failed(unsent, false, error))
            }
        }
    }

    fn unreachable(&self, request: Request<Body>, error: crate::BoxError) -> DispatchError {
        DispatchError::new(DispatchErrorKind::Connect, error).with_request(request)
    }

    fn failed(
        &self,
        unsent: Option<Request<Body>>,
        is_refused: bool,
        error: hyper::Error,
    ) -> DispatchError {
        match unsent {
            Some(request) => {
                DispatchError::new(DispatchErrorKind::Refused, error).with_request(request)
            }
            None if is_refused => DispatchError::new(DispatchErrorKind::Refused, error),
            None => DispatchError::new(DispatchErrorKind::Reset, error),
        }
    }

    /// HTTP/2 wants scheme and authority in the URI.
    fn absolute_form(&self, request: &mut Request<Body>) {
        let is_tls = self.dialer.context.cluster.tls.is_some();
        let scheme = if is_tls {
            uri::Scheme::HTTPS
        } else {
            uri::Scheme::HTTP
        };
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(scheme);
        if parts.authority.is_none() {
            let host = request
                .headers()
                .get(header::HOST)
                .and_then(|host| host.to_str().ok());
            let authority = host.and_then(|host| host.parse().ok());
            parts.authority =
                authority.or_else(|| self.dialer.context.address.to_string().parse().ok());
        }
        if parts.path_and_query.is_none() {
            parts.path_and_query = Some(uri::PathAndQuery::from_static("/"));
        }
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }

    /// HTTP/1.1 wants the path alone, and the authority in `host`.
    fn origin_form(&self, request: &mut Request<Body>) {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(authority) = parts.authority
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        let path = parts
            .path_and_query
            .unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    }
}

/// Whether the server says that it did not process the stream.
fn is_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}

/// The body of a response; gives an HTTP/1.1 connection back when it has ended.
pub struct HyperBody {
    body: Incoming,
    pooled: Option<(Pooled, Arc<Shared>)>,
}

impl Drop for HyperBody {
    fn drop(&mut self) {
        // A body that was not read to its end leaves a connection that hyper closes; the pool
        // does not hand out closed ones.
        if let Some((connection, shared)) = self.pooled.take() {
            shared.http1.put(connection);
        }
    }
}

impl fmt::Debug for HyperBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.body.fmt(f)
    }
}

impl http_body::Body for HyperBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
