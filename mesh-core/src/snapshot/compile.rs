//! From declared config to snapshots, reusing every part that did not change.
//!
//! Stage 6. One [`Compiler`] per process: clusters and endpoint counters are shared between
//! listeners. Synchronous; called by the driver alone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use hashbrown::HashMap;
use tokio::sync::watch;

use super::{
    ClusterHandle, ClusterSnapshot, Snapshot,
    drops::Drops,
    endpoints::{Arranged, StatsByAddress, arrange},
    lazy::{LazySnapshot, Source},
};
use crate::{
    ConfigError,
    balance::{LbPolicyFactories, LbPolicyFactory, Parts, Picker, Provided, TierState},
    config::{
        self, ClientPosition, ClusterEndpoints, CommonLbConfig, Discovery, HttpFilter, LbPolicy,
        LocalZones, OVERPROVISIONING_FACTOR_DEFAULT, RouteConfig, RouterOptions,
    },
    filter::{FilterStates, FilterTable},
    load::ClusterLoad,
    name::{ClusterName, ListenerName},
    rng::{Rng, SplitMix64},
    route::{RouteTable, StreamLimits, virtual_host},
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
    /// Limit of a stream without data, for routes that say none.
    pub stream_idle_timeout: Option<std::time::Duration>,
    /// Its filters.
    pub filters: Arc<[HttpFilter]>,
    /// What its router does with headers.
    pub router: RouterOptions,
    /// Its routes.
    pub routes: Arc<RouteConfig>,
    /// Every cluster that the routes name.
    pub clusters: BTreeMap<ClusterName, ClusterTree>,
}

/// A cluster with its endpoints, or why there are none.
#[derive(Clone, Debug)]
pub struct ClusterTree {
    /// Policy.
    pub cluster: Result<Arc<config::Cluster>, ConfigError>,
    /// Endpoints; an error leaves the cluster without any.
    pub endpoints: Result<Arc<ClusterEndpoints>, ConfigError>,
}

impl PartialEq for ClusterTree {
    fn eq(&self, other: &Self) -> bool {
        is_same(&self.endpoints, &other.endpoints) && is_same(&self.cluster, &other.cluster)
    }
}

/// Equality that looks into nothing that is shared.
fn is_same<T: PartialEq>(a: &Result<Arc<T>, ConfigError>, b: &Result<Arc<T>, ConfigError>) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => Arc::ptr_eq(a, b) || a == b,
        (Err(a), Err(b)) => a == b,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

fn is_zone_aware(tree: &ClusterTree) -> bool {
    let config = tree.cluster.as_ref();
    config.is_ok_and(|config| config.common_lb_config.zone_aware.is_some())
}

/// Turns [`ConfigTree`]s into [`Snapshot`]s.
#[derive(Debug)]
pub struct Compiler {
    clusters: HashMap<ClusterName, ClusterSlot>,
    generation: u64,
    rng: SplitMix64,
    factories: Arc<LbPolicyFactories>,
    filters: FilterStates,
    local: Option<Arc<LocalZones>>,
    client: Option<ClientPosition>,
}

/// The newest version of a cluster.
#[derive(Debug)]
struct ClusterSlot {
    tx: watch::Sender<Arc<LazySnapshot>>,
    load: Arc<ClusterLoad>,
}

/// What outlives the snapshots of a cluster.
#[derive(Debug)]
pub(super) struct Kept {
    stats: StatsByAddress,
    tiers: Arc<TierState>,
    /// Chooses random subsets.
    seed: u64,
    /// Chooses the others.
    client: Option<ClientPosition>,
}

impl Kept {
    fn new(seed: u64, client: Option<ClientPosition>) -> Self {
        Self {
            stats: StatsByAddress::new(),
            tiers: Arc::default(),
            seed,
            client,
        }
    }
}

