//! Each ready endpoint in turn, from a random start (gRPC `round_robin`).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{ClusterEndpoint, scan};

/// Round robin over the ready endpoints.
#[derive(Debug)]
pub struct RoundRobin {
    next: AtomicUsize,
}

impl RoundRobin {
    pub(super) fn new(start: u64) -> Self {
        Self {
            next: AtomicUsize::new(start as usize),
        }
    }

    pub(super) fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
    ) -> Option<usize> {
        if endpoints.is_empty() {
            return None;
        }
        let start = self.next.fetch_add(1, Relaxed) % endpoints.len();
        let picked = scan(endpoints, previous, start)?;
        // A gap of unready endpoints is skipped for everybody, or the endpoint behind the gap
        // would take the whole gap's share.
        let skipped = (picked + endpoints.len() - start) % endpoints.len();
        if skipped > 0 {
            self.next.fetch_add(skipped, Relaxed);
        }
        Some(picked)
    }
}
