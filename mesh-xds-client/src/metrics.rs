//! What an operator watches of a client: streams, failures, and what became of resources (gRFC A78, with
//! the states of A88).
//!
//! Beside the driver, which writes after each turn; reading waits for nobody and keeps nothing alive.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::dump::{Counters, ResourceStatus};

/// A client's metrics at one moment. Counters are since the client started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientMetrics {
    /// Control planes in the order of the bootstrap.
    pub servers: Vec<ServerMetrics>,
    /// How many resources are in each state (`grpc.xds_client.resources`).
    pub resources: BTreeMap<ResourceKey, u64>,
    /// Over all control planes.
    pub counters: Counters,
}

/// One control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerMetrics {
    /// Where it is.
    pub server: String,
    /// Whether there is a working stream (`grpc.xds_client.connected`): from the first stream on, not
    /// after a failure, and again from the first response. A stream that worked may end (gRFC A57).
    pub connected: bool,
    /// Streams lost or not made without a response (`grpc.xds_client.server_failure`).
    pub failures: u64,
    /// Resources received, by the URL of their type.
    pub updates: BTreeMap<&'static str, Updates>,
}

/// Resources received from one control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Updates {
    /// Valid ones (`grpc.xds_client.resource_updates_valid`).
    pub valid: u64,
    /// Refused ones (`grpc.xds_client.resource_updates_invalid`).
    pub invalid: u64,
}

/// Resources that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ResourceKey {
    /// Their authority; `None` for names of the old style, `#old` in gRPC's labels.
    pub authority: Option<String>,
    /// URL of their type.
    pub type_url: &'static str,
    /// What became of what the control plane sent last.
    pub state: CacheState,
}

/// What became of a resource, and whether an earlier value is in use all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheState {
    /// As in [`ResourceDump`](crate::dump::ResourceDump).
    pub status: ResourceStatus,
    /// Whether it failed and an earlier value stays in use.
    pub is_but_cached: bool,
}

impl CacheState {
    /// The label `grpc.xds.cache_state`.
    pub fn as_str(self) -> &'static str {
        match (self.status, self.is_but_cached) {
            (ResourceStatus::DoesNotExist, true) => "does_not_exist_but_cached",
            (ResourceStatus::Nacked, true) => "nacked_but_cached",
            (ResourceStatus::ReceivedError, true) => "received_error_but_cached",
            (ResourceStatus::Timeout, true) => "timeout_but_cached",
            (status, _) => status.as_str(),
        }
    }
}

/// Reads a client's metrics without keeping the client alive.
#[derive(Clone, Debug, Default)]
pub struct MetricsReader(Arc<Mutex<ClientMetrics>>);

impl MetricsReader {
    /// The metrics as they are now.
    pub fn load(&self) -> ClientMetrics {
        let metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.clone()
    }

    pub(crate) fn store(&self, metrics: ClientMetrics) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = metrics;
    }
}