impl Compiler {
    /// A compiler without clusters. `seed` decides where round robin starts.
    pub fn new(seed: u64) -> Self {
        Self {
            clusters: HashMap::new(),
            generation: 0,
            rng: SplitMix64::new(seed),
            factories: Arc::default(),
            filters: FilterStates::new(seed),
            local: None,
            client: None,
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
            &StreamLimits {
                max_duration: tree.max_stream_duration,
                idle: tree.stream_idle_timeout,
            },
            |name| index.get(name).copied(),
        )?;
        let host = virtual_host(&tree.routes, &tree.authority);
        let filters = host.map(|host| {
            let scope = format!("listener {}", tree.listener);
            FilterTable::compile(
                &scope,
                &tree.filters,
                &tree.routes,
                host,
                |name| index.get(name).copied(),
                &mut self.filters,
            )
        });
        self.generation += 1;
        Ok(Arc::new(Snapshot {
            listener: tree.listener.clone(),
            generation: self.generation,
            authority: tree.authority.as_str().into(),
            config: Arc::clone(&tree.routes),
            routes,
            filters: filters.unwrap_or_default(),
            listed_filters: Arc::clone(&tree.filters),
            router: tree.router,
            clusters: handles.into(),
        }))
    }

    /// Swaps one cluster in place; it is compiled when somebody looks at it. Equal config changes
    /// nothing.
    pub fn update_cluster(&mut self, name: &ClusterName, tree: &ClusterTree) {
        let held = self.clusters.get(name).map(|slot| slot.tx.borrow().clone());
        if held.as_ref().is_some_and(|held| held.source.tree == *tree) {
            return;
        }
        self.put_cluster(name, tree.clone(), held.as_ref());
    }

    /// Tells where this process is among others of its service, for clusters with
    /// [`zone_aware`](CommonLbConfig::zone_aware) routing; none: zones say nothing. Clusters without it do
    /// not change.
    pub fn set_local_zones(&mut self, zones: Option<LocalZones>) {
        if self.local.as_deref() == zones.as_ref() {
            return;
        }
        self.local = zones.map(Arc::new);
        let held = self.clusters.iter();
        let held = held.map(|(name, slot)| (name.clone(), slot.tx.borrow().clone()));
        let affected = held.filter(|(_, held)| is_zone_aware(&held.source.tree));
        for (name, held) in affected.collect::<Vec<_>>() {
            self.put_cluster(&name, held.source.tree.clone(), Some(&held));
        }
    }

    /// Swaps a cluster for its next version.
    fn put_cluster(
        &mut self,
        name: &ClusterName,
        tree: ClusterTree,
        held: Option<&Arc<LazySnapshot>>,
    ) {
        self.generation += 1;
        let start = self.rng.next_u64();
        let kept = held.map(|held| Arc::clone(&held.source.kept));
        let version = Arc::new(LazySnapshot::new(Source {
            name: name.clone(),
            generation: self.generation,
            start,
            local: self.local.clone().filter(|_| is_zone_aware(&tree)),
            tree,
            kept: kept.unwrap_or_else(|| Arc::new(Mutex::new(Kept::new(start, self.client)))),
            factories: Arc::clone(&self.factories),
        }));
        match self.clusters.get(name) {
            Some(slot) => _ = slot.tx.send_replace(version),
            None => {
                let (tx, _) = watch::channel(version);
                let load = Arc::default();
                self.clusters.insert(name.clone(), ClusterSlot { tx, load });
            }
        }
    }

    /// Gives clusters a policy of the application's own, for those that declare
    /// [`LbPolicy::Custom`] with this name.
    #[must_use]
    pub fn with_policy(
        mut self,
        name: impl Into<String>,
        factory: Arc<dyn LbPolicyFactory>,
    ) -> Self {
        Arc::make_mut(&mut self.factories).insert(name.into(), factory);
        self
    }

