//! Calls by cluster, and attempts by endpoint.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mesh_core::{health::Circuit, snapshot::ClusterSnapshot, stats::EndpointStats};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::{
    super::{
        code::{Code, Protocol},
        counts::{Counts, Extra, Totals},
    },
    encode::{counter, describe, gauge},
};

/// The clusters in use. One name may have several, in services that share nothing.
pub(super) type Clusters = Mutex<Vec<Weak<CallMetrics>>>;

/// Counters of one cluster.
pub struct CallMetrics {
    counts: Counts,
    /// Knows how many are in flight.
    circuit: Arc<Circuit>,
    cluster: String,
    /// Whose counters are shown as this cluster's endpoints.
    endpoints: Mutex<Option<Arc<ClusterSnapshot>>>,
}

impl CallMetrics {
    pub(super) fn new(name: &str, circuit: Arc<Circuit>) -> Self {
        Self {
            counts: Counts::default(),
            circuit,
            cluster: name.to_owned(),
            endpoints: Mutex::default(),
        }
    }

    /// Its counters, to be kept by those who count.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts the end of a call, with its latency.
    #[inline]
    pub fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        self.counts.finish(protocol, code, latency);
    }

    /// Shows the counters of the endpoints in `snapshot` as this cluster's.
    pub fn set_endpoints(&self, snapshot: &Arc<ClusterSnapshot>) {
        let mut held = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *held = Some(Arc::clone(snapshot));
    }
}

impl fmt::Debug for CallMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallMetrics({})", self.cluster)
    }
}

/// What is sent beyond the first attempts (A96 has the first three as `grpc.client.call.*`).
const EXTRAS: [(&str, Extra, &str); 6] = [
    (
        "mesh_client_retries",
        Extra::Retry,
        "Attempts by the retry policy",
    ),
    (
        "mesh_client_transparent_retries",
        Extra::Transparent,
        "Attempts of requests that never left",
    ),
    (
        "mesh_client_hedges",
        Extra::Hedge,
        "Attempts beside others, by the hedge policy",
    ),
    (
        "mesh_client_retries_over_budget",
        Extra::OverBudget,
        "Retries and hedges that the budget had no room for",
    ),
    (
        "mesh_client_mirrors",
        Extra::Mirror,
        "Copies that were sent, by the cluster that gets them",
    ),
    (
        "mesh_client_mirrors_dropped",
        Extra::MirrorDropped,
        "Copies that were not sent or given up, by the cluster that should get them",
    ),
];

/// Everything about the calling side, gathered when it is asked for.
#[derive(Debug)]
pub(super) struct ClientSeries(pub(super) Arc<Clusters>);

#[derive(Default)]
struct ClientTotals {
    calls: Totals,
    in_flight: u64,
    endpoints: BTreeMap<SocketAddr, Outcomes>,
}

/// Attempts that ended well and badly.
type Outcomes = [(&'static str, u64); 2];

fn outcomes(stats: &EndpointStats) -> Outcomes {
    [("success", stats.succeeded()), ("failure", stats.failed())]
}

impl ClientSeries {
    fn totals(&self) -> BTreeMap<String, ClientTotals> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let clusters: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        drop(held);
        let mut totals = BTreeMap::<_, ClientTotals>::new();
        for cluster in clusters {
            let of_name = totals.entry(cluster.cluster.clone()).or_default();
            cluster.counts.add_to(&mut of_name.calls);
            of_name.in_flight += u64::from(cluster.circuit.requests());
            let endpoints = cluster
                .endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for endpoint in endpoints.iter().flat_map(|snapshot| &snapshot.endpoints) {
                let held = of_name.endpoints.entry(endpoint.address);
                let held = held.or_insert([("success", 0), ("failure", 0)]);
                for (held, (_, more)) in held.iter_mut().zip(outcomes(&endpoint.stats)) {
                    held.1 += more;
                }
            }
        }
        totals
    }
}

impl Collector for ClientSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.totals();
        let encoder = &mut encoder;
        let help = "Calls by cluster and how they ended";
        let mut metric = describe(encoder, "mesh_client_requests", help, MetricType::Counter)?;
        for (cluster, totals) in &totals {
            for (code, count) in totals.calls.ended() {
                let labels = [("cluster", cluster.as_str()), ("code", code)];
                counter(&mut metric, &labels, count)?;
            }
        }
        let help = "Calls without an end yet";
        let name = "mesh_client_requests_in_flight";
        let mut metric = describe(encoder, name, help, MetricType::Gauge)?;
        for (cluster, totals) in &totals {
            let labels = [("cluster", cluster.as_str())];
            gauge(metric.encode_family(&labels)?, totals.in_flight)?;
        }
        for (name, extra, help) in EXTRAS {
            let mut metric = describe(encoder, name, help, MetricType::Counter)?;
            for (cluster, totals) in &totals {
                let count = totals.calls.extra(extra);
                counter(&mut metric, &[("cluster", cluster.as_str())], count)?;
            }
        }
        let help = "Attempts by endpoint and outcome";
        let name = "mesh_client_endpoint_requests";
        let mut metric = describe(encoder, name, help, MetricType::Counter)?;
        for (cluster, totals) in &totals {
            for (endpoint, outcomes) in &totals.endpoints {
                let endpoint = endpoint.to_string();
                for (outcome, count) in outcomes {
                    let labels = [
                        ("cluster", cluster.as_str()),
                        ("endpoint", endpoint.as_str()),
                        ("outcome", outcome),
                    ];
                    counter(&mut metric, &labels, *count)?;
                }
            }
        }
        let help = "Duration of outbound gRPC calls";
        let mut metric = describe(
            encoder,
            "rpc_client_call_duration",
            help,
            MetricType::Histogram,
        )?;
        for (cluster, totals) in totals.iter().filter(|(_, t)| !t.calls.grpc.is_empty()) {
            let labels = [("cluster", cluster.as_str())];
            totals.calls.grpc.encode(metric.encode_family(&labels)?)?;
        }
        let help = "Duration of outbound HTTP requests";
        let name = "http_client_request_duration";
        let mut metric = describe(encoder, name, help, MetricType::Histogram)?;
        for (cluster, totals) in totals.iter().filter(|(_, t)| !t.calls.http.is_empty()) {
            let labels = [("cluster", cluster.as_str())];
            totals.calls.http.encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
