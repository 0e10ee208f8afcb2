//! Clusters of which some clients get another, by the DestinationRules that they see.

use std::sync::Arc;

use mesh_core::config::{Cluster, ClusterEndpoints, HashPolicy};

use super::{Compiled, Viewer, locality::Placed, scoped::ClientMatch};

/// A cluster as some clients get it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OwnCluster {
    pub(super) clients: ClientMatch,
    pub(super) cluster: Arc<Cluster>,
    /// `None` where they are those that all get.
    pub(super) endpoints: Option<Arc<Placed>>,
    /// What routes to it hash.
    pub(super) hash: Option<HashPolicy>,
}

impl Compiled {
    fn own<'v>(&self, name: &str, viewer: Viewer<'v>) -> Option<(usize, &OwnCluster)> {
        let own = self.own_clusters.get(name).into_iter().flatten();
        let mut own = own.enumerate();
        own.find(|(_, own)| own.clients.has(viewer))
    }

    /// A cluster as a client gets it, with what tells apart clients that get another.
    pub(crate) fn cluster<'v>(
        &self,
        name: &str,
        viewer: impl Into<Viewer<'v>>,
    ) -> Option<(String, &Arc<Cluster>)> {
        match self.own(name, viewer.into()) {
            Some((index, own)) => Some((index.to_string(), &own.cluster)),
            None => Some((String::new(), self.clusters.get(name)?)),
        }
    }

    /// Endpoints as a client gets them, with what tells apart clients that get others.
    pub(crate) fn endpoints<'v>(
        &self,
        name: &str,
        viewer: impl Into<Viewer<'v>>,
    ) -> Option<(String, Arc<ClusterEndpoints>)> {
        let viewer = viewer.into();
        if let Some((index, own)) = self.own(name, viewer)
            && let Some(placed) = &own.endpoints
        {
            let key = format!("{index} {}", placed.key(viewer));
            return Some((key, Arc::new(placed.view(viewer))));
        }
        match self.placed.get(name) {
            Some(placed) => Some((placed.key(viewer), Arc::new(placed.view(viewer)))),
            None => Some((String::new(), Arc::clone(self.endpoints.get(name)?))),
        }
    }
}
