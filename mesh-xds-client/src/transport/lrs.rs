//! Load reports: how many requests went where, told to the control plane that asks for it (LRS).
//!
//! Stage 1, the way out. Reads counters, never writes them. One stream, to the first control plane,
//! while a cluster with `lrs_server: self` is in use; a report per interval, of the clusters that the
//! control plane names, and a last one at the end. An error is what the classifier of requests counts
//! as one. Deviations: reports go to the first control plane, not to the one a cluster came from;
//! members of aggregates, drops and ORCA metrics are not reported.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{Locality, Node},
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse,
            load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_core::{
    config::LocalityId, rng::SplitMix64, snapshot::ClusterSnapshot, stats::EndpointStats,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{KeepAlive, backoff::Backoff, connect};
use crate::bootstrap::Server;

/// Shortest interval that a control plane gets.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Interval when the control plane names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

/// A cluster whose load is reported.
#[derive(Clone, Debug)]
pub(crate) struct LoadSource {
    pub(crate) cluster: String,
    /// Its name in EDS.
    pub(crate) service: String,
    pub(crate) current: watch::Receiver<Arc<ClusterSnapshot>>,
}

/// What the task needs.
pub(crate) struct Reporter {
    pub(crate) server: Arc<Server>,
    pub(crate) node: Node,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) backoff: Backoff,
    pub(crate) rng: SplitMix64,
    pub(crate) sources: watch::Receiver<Vec<LoadSource>>,
    pub(crate) counted: Counted,
}

impl Reporter {
    /// Runs until the sender of sources is gone, and a last report is sent.
    pub(crate) async fn run(mut self) {
        loop {
            if self
                .sources
                .wait_for(|sources| !sources.is_empty())
                .await
                .is_err()
            {
                return;
            }
            let Err(error) = self.stream().await else {
                return;
            };
            let pause = self.backoff.after_failure(&mut self.rng);
            tracing::warn!(server = %self.server.uri, error, "no load reports for a while");
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream; `Ok` when there is nothing to report any more.
    async fn stream(&mut self) -> Result<(), String> {
        let connected = connect(Arc::clone(&self.server), self.keep_alive).await?;
        let (requests, queue) = mpsc::channel(2);
        let first = LoadStatsRequest {
            node: Some(self.node.clone()),
            ..LoadStatsRequest::default()
        };
        let is_gone = |_| "the stream is gone".to_owned();
        requests.send(first).await.map_err(is_gone)?;
        let mut client = LoadReportingServiceClient::new(connected.channel.clone());
        let call = connected.call(ReceiverStream::new(queue));
        let status = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let mut responses = client
            .stream_load_stats(call)
            .await
            .map_err(status)?
            .into_inner();
        let first = responses.message().await.map_err(status)?;
        let mut wanted = Wanted::new(&first.ok_or("the server ended the stream")?);
        self.backoff.reset();
        let mut last = Instant::now();
        loop {
            let is_over = tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(status)?;
                    wanted = Wanted::new(&response.ok_or("the server ended the stream")?);
                    continue;
                }
                () = tokio::time::sleep_until(last + wanted.interval) => false,
                closed = until_closed(&mut self.sources) => closed,
            };
            let now = Instant::now();
            let sources = self.sources.borrow().clone();
            let stats = self.counted.report(&sources, &wanted, now - last);
            last = now;
            let request = LoadStatsRequest {
                cluster_stats: stats,
                ..LoadStatsRequest::default()
            };
            requests.send(request).await.map_err(is_gone)?;
            if is_over {
                drop(requests);
                // Until the server has read it.
                let read = async { while let Ok(Some(_)) = responses.message().await {} };
                _ = tokio::time::timeout(Duration::from_secs(1), read).await;
                return Ok(());
            }
        }
    }
}

async fn until_closed(sources: &mut watch::Receiver<Vec<LoadSource>>) -> bool {
    while sources.changed().await.is_ok() {}
    true
}

/// What the control plane wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    interval: Duration,
    /// `None` is all.
    clusters: Option<Vec<String>>,
}

impl Wanted {
    fn new(response: &LoadStatsResponse) -> Self {
        let interval = response.load_reporting_interval.as_ref().and_then(|i| {
            let seconds = u64::try_from(i.seconds).ok()?;
            let nanos = u32::try_from(i.nanos).ok().filter(|n| *n < 1_000_000_000)?;
            Some(Duration::new(seconds, nanos))
        });
        Self {
            interval: interval.unwrap_or(INTERVAL_DEFAULT).max(INTERVAL_MIN),
            clusters: (!response.send_all_clusters).then(|| response.clusters.clone()),
        }
    }

