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
