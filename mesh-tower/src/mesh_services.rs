//! Services that a server's filters ask, found in the mesh.
//!
//! Each is a cluster that is followed by itself: no route and no filter is between, so that no question
//! causes another one.

use std::sync::Arc;

use mesh_core::name::ClusterName;
use mesh_xds_client::XdsClient;

use crate::{
    MeshService, cluster::ClusterRegistry, connect::HyperConnector, listener::ListenerRuntime,
    telemetry::Telemetry,
};

/// Finds services in the mesh.
pub(crate) struct MeshServices {
    pub(crate) xds: XdsClient,
    pub(crate) clusters: Arc<ClusterRegistry<HyperConnector>>,
    pub(crate) telemetry: Telemetry,
}

impl MeshServices {
    /// Sends requests to a cluster. Must be called inside a tokio runtime.
    pub(crate) fn calls(&self, cluster: &ClusterName) -> MeshService<HyperConnector> {
        let name = cluster.as_str();
        let reader = self.xds.watch_cluster(name);
        let clusters = Arc::clone(&self.clusters);
        let listener = ListenerRuntime::new(name, reader, clusters, self.telemetry.clone());
        MeshService::of(listener)
    }
}
