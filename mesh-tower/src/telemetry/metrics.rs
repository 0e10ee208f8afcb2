//! Counters of this process, and their names.
//!
//! Stage 13. Handles are resolved once per cluster and server; a request then only adds to them.
//! The series of a cluster and of its endpoints end with them, so that churn does not grow the
//! registry. It keeps no history and pushes nothing: somebody scrapes [`Metrics::encode`].

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mesh_core::{
    filter::FilterAction, health::Circuit, snapshot::ClusterSnapshot, stats::EndpointStats,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::Counter, family::Family},
    registry::{Registry, Unit},
};

#[cfg(feature = "xds")]
use super::control_plane::ControlPlaneSeries;
use super::{
    certificate::CertificateSeries,
    code::{Code, Protocol},
    counts::{Counts, Extra, Totals},
    handshakes::HandshakeFailures,
    local_reply::{LocalReplies, LocalReplyReason, LocalReplyTotals},
};

type Labels<const N: usize> = [(&'static str, String); N];

/// Label of refusals for want of a matching `ALLOW` policy.
pub const NO_POLICY: &str = "(none allows)";

/// The registry of this process. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Mutex<Registry>,
    clusters: Arc<Clusters>,
    listeners: Arc<Listeners>,
    server: ServerMetrics,
    certificates: CertificateSeries,
    handshakes: HandshakeFailures,
    #[cfg(feature = "xds")]
    control_planes: ControlPlaneSeries,
    filters: Family<Labels<3>, Counter>,
    keys: Family<Labels<2>, Counter>,
}

/// The clusters in use. One name may have several, in services that share nothing.
type Clusters = Mutex<Vec<Weak<CallMetrics>>>;
/// The listeners in use, of which the same is true.
type Listeners = Mutex<Vec<Weak<ListenerMetrics>>>;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let clusters = Arc::<Clusters>::default();
        registry.register_collector(Box::new(ClientSeries(Arc::clone(&clusters))));
        let listeners = Arc::<Listeners>::default();
        registry.register_collector(Box::new(ListenerSeries(Arc::clone(&listeners))));
        let server = ServerMetrics::new(&mut registry);
        let certificates = CertificateSeries::default();
        registry.register_collector(Box::new(certificates.clone()));
        let handshakes = HandshakeFailures::new(&mut registry);
        #[cfg(feature = "xds")]
        let control_planes = ControlPlaneSeries::default();
        #[cfg(feature = "xds")]
        registry.register_collector(Box::new(control_planes.clone()));
        let filters = Family::<Labels<3>, Counter>::default();
        let help = "What filters did with requests";
        registry.register("mesh_filter_actions", help, filters.clone());
        let keys = Family::<Labels<2>, Counter>::default();
        let help = "Fetches of the keys of issuers of tokens";
        registry.register("mesh_server_jwks_fetches", help, keys.clone());
        Self {
            shared: Arc::new(Shared {
                filters,
                keys,
                registry: Mutex::new(registry),
                clusters,
                listeners,
                server,
                certificates,
                handshakes,
                #[cfg(feature = "xds")]
                control_planes,
            }),
        }
    }

    /// Counters of one cluster, whose calls have permits of `circuit`. Its series end with the handle.
    pub fn cluster(&self, name: &str, circuit: Arc<Circuit>) -> Arc<CallMetrics> {
        let metrics = Arc::new(CallMetrics {
            counts: Counts::default(),
            circuit,
            cluster: name.to_owned(),
            endpoints: Mutex::default(),
        });
        keep(&self.shared.clusters, &metrics);
        metrics
    }

    /// Counters of what is dialled by one name. Its series end with the handle.
    pub(crate) fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let metrics = Arc::new(ListenerMetrics {
            listener: name.to_owned(),
            replies: LocalReplies::default(),
        });
        keep(&self.shared.listeners, &metrics);
        metrics
    }

    /// TLS handshakes of the client that failed.
    pub(crate) fn handshakes(&self) -> &HandshakeFailures {
        &self.shared.handshakes
    }

    /// Where our own certificates are shown.
    #[cfg_attr(
        not(feature = "xds"),
        expect(dead_code, reason = "an identity is handed in")
    )]
    pub(crate) fn certificates(&self) -> &CertificateSeries {
        &self.shared.certificates
    }

    /// Where streams to control planes are shown.
    #[cfg(feature = "xds")]
    pub(crate) fn control_planes(&self) -> &ControlPlaneSeries {
        &self.shared.control_planes
    }

    /// The handles of the serving side.
    pub fn server(&self) -> &ServerMetrics {
        &self.shared.server
    }

    /// Counts what a filter did, on side `client` or `server`.
    #[cold]
    pub(crate) fn filtered(&self, side: &'static str, filter: &str, action: FilterAction) {
        let labels = [
            ("side", side.to_owned()),
            ("filter", filter.to_owned()),
            ("action", action.label().to_owned()),
        ];
        self.shared.filters.get_or_create(&labels).inc();
    }

    /// Counts a fetch of an issuer's keys.
    pub(crate) fn keys_fetched(&self, cluster: &str, succeeded: bool) {
        let result = if succeeded { "ok" } else { "failed" };
        let labels = [
            ("cluster", cluster.to_owned()),
            ("result", result.to_owned()),
        ];
        self.shared.keys.get_or_create(&labels).inc();
    }

    /// Adds metrics of the caller's own.
    pub fn with_registry<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self
            .shared
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let registry = self
            .shared
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if text::encode(&mut out, &registry).is_err() {
            // Writing to a `String` does not fail; a metric of the caller's own may.
            tracing::warn!(target: "mesh::telemetry", "a metric cannot be encoded");
        }
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn keep<T>(held: &Mutex<Vec<Weak<T>>>, one: &Arc<T>) {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    // Room is made before more of it is taken: the cost of one stays constant.
    if held.len() == held.capacity() {
        held.retain(|held| held.strong_count() > 0);
    }
    held.push(Arc::downgrade(one));
}

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
struct ClientSeries(Arc<Clusters>);

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

