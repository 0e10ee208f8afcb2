//! Clusters that requests name themselves (`cluster_header`).
//!
//! A client cannot know them before: the first request that names one asks for it and waits, and so
//! do those that come meanwhile. How many stay subscribed is bounded by the xDS client, how many are
//! asked for at a time is bounded here: a header may come from anybody.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_core::snapshot::ClusterRequests;

/// Clusters that requests of one listener wait for at a time, at most.
pub const NAMED_CLUSTERS_WAITING_MAX: usize = 16;

/// Clusters that requests wait for.
pub(super) struct NamedClusters {
    requests: Option<ClusterRequests>,
    /// How many requests wait for each.
    waiting: Mutex<HashMap<Box<str>, usize>>,
}

/// A request that waits.
pub(super) struct Waiting<'n> {
    named: &'n NamedClusters,
    cluster: &'n str,
}

impl NamedClusters {
    pub(super) fn new(requests: Option<ClusterRequests>) -> Self {
        Self {
            requests,
            waiting: Mutex::default(),
        }
    }

    /// Asks for a cluster, if nobody else is waiting for it.
    pub(super) fn ask<'n>(&'n self, cluster: &'n str) -> Result<Waiting<'n>, &'static str> {
        let Some(requests) = &self.requests else {
            return Err("is not part of the configuration");
        };
        let mut waiting = self.lock();
        if let Some(count) = waiting.get_mut(cluster) {
            *count += 1;
        } else if waiting.len() < NAMED_CLUSTERS_WAITING_MAX {
            waiting.insert(cluster.into(), 1);
            requests(cluster.into());
        } else {
            return Err("is not known, and too many others are waited for");
        }
        Ok(Waiting {
            named: self,
            cluster,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.named.lock();
        if let Some(count) = waiting.get_mut(self.cluster) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.cluster);
            }
        }
    }
}

impl fmt::Debug for NamedClusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedClusters")
            .field("waiting", &self.lock())
            .finish_non_exhaustive()
    }
}
