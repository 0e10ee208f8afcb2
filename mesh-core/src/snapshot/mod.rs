//! One consistent configuration, ready to answer requests.
//!
//! Stages 6 and 7: `compile` turns declared config into immutable tables, `store` publishes
//! them by pointer. A route table is published complete or not at all (gRFC A74): every cluster it
//! names has a value or a recorded error.

mod compile;
mod drops;
mod endpoints;
mod lazy;
mod maintain;
mod store;
#[cfg(test)]
mod tests;

pub use crate::balance::ClusterEndpoint;
pub use compile::{ClusterTree, Compiler, ConfigTree};
pub use drops::Drops;
pub use lazy::LazySnapshot;
pub use maintain::{FAILING_TIME, Maintainer};
pub use store::{ClusterRequests, ListenerState, SnapshotReader, SnapshotWriter, pair};

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use tokio::sync::watch;

use crate::{
    ConfigError,
    balance::{PickContext, PickResult, Picker, TriedPriorities, resolve_override},
    config,
    filter::FilterTable,
    health::is_suspicious,
    load::ClusterLoad,
    name::{ClusterName, ListenerName},
    observed::{LoadReport, Observation, reported_load},
    outcome::Verdict,
    rng::Rng,
    route::RouteTable,
    stats::EndpointStats,
};

/// The compiled configuration of one listener.
#[derive(Debug)]
pub struct Snapshot {
    /// The listener.
    pub listener: ListenerName,
    /// Grows by one with each snapshot of the process.
    pub generation: u64,
    /// What the application dials, which selects the virtual host.
    pub authority: Box<str>,
    /// What the routes are compiled from, for explanations.
    pub config: Arc<config::RouteConfig>,
    /// From request head to route; its cluster indexes point into `clusters`.
    pub routes: RouteTable,
    /// The filters of the routes.
    pub filters: FilterTable,
    /// What they are compiled from besides the routes, for explanations.
    pub listed_filters: Arc<[config::HttpFilter]>,
    /// What becomes of callers' headers, where they are read.
    pub router: config::RouterOptions,
    /// The clusters that the routes name, sorted by name, each with its own swap point.
    pub clusters: Box<[ClusterHandle]>,
}

/// A cluster that a [`Snapshot`] refers to.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    /// The cluster.
    pub name: ClusterName,
    /// Its current value; swapped whenever policy or endpoints change.
    pub current: watch::Receiver<Arc<LazySnapshot>>,
    /// Its load, as far as its endpoints' counters do not tell.
    pub load: Arc<ClusterLoad>,
}

/// The compiled configuration of one cluster. What each request reads comes first.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct ClusterSnapshot {
    /// Endpoints in use, in a stable order.
    pub endpoints: Box<[ClusterEndpoint]>,
    /// Chooses among `endpoints`.
    pub picker: Picker,
    /// Whether outlier detection looks at how attempts end.
    is_watched: bool,
    /// The cluster.
    pub name: ClusterName,
    /// Grows by one with each cluster snapshot of the process.
    pub generation: u64,
    /// Policy as declared; an error means: every request to this cluster fails with it.
    pub config: Result<Arc<config::Cluster>, ConfigError>,
    /// Why there are no endpoints, when that is known.
    pub resolution_note: Option<ConfigError>,
    /// Names of those that have one, by index: apart, because picks read the endpoints.
    hostnames: HashMap<usize, Arc<str>>,
    /// Further addresses of those that have some, likewise.
    additional_addresses: HashMap<usize, Arc<[SocketAddr]>>,
    /// Labels that sockets are chosen by, likewise.
    socket_labels: HashMap<usize, Arc<config::LbMetadata>>,
    /// Metadata of those that have some, by index.
    metadata: HashMap<usize, Arc<config::LbMetadata>>,
    /// Requests to refuse.
    pub drops: Drops,
    /// Made for the first session that sticks to an endpoint.
    by_address: OnceLock<HashMap<SocketAddr, usize>>,
}

impl ClusterSnapshot {
    /// Picks an endpoint: that of the request's session, if it can be used, or by the cluster's
    /// policy.
    #[inline]
    pub fn pick<R: Rng>(&self, context: &mut PickContext<'_, R>) -> PickResult {
        if let Some(host) = context.override_host
            && let Some(result) = self.pick_override(host)
        {
            return result;
        }
        self.picker.pick(&self.endpoints, context)
    }

