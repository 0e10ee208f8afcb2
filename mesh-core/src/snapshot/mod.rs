//! One consistent configuration, ready to answer requests.
//!
//! Stages 6 and 7: `compile` turns declared config into immutable tables, `store` publishes
//! them by pointer. A route table is published complete or not at all (gRFC A74): every cluster it
//! names has a value or a recorded error.

mod compile;
mod store;
#[cfg(test)]
mod tests;

pub use crate::balance::ClusterEndpoint;
pub use compile::{ClusterTree, Compiler, ConfigTree};
pub use store::{ListenerState, SnapshotReader, SnapshotWriter, pair};

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    ConfigError,
    balance::Picker,
    config,
    load::ClusterLoad,
    name::{ClusterName, ListenerName},
    route::RouteTable,
};

/// The compiled configuration of one listener.
#[derive(Debug)]
pub struct Snapshot {
    /// The listener.
    pub listener: ListenerName,
    /// Grows by one with each snapshot of the process.
    pub generation: u64,
    /// From request head to route; its cluster indexes point into `clusters`.
    pub routes: RouteTable,
    /// The clusters that the routes name, each with its own swap point.
    pub clusters: Box<[ClusterHandle]>,
}

/// A cluster that a [`Snapshot`] refers to.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    /// The cluster.
    pub name: ClusterName,
    /// Its current value; swapped whenever policy or endpoints change.
    pub current: watch::Receiver<Arc<ClusterSnapshot>>,
    /// Its load, as far as its endpoints' counters do not tell.
    pub load: Arc<ClusterLoad>,
}

/// The compiled configuration of one cluster.
#[derive(Debug)]
pub struct ClusterSnapshot {
    /// The cluster.
    pub name: ClusterName,
    /// Grows by one with each cluster snapshot of the process.
    pub generation: u64,
    /// Policy as declared; an error means: every request to this cluster fails with it.
    pub config: Result<Arc<config::Cluster>, ConfigError>,
    /// Why there are no endpoints, when that is known.
    pub resolution_note: Option<ConfigError>,
    /// Endpoints in use, in a stable order.
    pub endpoints: Box<[ClusterEndpoint]>,
    /// Chooses among `endpoints`.
    pub picker: Picker,
}
