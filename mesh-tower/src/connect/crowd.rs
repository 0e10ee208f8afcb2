//! More HTTP/2 connections to an endpoint whose first one has no room.
//!
//! A server says how many streams a connection may have (`SETTINGS_MAX_CONCURRENT_STREAMS`). As long
//! as the endpoint has at most half as many requests in flight, nothing is counted here. Beyond that
//! each stream is, by its connection; those that were not are fewer than half, so that there are
//! always counted ones whose end tells a waiting request of room.
//!
//! A request that finds no room asks for another connection, up to `max_connections_per_host`, and
//! waits, up to `max_pending_requests`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    driver::Driver,
    endpoint::HyperBody,
    http2::{self, Connection},
    permit::{ConnectionPermit, WaitPermit},
    shared::{Shared, gone},
};
use crate::{
    Body, BoxError, Outgoing,
    call::CONNECTING_WAIT_MAX,
    error::{DispatchError, DispatchErrorKind},
    tls::Alpn,
    within::within,
};

/// A connection beside the first one ends when it had no stream for this long.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be made.
const PAUSE: Duration = Duration::from_secs(1);

/// The connections of an endpoint beside its first one, and who waits for room.
#[derive(Default)]
pub(super) struct Crowd {
    more: Mutex<Vec<Arc<Connection>>>,
    waiting: AtomicU32,
    /// Whether one is being made, or has just failed to be.
    is_opening: AtomicBool,
    pub(super) room: Notify,
}

/// A counted stream on a connection.
pub(super) struct Place {
    pub(super) connection: Arc<Connection>,
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.counted.fetch_sub(1, Relaxed);
        self.shared.crowd.room.notify_one();
    }
}

/// Where a request of a crowded endpoint can go.
pub(super) enum Found {
    Place(Box<Place>),
    /// Nowhere, at the moment.
    Full,
    /// There is no connection.
    NoConnection,
}

impl Crowd {
    /// Ends the connections when their streams have ended.
    pub(super) fn clear(&self) {
        lock(&self.more).clear();
        self.room.notify_waiters();
    }
}

/// Whether streams have to be counted from here on.
#[inline]
pub(super) fn is_crowded(in_flight: u32, connection: &Connection) -> bool {
    in_flight > connection.streams_max() / 2
}

/// Finds room for a request that is in flight at its endpoint already, and that is `waiting` of those
/// that wait: 0 or 1.
pub(super) fn find(shared: &Arc<Shared>, first: Option<&Arc<Connection>>, waiting: u32) -> Found {
    let crowd = &shared.crowd;
    let mut more = lock(&crowd.more);
    more.retain(|connection| connection.is_usable());
    let counted = |connection: &Arc<Connection>| connection.counted.load(Relaxed);
    let all: u32 = first.into_iter().chain(more.iter()).map(counted).sum();
    let known = 1 + all + crowd.waiting.load(Relaxed) - waiting;
    let not_counted = shared.in_flight().saturating_sub(known);
    let has_room = |connection: &Arc<Connection>, others: u32| {
        u64::from(counted(connection)) + u64::from(others) < u64::from(connection.streams_max())
    };
    let found = match first {
        Some(first) if has_room(first, not_counted) => Some(first),
        _ => more.iter().find(|connection| has_room(connection, 0)),
    };
    // With nothing counted nobody would tell of room: the connection itself keeps the request.
    let found = found.or_else(|| first.filter(|_| all == 0));
    match found {
        Some(connection) => {
            connection.counted.fetch_add(1, Relaxed);
            Found::Place(Box::new(Place {
                connection: Arc::clone(connection),
                shared: Arc::clone(shared),
            }))
        }
        None if first.is_none() && more.is_empty() => Found::NoConnection,
        None => {
            let connections = more.len() as u32 + u32::from(first.is_some());
            drop(more);
            open(shared, connections);
            Found::Full
        }
    }
}

