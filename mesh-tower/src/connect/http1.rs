//! HTTP/1.1 connections of one endpoint.
//!
//! A request takes an idle one, makes another while there may be more, or waits for one that is given
//! back: those that wait are served in their order.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::config::ConnectionOptions;
use tokio::{sync::oneshot, time::Instant};

use super::dial::Stream;
use crate::{Body, BoxError};

/// Idle connections kept for an endpoint at most.
const IDLE_MAX: usize = 128;

/// An idle connection older than this is closed, where the cluster says nothing else: shorter than the
/// idle timeouts of common servers behind common balancers, so that the client closes first.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// See the [module](self).
pub(super) struct Pool {
    options: Limits,
    state: Mutex<State>,
}

/// How long a connection is used.
struct Limits {
    /// Zero is for ever.
    idle: Duration,
    age: Option<Duration>,
    requests: Option<u32>,
}

#[derive(Default)]
struct State {
    /// The newest last.
    idle: Vec<Pooled>,
    waiting: VecDeque<oneshot::Sender<Pooled>>,
}

/// A connection, and how it was used.
pub(super) struct Pooled {
    pub(super) sender: http1::SendRequest<Body>,
    made: Instant,
    used: Instant,
    requests: u32,
}

impl Pooled {
    /// A connection on `stream`, driven by a task of its own.
    pub(super) async fn handshake(stream: Stream) -> Result<Self, BoxError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let now = Instant::now();
        Ok(Self {
            sender,
            made: now,
            used: now,
            requests: 0,
        })
    }
}

impl Limits {
    /// Whether `pooled` can take another request.
    fn allow(&self, pooled: &Pooled, now: Instant) -> bool {
        let is_idle = !self.idle.is_zero() && now.duration_since(pooled.used) >= self.idle;
        let is_old = self
            .age
            .is_some_and(|age| now.duration_since(pooled.made) >= age);
        let is_used_up = self.requests.is_some_and(|max| pooled.requests >= max);
        !pooled.sender.is_closed() && !is_idle && !is_old && !is_used_up
    }
}

impl Pool {
    pub(super) fn new(options: &ConnectionOptions) -> Self {
        Self {
            options: Limits {
                idle: options.idle_timeout.unwrap_or(IDLE_TIMEOUT),
                age: options.max_connection_duration,
                requests: options.max_requests_per_connection,
            },
            state: Mutex::default(),
        }
    }

    /// The most recently used connection that can take a request now.
    pub(super) fn take(&self) -> Option<Pooled> {
        self.take_from(&mut self.lock())
    }

    /// The same, or the place of one that waits for the next.
    pub(super) fn take_or_wait(&self) -> Result<Pooled, oneshot::Receiver<Pooled>> {
        let mut state = self.lock();
        self.take_from(&mut state).ok_or_else(|| {
            // Those who went away make room.
            state.waiting.retain(|waiting| !waiting.is_closed());
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        })
    }

    fn take_from(&self, state: &mut State) -> Option<Pooled> {
        let now = Instant::now();
        state.idle.retain(|pooled| self.options.allow(pooled, now));
        // One whose body has just ended may not be ready yet; it stays for the next request.
        let ready = state
            .idle
            .iter()
            .rposition(|pooled| pooled.sender.is_ready())?;
        Some(state.idle.remove(ready))
    }

    /// Closes what was idle for too long; returns after what time to look again.
    pub(super) fn reap(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        state.idle.retain(|pooled| self.options.allow(pooled, now));
        Some(self.options.idle).filter(|idle| !idle.is_zero())
    }

    /// Closes what is idle.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.idle.clear();
        state.waiting.clear();
    }

    /// Gives `pooled` to the request that waits longest, or keeps it for another one, unless it is
    /// used up or there are enough.
    pub(super) fn put(&self, mut pooled: Pooled) {
        let now = Instant::now();
        pooled.used = now;
        if !self.options.allow(&pooled, now) {
            return;
        }
        let mut state = self.lock();
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(pooled) {
                Ok(()) => return,
                Err(back) => pooled = back,
            }
        }
        if state.idle.len() < IDLE_MAX {
            state.idle.push(pooled);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pooled {
    /// Counts a request that is about to be sent.
    pub(super) fn begin(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }
}
