//! Connections of one cluster, and requests that wait for one, as counters with limits.
//!
//! Belongs to the cluster's name, not to a snapshot: limits change while connections are open, and a
//! lower one closes none. Counted when a connection is made or waited for, never by a request that
//! finds one.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    config::{CircuitBreakers, HTTP2_CONNECTIONS_MAX},
    sync::{AtomicU32, AtomicU64},
};

/// Counters of one cluster (Envoy `max_connections`, `max_pending_requests`; gRFC A105).
#[derive(Debug)]
pub struct ConnectionCircuit {
    connections: AtomicU32,
    connections_max: AtomicU32,
    waiting: AtomicU32,
    waiting_max: AtomicU32,
    /// Of one endpoint; 0 is none.
    per_host_max: AtomicU32,
    overflowed: AtomicU64,
}

impl Default for ConnectionCircuit {
    fn default() -> Self {
        let circuit = Self {
            connections: AtomicU32::new(0),
            connections_max: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            waiting_max: AtomicU32::new(0),
            per_host_max: AtomicU32::new(0),
            overflowed: AtomicU64::new(0),
        };
        circuit.set_limits(&CircuitBreakers::default());
        circuit
    }
}

impl ConnectionCircuit {
    /// Follows the configuration.
    pub fn set_limits(&self, limits: &CircuitBreakers) {
        self.connections_max.store(limits.max_connections, Relaxed);
        self.waiting_max.store(limits.max_pending_requests, Relaxed);
        let per_host = limits.max_connections_per_host.unwrap_or(0);
        self.per_host_max.store(per_host, Relaxed);
    }

    /// Takes a permit for a connection of an endpoint that has `held`; give it back with
    /// [`disconnected`](Self::disconnected). The first one of an endpoint is always permitted, or
    /// endpoints that were connected early would keep the others from being used at all.
    pub fn try_connect(&self, held: u32) -> bool {
        let per_host = self.per_host_max.load(Relaxed);
        if held > 0 && per_host > 0 && held >= per_host {
            return false;
        }
        let limit = self.connections_max.load(Relaxed);
        let more = |count| (held == 0 || count < limit).then_some(count + 1);
        self.connections
            .fetch_update(Relaxed, Relaxed, more)
            .is_ok()
    }

    /// Gives back a permit of [`try_connect`](Self::try_connect).
    pub fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Takes a permit to wait for a connection; give it back with [`waited`](Self::waited). `false`
    /// when as many requests wait as may.
    pub fn try_wait(&self) -> bool {
        let limit = self.waiting_max.load(Relaxed);
        let more = |count| (count < limit).then_some(count + 1);
        let is_permitted = self.waiting.fetch_update(Relaxed, Relaxed, more).is_ok();
        if !is_permitted {
            self.overflowed.fetch_add(1, Relaxed);
        }
        is_permitted
    }

    /// Gives back a permit of [`try_wait`](Self::try_wait).
    pub fn waited(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// HTTP/2 connections that one endpoint may have.
    pub fn http2_per_host(&self) -> u32 {
        match self.per_host_max.load(Relaxed) {
            0 => HTTP2_CONNECTIONS_MAX,
            limit => limit.min(HTTP2_CONNECTIONS_MAX),
        }
    }

    /// Requests that may wait.
    pub fn waiting_max(&self) -> u32 {
        self.waiting_max.load(Relaxed)
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Requests that wait for a connection.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Requests that were refused because too many waited.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(connections: u32, waiting: u32, per_host: Option<u32>) -> ConnectionCircuit {
        let circuit = ConnectionCircuit::default();
        circuit.set_limits(&CircuitBreakers {
            max_connections: connections,
            max_pending_requests: waiting,
            max_connections_per_host: per_host,
            ..CircuitBreakers::default()
        });
        circuit
    }

    #[test]
    fn connections_are_limited_but_each_endpoint_gets_its_first() {
        let circuit = circuit(2, 0, None);
        assert!(circuit.try_connect(0) && circuit.try_connect(1));
        assert!(!circuit.try_connect(1), "two of two");
        assert!(circuit.try_connect(0), "the first of another endpoint");
        circuit.disconnected();
        circuit.disconnected();
        assert!(circuit.try_connect(1));
        assert_eq!(circuit.connections(), 2);
    }

    #[test]
    fn the_limit_of_one_endpoint_holds_besides() {
        let circuit = circuit(100, 0, Some(2));
        assert!(circuit.try_connect(1) && !circuit.try_connect(2));
        assert_eq!(circuit.http2_per_host(), 2);
    }

    #[test]
    fn requests_wait_up_to_the_limit_and_the_others_are_counted() {
        let circuit = circuit(1, 1, None);
        assert!(circuit.try_wait() && !circuit.try_wait());
        circuit.waited();
        assert!(circuit.try_wait());
        assert_eq!((circuit.waiting(), circuit.overflowed()), (1, 1));
    }
}
