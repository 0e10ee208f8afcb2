//! Idle HTTP/1.1 connections of one endpoint.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::dial::Dialer;
use crate::{Body, BoxError, tls::Alpn};

/// Idle connections kept for an endpoint at most.
const IDLE_MAX: usize = 128;

/// An idle connection older than this is closed: shorter than the idle timeouts of common servers
/// behind common balancers, so that the client closes first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// A stack of idle connections, the newest on top.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Pooled>>,
}

/// A connection and when it was last used.
pub(super) struct Pooled {
    pub(super) sender: http1::SendRequest<Body>,
    used: Instant,
}

impl Pooled {
    /// A new connection, driven by a task of its own.
    pub(super) async fn connect(dialer: &Dialer) -> Result<Self, BoxError> {
        let stream = dialer.dial(Alpn::Http1).await?;
        Self::handshake(stream).await
    }

    pub(super) async fn handshake(stream: super::dial::Stream) -> Result<Self, BoxError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            used: Instant::now(),
        })
    }
}

impl Pool {
    /// The most recently used connection that can take a request now.
    pub(super) fn take(&self) -> Option<Pooled> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        idle.retain(|pooled| {
            !pooled.sender.is_closed() && now.duration_since(pooled.used) < IDLE_TIMEOUT
        });
        // One whose body has just ended may not be ready yet; it stays for the next request.
        let ready = idle.iter().rposition(|pooled| pooled.sender.is_ready())?;
        Some(idle.remove(ready))
    }

    /// Closes what is idle.
    pub(super) fn clear(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
    }

    /// Keeps `pooled` for another request, unless it is closed or there are enough.
    pub(super) fn put(&self, mut pooled: Pooled) {
        if pooled.sender.is_closed() {
            return;
        }
        pooled.used = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(pooled);
        }
    }
}
