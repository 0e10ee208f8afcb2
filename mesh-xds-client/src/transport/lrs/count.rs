//! What is reported: counts since the last report, by cluster, locality and, when asked for, endpoint.
//!
//! Reads counters that the data plane writes. Whoever reports is told nothing twice: drops, results and
//! metrics are since the last report, requests in progress are as they are now.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{Address, Locality, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats,
            UpstreamEndpointStats, UpstreamLocalityStats, cluster_stats::DroppedRequests,
        },
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_core::{
    config::LocalityId,
    load::{ClusterLoad, Dropped, EndpointMetrics},
    stats::EndpointStats,
};

use super::{LoadSource, Wanted, source::Lists};

/// What has been reported already.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Clusters that somebody has called.
    clusters: HashSet<String>,
    endpoints: HashMap<(String, SocketAddr), Endpoint>,
    drops: HashMap<String, Drops>,
}

#[derive(Debug)]
struct Endpoint {
    service: String,
    locality: LocalityId,
    stats: Arc<EndpointStats>,
    is_current: bool,
    succeeded: u64,
    failed: u64,
    issued: u64,
}

/// Counts of one endpoint since the last report.
#[derive(Debug, Default)]
struct Since {
    succeeded: u64,
    failed: u64,
    in_progress: u64,
    issued: u64,
    metrics: EndpointMetrics,
}

impl Since {
    fn is_empty(&self) -> bool {
        self.succeeded + self.failed + self.in_progress + self.issued == 0
            && self.metrics.is_empty()
    }
}

impl Endpoint {
    fn since(&mut self) -> Since {
        let (succeeded, failed) = (self.stats.succeeded(), self.stats.failed());
        let in_progress = u64::from(self.stats.in_flight());
        let issued = succeeded + failed + in_progress;
        let since = Since {
            succeeded: succeeded - self.succeeded,
            failed: failed - self.failed,
            in_progress,
            issued: issued.saturating_sub(self.issued),
            metrics: EndpointMetrics::new(),
        };
        (self.succeeded, self.failed) = (succeeded, failed);
        self.issued = self.issued.max(issued);
        since
    }
}

impl Counted {
    /// Counts since the last report; clusters without any are left out.
    pub(super) fn report(
        &mut self,
        lists: &Lists,
        wanted: &Wanted,
        elapsed: Duration,
    ) -> Vec<ClusterStats> {
        for endpoint in self.endpoints.values_mut() {
            endpoint.is_current = false;
        }
        self.follow(&lists.gone, false);
        self.follow(&lists.current, true);
        // Of one that came back, the last of its former life first.
        let sources: Vec<_> = lists.gone.iter().chain(&lists.current).collect();
        let mut clusters: BTreeMap<(String, String), ClusterStats> = BTreeMap::new();
        let mut localities = self.count_endpoints(&sources, wanted);
        for source in sources {
            if !wanted.contains(&source.cluster) {
                continue;
            }
            let (total, dropped) = self.count_drops(source);
            let key = (source.cluster.clone(), source.service.clone());
            if total > 0 {
                let stats = clusters.entry(key).or_default();
                stats.total_dropped_requests += total;
                stats.dropped_requests.extend(dropped);
            }
        }
        let mut keys: Vec<_> = localities.keys().cloned().collect();
        keys.sort_unstable();
        for (key, locality) in keys {
            let found = localities.remove(&(key.clone(), locality.clone()));
            let stats = locality_stats(locality, found.unwrap_or_default(), wanted);
            let cluster = clusters.entry(key).or_default();
            cluster.upstream_locality_stats.extend(stats);
        }
        // What has left is counted to the end of its last use, and not anew when it comes back.
        self.endpoints
            .retain(|_, endpoint| endpoint.is_current || Arc::strong_count(&endpoint.stats) > 1);
        self.drops
            .retain(|_, drops| Arc::strong_count(&drops.load) > 1);
        let interval = DurationProto {
            seconds: i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(elapsed.subsec_nanos()).unwrap_or_default(),
        };
        clusters
            .into_iter()
            .filter(|(_, stats)| {
                stats.total_dropped_requests > 0 || !stats.upstream_locality_stats.is_empty()
            })
            .map(
                |((cluster_name, cluster_service_name), stats)| ClusterStats {
                    cluster_name,
                    cluster_service_name,
                    load_report_interval: Some(interval),
                    ..stats
                },
            )
            .collect()
    }

    /// Takes endpoints in that are new, and marks those that are there.
    fn follow(&mut self, sources: &[LoadSource], is_current: bool) {
        for source in sources {
            let version = source.current.borrow().clone();
            // What nobody has called has no counters; what was counted once is looked at again.
            if version.compiled().is_none() && !self.clusters.contains(&source.cluster) {
                continue;
            }
            self.clusters.insert(source.cluster.clone());
            for found in &version.endpoints {
                let key = (source.cluster.clone(), found.address);
                let known = self.endpoints.get_mut(&key);
                match known.filter(|known| Arc::ptr_eq(&known.stats, &found.stats)) {
                    Some(known) => known.is_current |= is_current,
                    None => {
                        let endpoint = Endpoint {
                            service: source.service.clone(),
                            locality: LocalityId::clone(&found.locality),
                            stats: Arc::clone(&found.stats),
                            is_current,
                            succeeded: 0,
                            failed: 0,
                            issued: 0,
                        };
                        self.endpoints.insert(key, endpoint);
                    }
                }
            }
        }
    }

