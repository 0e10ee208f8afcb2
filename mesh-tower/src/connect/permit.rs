//! Permits for connections of one endpoint, and for requests that wait for one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::cluster::Signals;

/// How many connections one endpoint has.
#[derive(Clone)]
pub(super) struct Connections {
    signals: Arc<Signals>,
    open: Arc<AtomicU32>,
}

/// A connection that is open, or being made.
pub(super) struct ConnectionPermit(Connections);

/// A request that waits for a connection.
pub(super) struct WaitPermit(Arc<Signals>);

impl Connections {
    pub(super) fn new(signals: Arc<Signals>) -> Self {
        Self {
            signals,
            open: Arc::default(),
        }
    }

    /// Permits one more, unless there are as many as there may be.
    pub(super) fn permit(&self) -> Option<ConnectionPermit> {
        let held = self.open.fetch_add(1, Relaxed);
        if self.signals.connections.try_connect(held) {
            return Some(ConnectionPermit(self.clone()));
        }
        self.open.fetch_sub(1, Relaxed);
        None
    }

    /// Permits the one that keeps the endpoint ready: those before it may still be draining.
    pub(super) fn permit_kept(&self) -> ConnectionPermit {
        self.open.fetch_add(1, Relaxed);
        // Counted as a first one, which always is.
        self.signals.connections.try_connect(0);
        ConnectionPermit(self.clone())
    }

    /// Lets a request wait, unless as many wait as may.
    pub(super) fn wait(&self) -> Option<WaitPermit> {
        let is_permitted = self.signals.connections.try_wait();
        is_permitted.then(|| WaitPermit(Arc::clone(&self.signals)))
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Connections { signals, open } = &self.0;
        open.fetch_sub(1, Relaxed);
        signals.connections.disconnected();
        signals.freed.notify_waiters();
    }
}

impl Drop for WaitPermit {
    fn drop(&mut self) {
        self.0.connections.waited();
    }
}
