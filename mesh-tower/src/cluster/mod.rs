//! From a cluster to one endpoint.
//!
//! Stages 10 and 11. A [`ClusterRuntime`] lives as long as its cluster's name is in use and holds
//! what must outlive snapshots: the circuit and the connections. The request path loads one
//! pointer; a follower task makes and drops endpoints.

mod check;
mod destinations;
mod endpoint;
mod registry;
mod reports;
mod runtime;
mod slot;
mod state;

pub use destinations::DESTINATIONS_MAX;
pub(crate) use endpoint::Signals;
pub use endpoint::{
    Attached, BoxExchange, EndpointContext, EndpointService, Exchange, IsCurrent, MakeEndpoint,
};
pub(crate) use registry::{BoundCluster, BoundClusters, ClusterRegistry};
pub(crate) use runtime::ClusterRuntime;
pub(crate) use state::{Affinity, ClusterState, pick_later};
