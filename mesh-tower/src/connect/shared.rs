//! What the keeper of an endpoint and the requests to it share: its connections.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;
use http::{Request, Response, Version, uri::Scheme};
use mesh_core::stats::Connectivity;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    crowd::{self, Crowd, Found, Place},
    dial::Dialer,
    endpoint::{HyperBody, HyperExchange},
    http1::{Pool, Pooled},
    http2::{self, Admission},
};
use crate::{
    Body, BoxError, Outgoing,
    call::CONNECTING_WAIT_MAX,
    cluster::{Attached, Exchange as _},
    error::{DispatchError, DispatchErrorKind},
    tls::{Alpn, TlsError},
    within::within,
};

/// Streams that a connection must allow to have one that is no request: of one, requests would have none.
const ATTACHED_STREAMS_MIN: u32 = 2;

/// See the [module](self).
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    /// The HTTP/2 connection for new requests.
    http2: ArcSwapOption<http2::Connection>,
    /// Those beside it.
    pub(super) crowd: Crowd,
    /// Idle HTTP/1.1 connections.
    pub(super) http1: Pool,
    /// Asks the keeper for a new connection, or to end.
    pub(super) reconnect: Notify,
    /// Asks the keeper for a connection that takes the place of one that is still good.
    pub(super) renew: Notify,
    /// Wakes the keeper of an endpoint that is connected on demand.
    pub(super) wanted: Notify,
    /// Whether it sleeps until then.
    is_dormant: AtomicBool,
    /// Whether the keeper ended the connection because nobody used it: the next request asks for
    /// another one.
    is_idle: AtomicBool,
    /// An HTTP/2 connection came, or none could be made.
    pub(super) settled: Notify,
    /// One on-demand HTTP/2 connect at a time.
    on_demand: tokio::sync::Mutex<()>,
    /// Left its cluster.
    is_gone: AtomicBool,
}

