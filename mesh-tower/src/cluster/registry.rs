//! The clusters of a process by name, so that every caller shares connections and limits.
//!
//! Read while a snapshot is bound, and by the first request to a cluster.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use mesh_core::{
    ClusterName,
    snapshot::{ClusterHandle, Snapshot},
};

use super::{ClusterRuntime, ClusterState, MakeEndpoint, runtime::States};
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

    /// The clusters of a snapshot, bound to the runtimes of those that are in use.
    pub(crate) fn bind(self: &Arc<Self>, snapshot: &Arc<Snapshot>) -> BoundClusters<M> {
        let clusters = self.lock();
        let bound = snapshot.clusters.iter().map(|handle| {
            let held = clusters.get(&handle.name).and_then(Weak::upgrade);
            match held {
                Some(runtime) => {
                    runtime.follow(handle);
                    OnceLock::from(BoundCluster::new(runtime))
                }
                None => OnceLock::new(),
            }
        });
        BoundClusters {
            bound: bound.collect(),
            snapshot: Arc::clone(snapshot),
            registry: Arc::clone(self),
        }
    }

    /// The runtime of `handle`'s cluster, made if it is not in use yet.
    fn get_or_make(&self, handle: &ClusterHandle) -> Arc<ClusterRuntime<M>> {
        let mut clusters = self.lock();
        if let Some(runtime) = clusters.get(&handle.name).and_then(Weak::upgrade) {
            runtime.follow(handle);
            return runtime;
        }
        // Room is made before more of it is taken: the cost of a cluster stays constant.
        if clusters.len() == clusters.capacity() {
            clusters.retain(|_, runtime| runtime.strong_count() > 0);
        }
        let runtime = ClusterRuntime::new(handle, Arc::clone(&self.make), &self.metrics);
        clusters.insert(handle.name.clone(), Arc::downgrade(&runtime));
        runtime
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterName, Weak<ClusterRuntime<M>>>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cluster of a snapshot, in use.
pub(crate) struct BoundCluster<M: MakeEndpoint> {
    states: States<M>,
    runtime: Arc<ClusterRuntime<M>>,
}

impl<M: MakeEndpoint> BoundCluster<M> {
    fn new(runtime: Arc<ClusterRuntime<M>>) -> Self {
        Self {
            states: runtime.states().clone(),
            runtime,
        }
    }

    /// The newest endpoints and policy.
    #[inline]
    pub(crate) fn load(&self) -> Arc<ClusterState<M>> {
        self.states.local().load()
    }
}

/// The runtimes of a snapshot's clusters, index by index. One is made by the first request to its
/// cluster: most clusters of a large mesh are never called by a process, and cost it nothing here.
pub(crate) struct BoundClusters<M: MakeEndpoint> {
    bound: Box<[OnceLock<BoundCluster<M>>]>,
    snapshot: Arc<Snapshot>,
    registry: Arc<ClusterRegistry<M>>,
}

impl<M: MakeEndpoint> BoundClusters<M> {
    /// Takes over the runtimes that calls have made in the snapshot before since this one was bound:
    /// without it their connections would end with that snapshot.
    pub(crate) fn take_over(&self, before: &Self) {
        let made = before.bound.iter().zip(&before.snapshot.clusters);
        for (bound, handle) in made {
            let clusters = &self.snapshot.clusters;
            let place = || clusters.binary_search_by(|held| held.name.cmp(&handle.name));
            if let Some(BoundCluster { runtime, .. }) = bound.get()
                && let Ok(index) = place()
                && let bound = BoundCluster::new(Arc::clone(runtime))
                && self.bound[index].set(bound).is_ok()
            {
                runtime.follow(&clusters[index]);
            }
        }
    }

    /// A cluster, by its index in the snapshot. Must be called inside a tokio runtime.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &BoundCluster<M> {
        let index = index as usize;
        let runtime = || self.registry.get_or_make(&self.snapshot.clusters[index]);
        self.bound[index].get_or_init(|| BoundCluster::new(runtime()))
    }
}