/// Calls by one dialled name that no cluster counts, as they were answered before one had them.
#[derive(Debug)]
pub(crate) struct ListenerMetrics {
    listener: String,
    replies: LocalReplies,
}

impl ListenerMetrics {
    /// Counts an answer.
    pub(crate) fn local_reply(&self, reason: LocalReplyReason, code: Code) {
        self.replies.count(reason, code);
    }
}

#[derive(Debug)]
struct ListenerSeries(Arc<Listeners>);

impl Collector for ListenerSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        drop(held);
        let mut totals = BTreeMap::<&str, Box<LocalReplyTotals>>::new();
        for listener in &listeners {
            let of_name = totals.entry(&listener.listener).or_default();
            listener.replies.add_to(of_name);
        }
        let name = "mesh_client_local_replies";
        let help = "Calls that were answered before a cluster had them, by why and how";
        let mut metric = describe(&mut encoder, name, help, MetricType::Counter)?;
        for (listener, totals) in &totals {
            for (reason, code, count) in totals.counted() {
                let labels = [("listener", *listener), ("reason", reason), ("code", code)];
                counter(&mut metric, &labels, count)?;
            }
        }
        Ok(())
    }
}

/// Counters of the serving side.
pub struct ServerMetrics {
    counts: Arc<Counts>,
    replies: Arc<LocalReplies>,
    denied: Family<Labels<1>, Counter>,
    shadow: Family<Labels<2>, Counter>,
    refused_connections: Family<Labels<1>, Counter>,
    connections: Family<Labels<1>, Counter>,
}

impl ServerMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            counts: Arc::default(),
            replies: Arc::default(),
            denied: Family::default(),
            shadow: Family::default(),
            refused_connections: Family::default(),
            connections: Family::default(),
        };
        registry.register_collector(Box::new(ServerSeries {
            counts: Arc::clone(&metrics.counts),
            replies: Arc::clone(&metrics.replies),
        }));
        registry.register(
            "mesh_server_denied",
            "Requests refused by authorisation",
            metrics.denied.clone(),
        );
        registry.register(
            "mesh_server_shadow",
            "What shadow rules of authorisation would have said",
            metrics.shadow.clone(),
        );
        registry.register(
            "mesh_server_refused_connections",
            "Connections refused before any request",
            metrics.refused_connections.clone(),
        );
        registry.register(
            "mesh_server_connections",
            "Connections accepted: mutual_tls, tls (without a certificate of the client), none",
            metrics.connections.clone(),
        );
        metrics
    }

    /// Counts a request as in flight until [`finish`](Self::finish).
    #[inline]
    pub fn start(&self) {
        self.counts.start();
    }

    /// Counts the end of a request that was started, with its latency.
    #[inline]
    pub fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        self.counts.finish(protocol, code, latency);
    }

    /// Counts a request that was answered in place of the application.
    pub(crate) fn local_reply(&self, reason: LocalReplyReason, code: Code) {
        self.replies.count(reason, code);
    }

    /// Counts a refusal by authorisation. `policy` is the one that matched, `None` when none did.
    pub fn denied(&self, policy: Option<&str>) {
        let labels = [("policy", policy.unwrap_or(NO_POLICY).to_owned())];
        self.denied.get_or_create_owned(&labels).inc();
    }

    /// Counts what shadow rules would have said.
    pub fn shadow(&self, allowed: bool, policy: Option<&str>) {
        let decision = if allowed { "allowed" } else { "denied" };
        let labels = [
            ("decision", decision.to_owned()),
            ("policy", policy.unwrap_or(NO_POLICY).to_owned()),
        ];
        self.shadow.get_or_create_owned(&labels).inc();
    }

    /// Counts a connection that was accepted, by how it is secured: `mutual_tls`, `tls` or `none`.
    pub fn connection_accepted(&self, security: &str) {
        self.connections
            .get_or_create_owned(&[("connection_security_policy", security.to_owned())])
            .inc();
    }

    /// Counts a connection that was refused before any request.
    pub fn connection_refused(&self, reason: &str) {
        self.refused_connections
            .get_or_create_owned(&[("reason", reason.to_owned())])
            .inc();
    }
}