    fn contains(&self, cluster: &str) -> bool {
        let clusters = self.clusters.as_ref();
        clusters.is_none_or(|clusters| clusters.iter().any(|name| name == cluster))
    }
}

/// What has been reported already.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    endpoints: HashMap<(String, SocketAddr), Endpoint>,
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

impl Counted {
    /// Counts since the last report; clusters without any are left out.
    fn report(
        &mut self,
        sources: &[LoadSource],
        wanted: &Wanted,
        elapsed: Duration,
    ) -> Vec<ClusterStats> {
        for endpoint in self.endpoints.values_mut() {
            endpoint.is_current = false;
        }
        for source in sources {
            let snapshot = source.current.borrow().clone();
            for found in &snapshot.endpoints {
                let key = (source.cluster.clone(), found.address);
                let known = self.endpoints.get_mut(&key);
                match known.filter(|known| Arc::ptr_eq(&known.stats, &found.stats)) {
                    Some(known) => known.is_current = true,
                    None => {
                        let endpoint = Endpoint {
                            service: source.service.clone(),
                            locality: LocalityId::clone(&found.locality),
                            stats: Arc::clone(&found.stats),
                            is_current: true,
                            succeeded: 0,
                            failed: 0,
                            issued: 0,
                        };
                        self.endpoints.insert(key, endpoint);
                    }
                }
            }
        }
        let mut clusters: BTreeMap<(String, String), BTreeMap<LocalityId, UpstreamLocalityStats>> =
            BTreeMap::new();
        for ((cluster, _), endpoint) in &mut self.endpoints {
            if !wanted.contains(cluster) {
                continue;
            }
            let (succeeded, failed) = (endpoint.stats.succeeded(), endpoint.stats.failed());
            let in_progress = u64::from(endpoint.stats.in_flight());
            let issued = succeeded + failed + in_progress;
            let key = (cluster.clone(), endpoint.service.clone());
            let localities = clusters.entry(key).or_default();
            let stats = localities.entry(endpoint.locality.clone()).or_default();
            stats.total_successful_requests += succeeded - endpoint.succeeded;
            stats.total_error_requests += failed - endpoint.failed;
            stats.total_requests_in_progress += in_progress;
            stats.total_issued_requests += issued.saturating_sub(endpoint.issued);
            (endpoint.succeeded, endpoint.failed) = (succeeded, failed);
            endpoint.issued = endpoint.issued.max(issued);
        }
        // What has left the cluster is counted to the end of its last request.
        self.endpoints
            .retain(|_, endpoint| endpoint.is_current || endpoint.stats.in_flight() > 0);
        let interval = DurationProto {
            seconds: i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(elapsed.subsec_nanos()).unwrap_or_default(),
        };
        let mut report = Vec::new();
        for ((cluster_name, cluster_service_name), localities) in clusters {
            let has_data = |stats: &UpstreamLocalityStats| {
                stats.total_issued_requests
                    + stats.total_requests_in_progress
                    + stats.total_successful_requests
                    + stats.total_error_requests
                    > 0
            };
            let localities = localities.into_iter().filter(|(_, stats)| has_data(stats));
            let upstream_locality_stats: Vec<_> = localities
                .map(|(locality, stats)| UpstreamLocalityStats {
                    locality: Some(Locality {
                        region: locality.region,
                        zone: locality.zone,
                        sub_zone: locality.sub_zone,
                    }),
                    ..stats
                })
                .collect();
            if !upstream_locality_stats.is_empty() {
                report.push(ClusterStats {
                    cluster_name,
                    cluster_service_name,
                    upstream_locality_stats,
                    load_report_interval: Some(interval),
                    ..ClusterStats::default()
                });
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        config::{
            CircuitBreakers, Cluster, ClusterEndpoints, Discovery, Endpoint as Declared,
            HealthStatus, HttpVersion, LbPolicy, LocalityEndpoints,
        },
        snapshot::{ClusterTree, Compiler},
    };

    use super::*;

    fn tree(hosts: &[u8]) -> ClusterTree {
        let endpoint = |host: &u8| Declared {
            address: ([10, 0, 0, *host], 80).into(),
            weight: 1,
            health: HealthStatus::Healthy,
            hostname: String::new(),
        };
        ClusterTree {
            cluster: Ok(Arc::new(Cluster {
                name: "c".into(),
                discovery: Discovery::Eds("e".into()),
                lb_policy: LbPolicy::RoundRobin,
                circuit_breakers: CircuitBreakers::default(),
                connect_timeout: Duration::from_secs(1),
                http_version: HttpVersion::ByRequest,
                tls: None,
            })),
            endpoints: Ok(Arc::new(ClusterEndpoints {
                name: "e".into(),
                localities: vec![LocalityEndpoints {
                    locality: LocalityId::default(),
                    priority: 0,
                    weight: 1,
                    endpoints: hosts.iter().map(endpoint).collect(),
                }],
            })),
        }
    }

    /// A cluster of two endpoints, and what reads its load.
    fn source() -> (Compiler, LoadSource) {
        let mut compiler = Compiler::new(1);
        let host = mesh_core::config::VirtualHost::new("h", ["*"], vec![]);
        let routes = mesh_core::config::RouteConfig::new("r", vec![host]);
        let snapshot = compiler
            .compile(&mesh_core::snapshot::ConfigTree {
                listener: "l".into(),
                authority: "a".into(),
                max_stream_duration: None,
                routes: Arc::new(routes),
                clusters: [("c".into(), tree(&[1, 2]))].into(),
            })
            .unwrap();
        let source = LoadSource {
            cluster: "c".into(),
            service: "e".into(),
            current: snapshot.clusters[0].current.clone(),
        };
        (compiler, source)
    }

    fn stats(source: &LoadSource, i: usize) -> Arc<EndpointStats> {
        Arc::clone(&source.current.borrow().endpoints[i].stats)
    }

    const ALL: Wanted = Wanted {
        interval: INTERVAL_DEFAULT,
        clusters: None,
    };

    /// Succeeded, failed, in progress, issued.
    fn counts(report: &[ClusterStats]) -> (u64, u64, u64, u64) {
        let stats = &report[0].upstream_locality_stats[0];
        (
            stats.total_successful_requests,
            stats.total_error_requests,
            stats.total_requests_in_progress,
            stats.total_issued_requests,
        )
    }

    #[test]
    fn counts_are_since_the_last_report_and_in_progress_is_absolute() {
        let (_compiler, source) = source();
        let mut counted = Counted::default();
        let second = Duration::from_secs(1);
        let sources = std::slice::from_ref(&source);
        assert!(counted.report(sources, &ALL, second).is_empty(), "no data");
        let (one, two) = (stats(&source, 0), stats(&source, 1));
        for stats in [&one, &one, &two] {
            stats.begin();
        }
        one.end(true);
        two.end(false);
        let report = counted.report(sources, &ALL, second);
        assert_eq!(counts(&report), (1, 1, 1, 3));
        assert_eq!(report[0].cluster_service_name, "e");
        let report = counted.report(sources, &ALL, second);
        assert_eq!(counts(&report), (0, 0, 1, 0));
        one.end(true);
        assert_eq!(counts(&counted.report(sources, &ALL, second)), (1, 0, 0, 0));
        assert!(counted.report(sources, &ALL, second).is_empty());
    }

    #[test]
    fn an_endpoint_that_has_left_is_counted_to_its_last_request() {
        let (mut compiler, source) = source();
        let mut counted = Counted::default();
        let second = Duration::from_secs(1);
        let sources = std::slice::from_ref(&source);
        let gone = stats(&source, 1);
        gone.begin();
        counted.report(sources, &ALL, second);
        compiler.update_cluster(&"c".into(), &tree(&[1]));
        assert_eq!(counts(&counted.report(sources, &ALL, second)), (0, 0, 1, 0));
        gone.end(true);
        assert_eq!(counts(&counted.report(sources, &ALL, second)), (1, 0, 0, 0));
        assert_eq!(counted.endpoints.len(), 1);
    }

    #[test]
    fn only_clusters_that_are_asked_for_are_reported() {
        let (_compiler, source) = source();
        stats(&source, 0).begin();
        let mut counted = Counted::default();
        let some = |clusters: &[&str]| Wanted {
            clusters: Some(clusters.iter().map(|name| (*name).to_owned()).collect()),
            ..ALL
        };
        let second = Duration::from_secs(1);
        let sources = std::slice::from_ref(&source);
        assert!(counted.report(sources, &some(&["x"]), second).is_empty());
        assert_eq!(counted.report(sources, &some(&["c"]), second).len(), 1);
    }

    #[test]
    fn an_interval_has_a_default_and_a_lower_bound() {
        let wanted = |seconds, nanos| {
            Wanted::new(&LoadStatsResponse {
                load_reporting_interval: Some(DurationProto { seconds, nanos }),
                ..LoadStatsResponse::default()
            })
        };
        assert_eq!(wanted(3, 0).interval, Duration::from_secs(3));
        assert_eq!(wanted(0, 0).interval, INTERVAL_MIN);
        assert_eq!(wanted(-1, 0).interval, INTERVAL_DEFAULT);
        let none = Wanted::new(&LoadStatsResponse::default());
        assert_eq!(none.interval, INTERVAL_DEFAULT);
    }
}