impl Shared {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self {
            http2: ArcSwapOption::empty(),
            crowd: Crowd::default(),
            http1: Pool::new(&dialer.context.cluster.connection),
            reconnect: Notify::new(),
            renew: Notify::new(),
            wanted: Notify::new(),
            is_dormant: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            settled: Notify::new(),
            on_demand: tokio::sync::Mutex::new(()),
            is_gone: AtomicBool::new(false),
            dialer,
        }
    }

    /// Whether no connection is to be made any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    /// The endpoint left its cluster: streams hold their connections until they end.
    pub(super) fn leave(&self) {
        self.is_gone.store(true, Relaxed);
        self.reconnect.notify_one();
        self.http2.store(None);
        self.crowd.clear();
        self.http1.clear();
        self.settled.notify_waiters();
    }

    /// Whether the keeper waits until a request comes to the endpoint.
    pub(super) fn is_dormant(&self) -> bool {
        self.is_dormant.load(Relaxed)
    }

    /// Waits until a request comes to the endpoint, or it leaves.
    pub(super) async fn sleep_until_wanted(&self) {
        self.is_dormant.store(true, Relaxed);
        self.set_connectivity(Connectivity::Idle);
        while !self.is_gone() {
            tokio::select! {
                () = self.wanted.notified() => break,
                // Said of the connection that was lost, or because it leaves.
                () = self.reconnect.notified() => {}
            }
        }
        self.is_dormant.store(false, Relaxed);
        self.set_connectivity(Connectivity::Connecting);
    }

    /// Requests in flight, with those that wait.
    #[inline]
    pub(super) fn in_flight(&self) -> u32 {
        self.dialer.context.stats.in_flight()
    }

    /// Reports the connectivity, unless somebody else may have the address by now.
    pub(super) fn set_connectivity(&self, connectivity: Connectivity) {
        if !self.is_gone() {
            self.dialer.context.set_connectivity(connectivity);
        }
    }

    /// Reports that no connection can be made, as [`set_connectivity`](Self::set_connectivity) does;
    /// whether the last one failed otherwise.
    pub(super) fn set_unreachable(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        let is_new = !self.is_gone() && self.dialer.context.set_unreachable(error);
        self.settled.notify_waiters();
        is_new
    }

    /// The HTTP/2 connection for new requests.
    pub(super) fn first(&self) -> Option<Arc<http2::Connection>> {
        self.http2.load_full()
    }

    /// Takes a new HTTP/2 connection for the requests to come.
    pub(super) fn put_http2(&self, connection: http2::Connection) -> Weak<http2::Connection> {
        let connection = Arc::new(connection);
        let held = Arc::downgrade(&connection);
        self.is_idle.store(false, Relaxed);
        self.http2.store(Some(connection));
        if self.is_gone() {
            self.http2.store(None);
        }
        self.settled.notify_waiters();
        self.crowd.room.notify_waiters();
        held
    }

    /// Ends a connection that nobody uses. The endpoint stays ready: the next request connects.
    pub(super) fn rest(&self, held: &Weak<http2::Connection>) {
        self.is_idle.store(true, Relaxed);
        self.forget_http2(held);
    }

    /// Whether the next request has the keeper connect again.
    pub(super) fn is_resting(&self) -> bool {
        self.is_idle.load(Relaxed)
    }

    /// Begins a stream if there is an HTTP/2 connection.
    #[inline]
    pub(super) fn begin_http2(
        self: &Arc<Self>,
        outgoing: &mut Outgoing<'_>,
    ) -> Option<HyperExchange> {
        let connection = self.http2.load();
        let connection = connection.as_ref()?;
        if crowd::is_crowded(self.in_flight(), connection) {
            return self.begin_in_crowd(connection, outgoing);
        }
        Some(self.begin_on(connection, None, outgoing))
    }

    /// The same where streams are counted.
    #[cold]
    fn begin_in_crowd(
        self: &Arc<Self>,
        first: &Arc<http2::Connection>,
        outgoing: &mut Outgoing<'_>,
    ) -> Option<HyperExchange> {
        match crowd::find(self, Some(first), 0) {
            Found::Place(place) => Some(self.begin_at(place, outgoing)),
            Found::NoConnection => None,
            Found::Full => Some(match self.dialer.connections.wait() {
                None => HyperExchange::failed(crowd::full(self, "and others wait")),
                Some(permit) => {
                    let request = outgoing.take_absolute();
                    let shared = Arc::clone(self);
                    HyperExchange::other(crowd::send_when_there_is_room(shared, request, permit))
                }
            }),
        }
    }

    /// Begins a stream that is counted.
    pub(super) fn begin_at(&self, place: Box<Place>, outgoing: &mut Outgoing<'_>) -> HyperExchange {
        let connection = Arc::clone(&place.connection);
        self.begin_on(&connection, Some(place), outgoing)
    }

    #[inline]
    fn begin_on(
        &self,
        connection: &Arc<http2::Connection>,
        place: Option<Box<Place>>,
        outgoing: &mut Outgoing<'_>,
    ) -> HyperExchange {
        self.make_absolute(outgoing);
        let begun = match connection.admit() {
            Admission::Yes => connection.begin(outgoing),
            Admission::Renew => {
                self.renew.notify_one();
                connection.begin(outgoing)
            }
            Admission::No => {
                let reason = "the connection has taken max_requests_per_connection";
                let refused = DispatchError::new(DispatchErrorKind::Refused, reason);
                Err(refused.unsent(outgoing.take()))
            }
        };
        begun.map_or_else(
            |error| {
                self.replace_http2(connection);
                HyperExchange::failed(error)
            },
            |exchange| HyperExchange::http2(exchange, place),
        )
    }

    /// Begins a stream that is no request, if there is an HTTP/2 connection with room for both.
    pub(super) fn attach(
        self: &Arc<Self>,
        outgoing: &mut Outgoing<'_>,
    ) -> Option<Attached<HyperExchange>> {
        let connection = self.first()?;
        if connection.streams_max() < ATTACHED_STREAMS_MIN {
            return None;
        }
        self.make_absolute(outgoing);
        let exchange = connection.begin(outgoing).ok()?;
        let (held, shared) = (Arc::downgrade(&connection), Arc::downgrade(self));
        let is_current = move || {
            let (Some(held), Some(shared)) = (held.upgrade(), shared.upgrade()) else {
                return false;
            };
            let first = shared.first();
            first.is_some_and(|first| Arc::ptr_eq(&first, &held)) && held.is_usable()
        };
        Some(Attached {
            exchange: HyperExchange::http2(exchange, None),
            is_current: Box::new(is_current),
        })
    }

    /// `ended` takes no more requests (GOAWAY, closed, used up): those that come wait for the keeper to
    /// make another one, unless that has happened.
    fn replace_http2(&self, ended: &Arc<http2::Connection>) {
        let before = self.http2.compare_and_swap(ended, None);
        if !before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, ended))
        {
            return;
        }
        self.crowd.room.notify_waiters();
        if ended.is_kept {
            self.set_connectivity(Connectivity::Connecting);
            if self.http2.load().is_some() {
                // The keeper was faster.
                self.set_connectivity(Connectivity::Ready);
            }
        }
        self.reconnect.notify_one();
    }

    /// For a gRPC request to an endpoint whose connections are HTTP/1.1 so far, or which rests.
    pub(super) async fn send_http2_on_demand(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        if self.is_resting() {
            self.wake().await;
        } else if let Err(error) = self.connect_on_demand().await {
            return Err(unreachable(error, request));
        }
        let mut outgoing = Outgoing::new(request);
        match self.begin_http2(&mut outgoing) {
            Some(mut exchange) => std::future::poll_fn(|cx| exchange.poll_response(cx)).await,
            None => {
                let error = "there is no connection".into();
                Err(unreachable(error, outgoing.take()))
            }
        }
    }

    /// Has the keeper connect again, and waits for it.
    async fn wake(&self) {
        let until = Instant::now() + CONNECTING_WAIT_MAX;
        let settled = self.settled.notified();
        tokio::pin!(settled);
        settled.as_mut().enable();
        if self.http2.load().is_none() && !self.is_gone() {
            self.reconnect.notify_one();
            within(Some(until), settled).await;
        }
    }

    async fn connect_on_demand(self: &Arc<Self>) -> Result<(), BoxError> {
        let _guard = self.on_demand.lock().await;
        if self.http2.load().is_some() {
            return Ok(());
        }
        let permit = self.dialer.connections.permit_kept();
        let stream = self.dialer.dial(Alpn::Http2, permit).await?;
        let cluster = &self.dialer.context.cluster;
        let (connection, driver) = http2::handshake(stream, false, cluster).await?;
        let held = self.put_http2(connection);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            _ = driver.await;
            shared.forget_http2(&held);
        });
        Ok(())
    }

    /// Takes the handle of a connection that ended out of use.
    pub(super) fn forget_http2(&self, ended: &Weak<http2::Connection>) {
        let held = self.http2.load_full();
        if held
            .as_ref()
            .is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), ended.as_ptr()))
        {
            self.http2.compare_and_swap(&held, None);
            self.crowd.room.notify_waiters();
        }
    }

    pub(super) async fn send_http1(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<HyperBody>, DispatchError> {
        let mut connection = match self.http1_connection().await {
            Ok(connection) => connection,
            Err(error) if error.kind() == DispatchErrorKind::Connect => {
                self.reconnect.notify_one();
                return Err(error.unsent(request));
            }
            Err(error) => return Err(error),
        };
        connection.begin();
        let mut outgoing = Outgoing::new(request);
        outgoing.make_origin();
        let mut request = outgoing.take();
        *request.version_mut() = Version::HTTP_11;
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| HyperBody::http1(body, connection, self))),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    let error = reason(error.into_error());
                    Err(DispatchError::new(DispatchErrorKind::Refused, error).unsent(unsent))
                }
                None => {
                    let error = reason(error.into_error());
                    Err(DispatchError::new(DispatchErrorKind::Reset, error))
                }
            },
        }
    }

    /// An idle connection, a new one while there may be more, or the next that is given back.
    async fn http1_connection(&self) -> Result<Pooled, DispatchError> {
        if let Some(idle) = self.http1.take() {
            return Ok(idle);
        }
        if let Some(made) = self.connect_http1().await {
            return made;
        }
        let Some(_waiting) = self.dialer.connections.wait() else {
            return Err(crowd::full(self, "and others wait"));
        };
        let until = Instant::now() + CONNECTING_WAIT_MAX;
        loop {
            let mut given = match self.http1.take_or_wait() {
                Ok(idle) => return Ok(idle),
                Err(given) => given,
            };
            loop {
                let freed = self.dialer.connections.signals().freed.notified();
                tokio::pin!(freed);
                // Before the look at the limits, so that a change between the two is not missed.
                freed.as_mut().enable();
                if let Some(made) = self.connect_http1().await {
                    return made;
                }
                tokio::select! {
                    given = &mut given => {
                        // It may be closed meanwhile, or all are.
                        let Ok(mut given) = given else { break };
                        if given.sender.ready().await.is_err() {
                            break;
                        }
                        return Ok(given);
                    }
                    () = freed => {}
                    () = sleep_until(until) => {
                        let detail = format!("for {CONNECTING_WAIT_MAX:?}");
                        return Err(crowd::full(self, &detail));
                    }
                }
            }
            if self.is_gone() {
                let reason = "the endpoint left its cluster";
                return Err(DispatchError::new(DispatchErrorKind::Connect, reason));
            }
        }
    }

    /// `None` when there are as many connections as there may be.
    async fn connect_http1(&self) -> Option<Result<Pooled, DispatchError>> {
        let permit = self.dialer.connections.permit()?;
        let made = async {
            let stream = self.dialer.dial(Alpn::Http1, permit).await?;
            Pooled::handshake(stream).await
        };
        let made = made.await;
        Some(made.map_err(|error| DispatchError::new(DispatchErrorKind::Connect, error)))
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

pub(super) fn gone(request: Request<Body>) -> DispatchError {
    let error = DispatchError::new(DispatchErrorKind::Refused, "the endpoint left its cluster");
    error.unsent(request)
}

fn unreachable(error: BoxError, request: Request<Body>) -> DispatchError {
    DispatchError::new(DispatchErrorKind::Connect, error).unsent(request)
}

/// Why a request failed: where the server refused our certificate, of which TLS 1.3 tells by the first
/// reading, that.
#[cold]
fn reason(error: hyper::Error) -> BoxError {
    TlsError::in_chain(&error).map_or_else(|| error.into(), Into::into)
}
