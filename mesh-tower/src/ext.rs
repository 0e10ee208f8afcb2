//! What the mesh decided about a request, in the extensions of its response.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::ClusterName;

/// Which endpoint answered, and how it was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedEndpoint {
    /// The endpoint.
    pub address: SocketAddr,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The route that chose the cluster.
    pub route: Arc<str>,
    /// Attempts that were made, 1 without a retry.
    pub attempts: u32,
}

/// What the calls of a cluster hold. All of it is 0 when none is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterInFlight {
    /// Calls, from their permit to the end of their responses.
    pub requests: u32,
    /// Attempts beyond the first, by the retry and hedge policies.
    pub retries: u32,
    /// Copies, by mirror policies.
    pub mirrors: u32,
    /// Attempts on all of its endpoints.
    pub attempts: u32,
}
