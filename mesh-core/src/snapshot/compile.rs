//! From declared config to snapshots, reusing every part that did not change.
//!
//! Stage 6. One [`Compiler`] per process: clusters and endpoint counters are shared between
//! listeners. Synchronous; called by the driver alone.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use super::{ClusterEndpoint, ClusterHandle, ClusterSnapshot, Snapshot};
use crate::{
    ConfigError,
    balance::Picker,
    config::{self, ClusterEndpoints, LbPolicy, RouteConfig},
    load::ClusterLoad,
    name::{ClusterName, ListenerName},
    rng::{Rng, SplitMix64},
    route::RouteTable,
    stats::EndpointStats,
};

/// Everything one listener needs, every reference resolved.
#[derive(Clone, Debug)]
pub struct ConfigTree {
    /// The listener.
    pub listener: ListenerName,
    /// Selects the virtual host: the authority that the application dials.
    pub authority: String,
    /// Limit of a stream's life from the listener.
    pub max_stream_duration: Option<std::time::Duration>,
    /// Its routes.
    pub routes: Arc<RouteConfig>,
    /// Every cluster that the routes name.
    pub clusters: BTreeMap<ClusterName, ClusterTree>,
}

/// A cluster with its endpoints, or why there are none.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterTree {
    /// Policy.
    pub cluster: Result<Arc<config::Cluster>, ConfigError>,
    /// Endpoints; an error leaves the cluster without any.
    pub endpoints: Result<Arc<ClusterEndpoints>, ConfigError>,
}

/// Turns [`ConfigTree`]s into [`Snapshot`]s.
#[derive(Debug)]
pub struct Compiler {
    clusters: HashMap<ClusterName, ClusterSlot>,
    generation: u64,
    rng: SplitMix64,
}

#[derive(Debug)]
struct ClusterSlot {
    tree: ClusterTree,
    tx: watch::Sender<Arc<ClusterSnapshot>>,
    load: Arc<ClusterLoad>,
    /// Counters by address, kept while a snapshot or a request in flight holds them.
    stats: HashMap<SocketAddr, Weak<EndpointStats>>,
}

impl Compiler {
    /// A compiler without clusters. `seed` decides where round robin starts.
    pub fn new(seed: u64) -> Self {
        Self {
            clusters: HashMap::new(),
            generation: 0,
            rng: SplitMix64::new(seed),
        }
    }

    /// Compiles one listener; clusters that changed are swapped first (make before break).
    ///
    /// # Errors
    /// When the routes cannot be used at all.
    pub fn compile(&mut self, tree: &ConfigTree) -> Result<Arc<Snapshot>, ConfigError> {
        for (name, cluster) in &tree.clusters {
            self.update_cluster(name, cluster);
        }
        let mut handles = Vec::new();
        let mut index = HashMap::new();
        for name in tree.clusters.keys() {
            index.insert(name.clone(), handles.len() as u32);
            let slot = &self.clusters[name];
            handles.push(ClusterHandle {
                name: name.clone(),
                current: slot.tx.subscribe(),
                load: Arc::clone(&slot.load),
            });
        }
        let routes = RouteTable::compile(
            &tree.routes,
            &tree.authority,
            tree.max_stream_duration,
            |name| index.get(name).copied(),
        )?;
        self.generation += 1;
        Ok(Arc::new(Snapshot {
            listener: tree.listener.clone(),
            generation: self.generation,
            routes,
            clusters: handles.into(),
        }))
    }

    /// Compiles one cluster and swaps it in place. Equal config changes nothing.
    pub fn update_cluster(&mut self, name: &ClusterName, tree: &ClusterTree) {
        if self
            .clusters
            .get(name)
            .is_some_and(|slot| slot.tree == *tree)
        {
            return;
        }
        self.generation += 1;
        let (generation, start) = (self.generation, self.rng.next_u64());
        match self.clusters.get_mut(name) {
            Some(slot) => {
                let snapshot = compile_cluster(name, tree, generation, start, &mut slot.stats);
                slot.tree = tree.clone();
                slot.tx.send_replace(Arc::new(snapshot));
            }
            None => {
                let mut stats = HashMap::new();
                let snapshot = compile_cluster(name, tree, generation, start, &mut stats);
                let (tx, _) = watch::channel(Arc::new(snapshot));
                let slot = ClusterSlot {
                    tree: tree.clone(),
                    tx,
                    load: Arc::default(),
                    stats,
                };
                self.clusters.insert(name.clone(), slot);
            }
        }
    }

    /// Forgets clusters for which `is_wanted` is false. Whoever holds a handle keeps the last
    /// value.
    pub fn retain_clusters(&mut self, mut is_wanted: impl FnMut(&ClusterName) -> bool) {
        self.clusters.retain(|name, _| is_wanted(name));
    }
}

fn compile_cluster(
    name: &ClusterName,
    tree: &ClusterTree,
    generation: u64,
    start: u64,
    stats: &mut HashMap<SocketAddr, Weak<EndpointStats>>,
) -> ClusterSnapshot {
    let mut endpoints = Vec::new();
    let mut resolution_note = None;
    match &tree.endpoints {
        Ok(assignment) => {
            endpoints = usable_endpoints(assignment, stats);
            if endpoints.is_empty() {
                resolution_note = Some(ConfigError::new(
                    format!("endpoints {}", assignment.name),
                    "",
                    "no usable endpoint: the control plane knows none that is healthy",
                ));
            }
        }
        Err(error) => resolution_note = Some(error.clone()),
    }
    stats.retain(|_, stats| stats.strong_count() > 0);
    let policy = match &tree.cluster {
        Ok(cluster) => cluster.lb_policy,
        Err(_) => LbPolicy::Random,
    };
    let picker = Picker::new(policy, &endpoints, start);
    ClusterSnapshot {
        name: name.clone(),
        generation,
        config: tree.cluster.clone(),
        resolution_note,
        endpoints: endpoints.into(),
        picker,
    }
}

/// The endpoints of the first priority that has a usable one (gRFC A56, by declared health).
fn usable_endpoints(
    assignment: &ClusterEndpoints,
    stats: &mut HashMap<SocketAddr, Weak<EndpointStats>>,
) -> Vec<ClusterEndpoint> {
    let usable = |locality: &&config::LocalityEndpoints| {
        locality
            .endpoints
            .iter()
            .any(|endpoint| endpoint.health.is_usable())
    };
    let Some(priority) = assignment
        .localities
        .iter()
        .filter(usable)
        .map(|locality| locality.priority)
        .min()
    else {
        return Vec::new();
    };
    let mut endpoints = Vec::new();
    for locality in assignment
        .localities
        .iter()
        .filter(|l| l.priority == priority)
    {
        let place = Arc::new(locality.locality.clone());
        for endpoint in locality.endpoints.iter().filter(|e| e.health.is_usable()) {
            let entry = stats.entry(endpoint.address).or_default();
            let stats = entry.upgrade().unwrap_or_else(|| {
                let fresh = Arc::new(EndpointStats::default());
                *entry = Arc::downgrade(&fresh);
                fresh
            });
            endpoints.push(ClusterEndpoint {
                address: endpoint.address,
                weight: endpoint.weight,
                locality: Arc::clone(&place),
                stats,
            });
        }
    }
    endpoints
}