    /// Picks for a retry that avoids the priorities of earlier attempts.
    #[cold]
    pub fn pick_untried(
        &self,
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        self.picker.pick_untried(&self.endpoints, context, tried)
    }

    /// Picks the endpoint of a session, and no other.
    #[cold]
    pub fn pick_only(&self, host: SocketAddr) -> PickResult {
        self.pick_override(host).unwrap_or(PickResult::Fail)
    }

    #[cold]
    fn pick_override(&self, host: SocketAddr) -> Option<PickResult> {
        let by_address = self.by_address.get_or_init(|| {
            // Others than we remember any address of an endpoint (gRFC A60).
            let additional = self.additional_addresses.iter();
            let additional = additional
                .flat_map(|(index, addresses)| addresses.iter().map(|address| (*address, *index)));
            let endpoints = self.endpoints.iter().enumerate();
            let own = endpoints.map(|(index, endpoint)| (endpoint.address, index));
            additional.chain(own).collect()
        });
        let config = self.config.as_ref().ok()?;
        let allowed = &config.common_lb_config.override_host_status;
        resolve_override(&self.endpoints, by_address.get(&host).copied(), allowed)
    }

    /// The name of an endpoint, by its index, if it has one.
    pub fn hostname(&self, endpoint: usize) -> Option<&str> {
        self.hostnames.get(&endpoint).map(|name| &**name)
    }

    /// Where an endpoint, by its index, can be reached besides its address.
    pub fn additional_addresses(&self, endpoint: usize) -> Option<&Arc<[SocketAddr]>> {
        self.additional_addresses.get(&endpoint)
    }

    /// The labels of an endpoint, by its index, that a [`SocketMatch`](config::SocketMatch) may ask for.
    pub fn socket_labels(&self, endpoint: usize) -> Option<&Arc<config::LbMetadata>> {
        self.socket_labels.get(&endpoint)
    }

    /// What load balancing knows of an endpoint, by its index, if anything.
    pub fn metadata(&self, endpoint: usize) -> Option<&config::LbMetadata> {
        self.metadata.get(&endpoint).map(|metadata| &**metadata)
    }

    /// Whether time does anything to it: only then is a [`Maintainer`] of use.
    pub fn wants_maintenance(&self) -> bool {
        let config = self.config.as_ref().ok();
        let is_watched = config.is_some_and(|config| config.outlier_detection.is_some());
        let is_failing = |endpoint: &ClusterEndpoint| endpoint.stats.is_failing();
        is_watched
            || matches!(self.picker, Picker::Other(_))
            || self.endpoints.iter().any(is_failing)
    }

    /// An endpoint, of which these are the counters, said out of band what its load is (gRFC A51). Says
    /// nothing to policies that have not [asked](config::LbPolicy::oob_reporting_period).
    pub fn take_report(&self, stats: &EndpointStats, now: Instant, report: &LoadReport) {
        let Ok(config) = &self.config else {
            return;
        };
        match &config.lb_policy {
            config::LbPolicy::ClientSideWeightedRoundRobin(config)
                if config.oob_reporting_period.is_some() =>
            {
                stats.observe(now).add_weight(now, report, config);
            }
            config::LbPolicy::Prequal(config) if config.oob_reporting_period.is_some() => {
                if let Some((in_flight, latency)) = reported_load(report) {
                    let own = stats.in_flight();
                    let observed = stats.observe(now);
                    observed.add_server_load(now, in_flight, latency, own);
                }
            }
            _ => {}
        }
    }

    /// An attempt that [began](crate::stats::EndpointStats::begin) on an endpoint has ended.
    /// `observation` is wanted where [`Picker::observes`] says so. Returns whether the cluster's
    /// [`Maintainer`] should look at it now.
    #[must_use]
    #[inline]
    pub fn end_attempt(
        &self,
        endpoint: usize,
        verdict: Verdict,
        observation: Option<&Observation<'_>>,
    ) -> bool {
        let stats = &self.endpoints[endpoint].stats;
        let fell_ill = stats.end_as(verdict);
        if let Some(observation) = observation {
            self.picker.observe(&self.endpoints, endpoint, observation);
        }
        fell_ill || self.is_watched && self.is_suspicious(stats)
    }

    fn is_suspicious(&self, stats: &EndpointStats) -> bool {
        let outliers = self.config.as_ref().ok();
        let outliers = outliers.and_then(|config| config.outlier_detection.as_ref());
        outliers.is_some_and(|outliers| is_suspicious(outliers, stats))
    }
}
