//! Counters of endpoints and clusters that outlive snapshots.
//!
//! Stage: written by requests and by connections, read by pickers. Each struct has a cache line of
//! its own, so that two endpoints never slow each other.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Whether an endpoint can take a request now (gRPC connectivity).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Connectivity {
    /// No connection was wanted yet.
    Idle = 0,
    /// The first connection, or one after a failure, is being made.
    Connecting = 1,
    /// Requests can be sent.
    Ready = 2,
    /// The last attempt to connect failed; the next waits for its backoff.
    TransientFailure = 3,
}

/// What is known of one endpoint. Belongs to the endpoint's address, not to a snapshot.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct EndpointStats {
    in_flight: AtomicU32,
    connectivity: AtomicU8,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl EndpointStats {
    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// A request begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request that began has ended.
    pub fn end(&self, success: bool) {
        self.in_flight.fetch_sub(1, Relaxed);
        let counter = if success {
            &self.succeeded
        } else {
            &self.failed
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Requests that ended well, since the process started.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Relaxed)
    }

    /// Requests that ended badly, since the process started.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Whether a request can be sent.
    pub fn is_ready(&self) -> bool {
        self.connectivity.load(Relaxed) == Connectivity::Ready as u8
    }

    /// Current connectivity.
    pub fn connectivity(&self) -> Connectivity {
        match self.connectivity.load(Relaxed) {
            0 => Connectivity::Idle,
            1 => Connectivity::Connecting,
            2 => Connectivity::Ready,
            _ => Connectivity::TransientFailure,
        }
    }

    /// Sets the connectivity; only the owner of the connection does this.
    pub fn set_connectivity(&self, connectivity: Connectivity) {
        self.connectivity.store(connectivity as u8, Relaxed);
    }
}