impl fmt::Debug for ServerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerMetrics")
    }
}

#[derive(Debug)]
struct ServerSeries {
    counts: Arc<Counts>,
    replies: Arc<LocalReplies>,
}

impl Collector for ServerSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut totals = Totals::default();
        self.counts.add_to(&mut totals);
        let encoder = &mut encoder;
        let help = "Served requests by how they ended";
        let mut metric = describe(encoder, "mesh_server_requests", help, MetricType::Counter)?;
        for (code, count) in totals.ended() {
            counter(&mut metric, &[("code", code)], count)?;
        }
        let mut replies = Box::<LocalReplyTotals>::default();
        self.replies.add_to(&mut replies);
        let name = "mesh_server_local_replies";
        let help = "Requests that were answered in place of the application, by why and how";
        let mut metric = describe(encoder, name, help, MetricType::Counter)?;
        for (reason, code, count) in replies.counted() {
            counter(&mut metric, &[("reason", reason), ("code", code)], count)?;
        }
        let help = "Served requests without an end yet";
        let name = "mesh_server_requests_in_flight";
        gauge(
            describe(encoder, name, help, MetricType::Gauge)?,
            totals.in_flight(),
        )?;
        let help = "Duration of served gRPC calls";
        let name = "rpc_server_call_duration";
        totals
            .grpc
            .encode(describe(encoder, name, help, MetricType::Histogram)?)?;
        let help = "Duration of served HTTP requests";
        let name = "http_server_request_duration";
        totals
            .http
            .encode(describe(encoder, name, help, MetricType::Histogram)?)
    }
}

/// Begins a metric. Histograms are of seconds.
fn describe<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    let unit = matches!(kind, MetricType::Histogram).then_some(&Unit::Seconds);
    encoder.encode_descriptor(name, help, unit, kind)
}

fn counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: u64,
) -> fmt::Result {
    let mut encoder = metric.encode_family(labels)?;
    encoder.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn gauge(mut encoder: MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_and_shown() {
        let metrics = Metrics::new();
        let [circuit, others] = [(); 2].map(|()| Arc::new(Circuit::new(10)));
        let cluster = metrics.cluster("outbound|80||a", Arc::clone(&circuit));
        let other = metrics.cluster("outbound|80||a", others);
        assert!(circuit.try_acquire());
        cluster.counts().extra(Extra::Retry);
        cluster.finish(Protocol::Grpc, Code::Grpc(0), Duration::from_millis(7));
        cluster.finish(Protocol::Http, Code::Http(503), Duration::from_secs(60));
        other.finish(Protocol::Grpc, Code::Grpc(0), Duration::from_millis(5));
        let server = metrics.server();
        server.start();
        server.finish(Protocol::Http, Code::Http(200), Duration::ZERO);
        server.denied(None);
        server.denied(Some("no-admin"));
        let text = metrics.encode();
        for line in [
            "mesh_client_requests_total{cluster=\"outbound|80||a\",code=\"OK\"} 2",
            "mesh_client_requests_total{cluster=\"outbound|80||a\",code=\"5xx\"} 1",
            "mesh_client_requests_in_flight{cluster=\"outbound|80||a\"} 1",
            "mesh_client_retries_total{cluster=\"outbound|80||a\"} 1",
            "rpc_client_call_duration_seconds_bucket{le=\"0.005\",cluster=\"outbound|80||a\"} 1",
            "rpc_client_call_duration_seconds_bucket{le=\"0.01\",cluster=\"outbound|80||a\"} 2",
            "http_client_request_duration_seconds_bucket{le=\"10.0\",cluster=\"outbound|80||a\"} 0",
            "http_client_request_duration_seconds_bucket{le=\"+Inf\",cluster=\"outbound|80||a\"} 1",
            "http_client_request_duration_seconds_sum{cluster=\"outbound|80||a\"} 60.0",
            "mesh_server_requests_total{code=\"2xx\"} 1",
            "mesh_server_requests_in_flight 0",
            "mesh_server_denied_total{policy=\"no-admin\"} 1",
            "mesh_server_denied_total{policy=\"(none allows)\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        drop(other);
        circuit.release();
        let line = "mesh_client_requests_in_flight{cluster=\"outbound|80||a\"} 0";
        assert!(metrics.encode().contains(line));
        drop(cluster);
        assert!(
            !metrics.encode().contains("outbound|80"),
            "its series end with it"
        );
    }
}