/// Makes another connection, unless there are enough or one is being made.
fn open(shared: &Arc<Shared>, connections: u32) {
    let limits = &shared.dialer.connections;
    if connections >= limits.signals().connections.http2_per_host()
        || shared.is_gone()
        || shared.crowd.is_opening.swap(true, Relaxed)
    {
        return;
    }
    let Some(permit) = limits.permit() else {
        shared.crowd.is_opening.store(false, Relaxed);
        return;
    };
    tokio::spawn(run(Arc::clone(shared), permit));
}

/// Makes and drives one more connection.
async fn run(shared: Arc<Shared>, permit: ConnectionPermit) {
    let crowd = &shared.crowd;
    let made = connect(&shared, permit).await;
    if made.is_err() {
        sleep(PAUSE).await;
    }
    crowd.is_opening.store(false, Relaxed);
    let Ok((connection, mut driver)) = made else {
        crowd.room.notify_waiters();
        return;
    };
    let connection = Arc::new(connection);
    let held = Arc::downgrade(&connection);
    lock(&crowd.more).push(Arc::clone(&connection));
    drop(connection);
    if shared.is_gone() {
        crowd.clear();
    }
    crowd.room.notify_waiters();
    let mut was_idle = false;
    loop {
        tokio::select! {
            _ = &mut driver => break,
            () = sleep(IDLE / 2) => {
                let is_idle = held.upgrade().is_none_or(|held| held.counted.load(Relaxed) == 0);
                if is_idle && was_idle {
                    forget(crowd, &held);
                }
                was_idle = is_idle;
            }
        }
    }
    forget(crowd, &held);
    crowd.room.notify_waiters();
}

async fn connect(
    shared: &Shared,
    permit: ConnectionPermit,
) -> Result<(Connection, Driver), BoxError> {
    let stream = shared.dialer.dial(Alpn::Http2, permit).await?;
    http2::handshake(stream, false, &shared.dialer.context.cluster).await
}

fn forget(crowd: &Crowd, ended: &Weak<Connection>) {
    lock(&crowd.more).retain(|held| !std::ptr::eq(Arc::as_ptr(held), ended.as_ptr()));
}

/// Waits for room and sends.
pub(super) async fn send_when_there_is_room(
    shared: Arc<Shared>,
    request: Request<Body>,
    permit: WaitPermit,
) -> Result<Response<HyperBody>, DispatchError> {
    let crowd = &shared.crowd;
    crowd.waiting.fetch_add(1, Relaxed);
    let waiting = Waiting(&crowd.waiting);
    let until = Instant::now() + CONNECTING_WAIT_MAX;
    let place = loop {
        let room = crowd.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        if shared.is_gone() {
            return Err(gone(request));
        }
        match find(&shared, shared.first().as_ref(), 1) {
            Found::Place(place) => break place,
            Found::NoConnection => return Err(gone(request)),
            Found::Full => {}
        }
        if within(Some(until), room).await.is_none() {
            return Err(full(&shared, &format!("for {CONNECTING_WAIT_MAX:?}")));
        }
    };
    drop((waiting, permit));
    let mut outgoing = Outgoing::new(request);
    let mut exchange = shared.begin_at(place, &mut outgoing);
    std::future::poll_fn(|cx| {
        use crate::cluster::Exchange as _;
        exchange.poll_response(cx)
    })
    .await
}

struct Waiting<'w>(&'w AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Why a request is not sent although there is a connection.
pub(super) fn full(shared: &Shared, detail: &str) -> DispatchError {
    let address = shared.dialer.context.address;
    let waiting_max = shared
        .dialer
        .connections
        .signals()
        .connections
        .waiting_max();
    DispatchError::new(
        DispatchErrorKind::Overflow,
        format!(
            "all connections to {address} that circuit_breakers allows are busy {detail} \
             (max_pending_requests is {waiting_max})"
        ),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
