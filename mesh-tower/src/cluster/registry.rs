//! The clusters of a process by name, so that every caller shares connections and limits.
//!
//! Read while a snapshot is bound, never by a request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use mesh_core::{ClusterName, snapshot::ClusterHandle};

use super::{ClusterRuntime, MakeEndpoint};
use crate::telemetry::Metrics;

/// Clusters in use.
pub(crate) struct ClusterRegistry<M: MakeEndpoint> {
    make: Arc<M>,
    metrics: Metrics,
    clusters: Mutex<HashMap<ClusterName, Weak<ClusterRuntime<M>>>>,
}

impl<M: MakeEndpoint> ClusterRegistry<M> {
    pub(crate) fn new(make: Arc<M>, metrics: Metrics) -> Self {
        Self {
            make,
            metrics,
            clusters: Mutex::default(),
        }
    }

    /// The runtime of `handle`'s cluster, made if it is not in use yet.
    pub(crate) fn bind(&self, handle: &ClusterHandle) -> Arc<ClusterRuntime<M>> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = clusters.get(&handle.name).and_then(Weak::upgrade) {
            runtime.follow(handle);
            runtime.tell_drops_to(&handle.load);
            return runtime;
        }
        clusters.retain(|_, runtime| runtime.strong_count() > 0);
        let runtime = ClusterRuntime::new(handle, Arc::clone(&self.make), &self.metrics);
        runtime.tell_drops_to(&handle.load);
        clusters.insert(handle.name.clone(), Arc::downgrade(&runtime));
        runtime
    }
}
