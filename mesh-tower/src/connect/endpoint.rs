//! The connections of one address, and how a request is sent on them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::{config::HttpVersion, stats::Connectivity};
use tokio::task::AbortHandle;

use super::{
    crowd::Place,
    dial::Dialer,
    http1::Pooled,
    http2::{self, Http2Body},
    keeper,
    shared::{Shared, gone},
};
use crate::{
    BoxError, Outgoing,
    cluster::{Attached, BoxExchange, EndpointContext, EndpointService, Exchange},
    error::DispatchError,
    identity::Identity,
    telemetry::Protocol,
    tls::material::Materials,
};

/// Connections to one address.
pub struct HyperEndpoint {
    context: EndpointContext,
    identity: Option<Identity>,
    materials: Arc<Materials>,
    /// Made when it is first wanted: most endpoints of a large mesh never are. `None` when the
    /// endpoint left its cluster before.
    used: OnceLock<Option<Box<Used>>>,
}

/// An endpoint that was wanted.
struct Used {
    shared: Arc<Shared>,
    keeper: OnceLock<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HyperEndpoint {
    pub(super) fn new(
        context: EndpointContext,
        identity: Option<&Identity>,
        materials: &Arc<Materials>,
    ) -> Self {
        Self {
            context,
            identity: identity.cloned(),
            materials: Arc::clone(materials),
            used: OnceLock::new(),
        }
    }

    fn used(&self) -> Option<&Used> {
        let used = self.used.get_or_init(|| {
            let dialer = Dialer::new(
                self.context.clone(),
                self.identity.as_ref(),
                &self.materials,
            );
            let shared = Shared::new(dialer);
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
        if shared.is_dormant() {
            shared.wanted.notify_one();
        }
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
        shared.leave();
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
        if is_http1 && !shared.is_resting() {
            HyperExchange::other(shared.send_http1(request))
        } else {
            HyperExchange::other(shared.send_http2_on_demand(request))
        }
    }

    fn attach(&self, outgoing: &mut Outgoing<'_>) -> Option<Attached<HyperExchange>> {
        let used = self.used.get()?.as_deref()?;
        used.shared.attach(outgoing)
    }
}

/// A request on a connection, or on its way to one.
pub struct HyperExchange {
    way: Way,
}

enum Way {
    /// With its place on a connection, where streams are counted.
    Http2(http2::Exchange, Option<Box<Place>>),
    /// Over HTTP/1.1, or over a connection that is yet to be made.
    Other(BoxExchange<HyperBody>),
}

impl HyperExchange {
    pub(super) fn http2(exchange: http2::Exchange, place: Option<Box<Place>>) -> Self {
        let way = Way::Http2(exchange, place);
        Self { way }
    }

    pub(super) fn other(
        exchange: impl Future<Output = Result<Response<HyperBody>, DispatchError>> + Send + 'static,
    ) -> Self {
        let way = Way::Other(Box::pin(exchange));
        Self { way }
    }

    pub(super) fn failed(error: DispatchError) -> Self {
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
            Way::Http2(exchange, place) => {
                let response = ready!(exchange.poll_response(cx))?;
                let place = place.take();
                Poll::Ready(Ok(response.map(|body| HyperBody {
                    kind: Kind::Http2(body, place),
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

/// The body of a response; gives an HTTP/1.1 connection back when it has ended.
pub struct HyperBody {
    kind: Kind,
}

enum Kind {
    Http2(
        Http2Body,
        #[expect(dead_code, reason = "held")] Option<Box<Place>>,
    ),
    Http1(Incoming, Option<(Pooled, Arc<Shared>)>),
}

impl HyperBody {
    pub(super) fn http1(body: Incoming, connection: Pooled, shared: Arc<Shared>) -> Self {
        Self {
            kind: Kind::Http1(body, Some((connection, shared))),
        }
    }
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
            Kind::Http2(body, _) => body.fmt(f),
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
            Kind::Http2(body, _) => Pin::new(body).poll_frame(cx),
            Kind::Http1(body, _) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Http2(body, _) => body.is_end_stream(),
            Kind::Http1(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Http2(body, _) => body.size_hint(),
            Kind::Http1(body, _) => body.size_hint(),
        }
    }
}