    /// Tells which of all clients this process is, for clusters with
    /// [`Subsetting::Deterministic`](config::Subsetting::Deterministic). Before anything is compiled.
    #[must_use]
    pub fn with_client_position(mut self, position: ClientPosition) -> Self {
        self.client = Some(position);
        self
    }

    /// Forgets clusters for which `is_wanted` is false. Whoever holds a handle keeps the last
    /// value.
    pub fn retain_clusters(&mut self, mut is_wanted: impl FnMut(&ClusterName) -> bool) {
        self.clusters.retain(|name, _| is_wanted(name));
    }
}

impl Kept {
    /// Compiles a version, keeping what outlives snapshots.
    pub(super) fn compile(&mut self, source: &Source) -> ClusterSnapshot {
        let Source { name, tree, .. } = source;
        let fallback = LbPolicy::Random;
        let common = CommonLbConfig::default();
        let (policy, common, outliers) = match &tree.cluster {
            Ok(cluster) => (
                &cluster.lb_policy,
                &cluster.common_lb_config,
                cluster.outlier_detection.as_ref(),
            ),
            Err(_) => (&fallback, &common, None),
        };
        let discovery = tree.cluster.as_ref().ok().map(|cluster| &cluster.discovery);
        let is_provided = matches!(discovery, Some(Discovery::OriginalDst(_)));
        let mut arranged = Arranged::default();
        let mut drops = Drops::default();
        let mut overprovisioning_factor = None;
        let mut resolution_note = None;
        match &tree.endpoints {
            Ok(assignment) => {
                arranged = arrange(assignment, common, self.seed, self.client, &mut self.stats);
                drops = Drops::new(&assignment.drop_overloads);
                // Whose requests fail in a panic, has the panic that Envoy has.
                let implied = common
                    .fails_on_panic()
                    .then_some(OVERPROVISIONING_FACTOR_DEFAULT);
                overprovisioning_factor = assignment.overprovisioning_factor.or(implied);
                if arranged.endpoints.is_empty() && !is_provided {
                    resolution_note = Some(ConfigError::new(
                        format!("endpoints {}", assignment.name),
                        "",
                        "no usable endpoint: the control plane knows none that is healthy",
                    ));
                }
            }
            Err(error) => resolution_note = Some(error.clone()),
        }
        self.stats.retain(|_, stats| stats.strong_count() > 0);
        let mut parts = Parts {
            policy,
            common,
            local: source.local.as_ref(),
            overprovisioning_factor,
            endpoints: &arranged.endpoints,
            sources: &arranged.sources,
            subsets: tree
                .cluster
                .as_ref()
                .ok()
                .and_then(|cluster| cluster.subsets.as_ref()),
            groups: arranged.groups,
            tier_parts: arranged.tier_parts,
            single_probe: outliers.is_some_and(|config| config.single_probe),
            tiers: &self.tiers,
            factories: &source.factories,
            start: source.start,
        };
        let mut config = tree.cluster.clone();
        let picker = Picker::build(&parts).unwrap_or_else(|reason| {
            let cluster = format!("cluster {name}");
            config = Err(ConfigError::new(cluster, "lb_policy", reason));
            parts.policy = &fallback;
            // It is never asked: requests fail with the error before.
            Picker::build(&parts).unwrap_or_else(|_| unreachable!("random needs no factory"))
        });
        let picker = match is_provided {
            true => Picker::Other(Box::new(Provided)),
            false => picker,
        };
        let is_watched = |config: &Arc<config::Cluster>| config.outlier_detection.is_some();
        ClusterSnapshot {
            is_watched: config.as_ref().is_ok_and(is_watched),
            name: name.clone(),
            generation: source.generation,
            config,
            resolution_note,
            endpoints: arranged.endpoints.into(),
            hostnames: arranged.hostnames,
            additional_addresses: arranged.additional_addresses,
            socket_labels: arranged.socket_labels,
            metadata: arranged.metadata,
            picker,
            drops,
            by_address: OnceLock::new(),
        }
    }
}