    /// Counts of endpoints with any, by cluster and locality.
    fn count_endpoints(&mut self, sources: &[&LoadSource], wanted: &Wanted) -> ByLocality {
        let mut metrics: HashMap<_, _> = sources
            .iter()
            .filter(|source| wanted.contains(&source.cluster))
            .map(|source| (source.cluster.as_str(), source.load.take_metrics()))
            .collect();
        let mut localities = ByLocality::new();
        for ((cluster, address), endpoint) in &mut self.endpoints {
            if !wanted.contains(cluster) {
                continue;
            }
            let mut since = endpoint.since();
            if let Some(metrics) = metrics.get_mut(cluster.as_str()) {
                since.metrics = metrics.remove(address).unwrap_or_default();
            }
            if since.is_empty() {
                continue;
            }
            let key = (cluster.clone(), endpoint.service.clone());
            let place = (key, endpoint.locality.clone());
            localities.entry(place).or_default().insert(*address, since);
        }
        localities
    }

    /// Drops since the last report.
    fn count_drops(&mut self, source: &LoadSource) -> (u64, Vec<DroppedRequests>) {
        let now = source.load.dropped();
        let known = self.drops.remove(&source.cluster);
        let known = known.filter(|known| Arc::ptr_eq(&known.load, &source.load));
        let mut known = known.unwrap_or_else(|| Drops {
            load: Arc::clone(&source.load),
            seen: Dropped::default(),
        });
        let total = now.total - known.seen.total;
        let mut categories = BTreeMap::new();
        for (category, count) in &now.by_category {
            let before = known.seen.by_category.get(category).copied();
            categories.insert(category.clone(), count - before.unwrap_or_default());
        }
        known.seen = now;
        self.drops.insert(source.cluster.clone(), known);
        let dropped = categories.into_iter();
        let dropped = dropped.filter(|(_, dropped_count)| *dropped_count > 0);
        let dropped = dropped.map(|(category, dropped_count)| DroppedRequests {
            category,
            dropped_count,
        });
        (total, dropped.collect())
    }
}

/// What of a cluster's drops has been reported.
#[derive(Debug)]
struct Drops {
    load: Arc<ClusterLoad>,
    seen: Dropped,
}

/// Cluster and service.
type ClusterKey = (String, String);

type ByLocality = HashMap<(ClusterKey, LocalityId), BTreeMap<SocketAddr, Since>>;

fn locality_stats(
    locality: LocalityId,
    endpoints: BTreeMap<SocketAddr, Since>,
    wanted: &Wanted,
) -> Option<UpstreamLocalityStats> {
    if endpoints.is_empty() {
        return None;
    }
    let mut stats = UpstreamLocalityStats {
        locality: Some(Locality {
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
        }),
        ..UpstreamLocalityStats::default()
    };
    let mut sums = EndpointMetrics::new();
    for since in endpoints.values() {
        stats.total_successful_requests += since.succeeded;
        stats.total_error_requests += since.failed;
        stats.total_requests_in_progress += since.in_progress;
        stats.total_issued_requests += since.issued;
        for (name, sum) in &since.metrics {
            let all = sums.entry(name.clone()).or_default();
            all.count += sum.count;
            all.total += sum.total;
        }
    }
    let mut fixed = |name: &str| {
        let sum = sums.remove(name)?;
        Some(UnnamedEndpointLoadMetricStats {
            num_requests_finished_with_metric: sum.count,
            total_metric_value: sum.total,
        })
    };
    stats.cpu_utilization = fixed("cpu_utilization");
    stats.mem_utilization = fixed("mem_utilization");
    stats.application_utilization = fixed("application_utilization");
    stats.load_metric_stats = metric_stats(sums);
    if wanted.endpoints {
        let endpoints = endpoints.into_iter();
        stats.upstream_endpoint_stats = endpoints.map(endpoint_stats).collect();
    }
    Some(stats)
}

fn metric_stats(sums: EndpointMetrics) -> Vec<EndpointLoadMetricStats> {
    sums.into_iter()
        .map(|(metric_name, sum)| EndpointLoadMetricStats {
            metric_name,
            num_requests_finished_with_metric: sum.count,
            total_metric_value: sum.total,
        })
        .collect()
}

fn endpoint_stats((address, since): (SocketAddr, Since)) -> UpstreamEndpointStats {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    UpstreamEndpointStats {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(socket)),
        }),
        total_successful_requests: since.succeeded,
        total_error_requests: since.failed,
        total_requests_in_progress: since.in_progress,
        total_issued_requests: since.issued,
        load_metric_stats: metric_stats(since.metrics),
        ..UpstreamEndpointStats::default()
    }
}
