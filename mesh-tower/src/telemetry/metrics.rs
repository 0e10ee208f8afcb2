//! Counters of this process, and their names.
//!
//! Stage 13. Handles are resolved once per cluster, endpoint and server; a request then only adds
//! to them. Series of an endpoint end with the last holder of its handle, so that churn does not
//! grow the registry. It keeps no history and pushes nothing: somebody scrapes [`Metrics::encode`].

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    code::{CODES, Code, Protocol},
    histogram::Histogram,
};

type Labels<const N: usize> = [(&'static str, String); N];

/// Label of refusals for want of a matching `ALLOW` policy.
pub const NO_POLICY: &str = "(none allows)";

/// The registry of this process and the families it holds. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Mutex<Registry>,
    families: Families,
    clusters: Mutex<HashMap<String, Weak<CallMetrics>>>,
    endpoints: Mutex<HashMap<(String, SocketAddr), Weak<EndpointMetrics>>>,
    server: ServerMetrics,
}

#[derive(Clone, Default)]
struct Families {
    requests: Family<Labels<2>, Counter>,
    in_flight: Family<Labels<1>, Gauge>,
    retries: Family<Labels<1>, Counter>,
    endpoint_requests: Family<Labels<3>, Counter>,
    rpc_client: Family<Labels<1>, Histogram>,
    http_client: Family<Labels<1>, Histogram>,
    server_requests: Family<Labels<1>, Counter>,
    server_denied: Family<Labels<1>, Counter>,
    refused_connections: Family<Labels<1>, Counter>,
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "mesh_client_requests",
            "Calls by cluster and how they ended",
            self.requests.clone(),
        );
        registry.register(
            "mesh_client_requests_in_flight",
            "Calls without a response yet",
            self.in_flight.clone(),
        );
        registry.register(
            "mesh_client_retries",
            "Attempts after the first",
            self.retries.clone(),
        );
        registry.register(
            "mesh_client_endpoint_requests",
            "Attempts by endpoint and outcome",
            self.endpoint_requests.clone(),
        );
        registry.register_with_unit(
            "rpc_client_call_duration",
            "Duration of outbound gRPC calls",
            Unit::Seconds,
            self.rpc_client.clone(),
        );
        registry.register_with_unit(
            "http_client_request_duration",
            "Duration of outbound HTTP requests",
            Unit::Seconds,
            self.http_client.clone(),
        );
        registry.register(
            "mesh_server_requests",
            "Served requests by how they ended",
            self.server_requests.clone(),
        );
        registry.register(
            "mesh_server_denied",
            "Requests refused by authorisation",
            self.server_denied.clone(),
        );
        registry.register(
            "mesh_server_refused_connections",
            "Connections refused before any request",
            self.refused_connections.clone(),
        );
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let families = Families::default();
        families.register(&mut registry);
        let server = ServerMetrics::new(&families, &mut registry);
        Self {
            shared: Arc::new(Shared {
                registry: Mutex::new(registry),
                families,
                clusters: Mutex::default(),
                endpoints: Mutex::default(),
                server,
            }),
        }
    }

    /// The handles of one cluster; the same for everybody who holds them at a time.
    pub fn cluster(&self, cluster: &str) -> Arc<CallMetrics> {
        let mut held = self
            .shared
            .clusters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = held.get(cluster).and_then(Weak::upgrade) {
            return metrics;
        }
        let families = &self.shared.families;
        let label = [("cluster", cluster.to_owned())];
        let metrics = Arc::new(CallMetrics {
            cluster: cluster.to_owned(),
            requests: Codes::default(),
            in_flight: families.in_flight.get_or_create_owned(&label),
            retries: families.retries.get_or_create_owned(&label),
            rpc: OnceLock::new(),
            http: OnceLock::new(),
            families: families.clone(),
        });
        held.insert(cluster.to_owned(), Arc::downgrade(&metrics));
        metrics
    }

    /// The handles of one endpoint of a cluster. Its series end when the last holder drops them.
    pub fn endpoint(&self, cluster: &str, endpoint: SocketAddr) -> Arc<EndpointMetrics> {
        let key = (cluster.to_owned(), endpoint);
        let mut held = self
            .shared
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = held.get(&key).and_then(Weak::upgrade) {
            return metrics;
        }
        let family = &self.shared.families.endpoint_requests;
        let [success, failure] =
            ENDPOINT_OUTCOMES.map(|o| family.get_or_create_owned(&endpoint_labels(&key, o)));
        let shared = Arc::downgrade(&self.shared);
        let metrics = Arc::new(EndpointMetrics {
            key: key.clone(),
            success,
            failure,
            shared,
        });
        held.insert(key, Arc::downgrade(&metrics));
        metrics
    }

    /// The handles of the serving side.
    pub fn server(&self) -> &ServerMetrics {
        &self.shared.server
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

/// Counters by [`Code`], each made when it is first needed.
#[derive(Default)]
struct Codes {
    counters: [OnceLock<Counter>; CODES],
}

impl Codes {
    fn count(&self, code: Code, make: impl FnOnce() -> Counter) {
        self.counters[code.index()].get_or_init(make).inc();
    }
}

/// Handles of one cluster.
pub struct CallMetrics {
    cluster: String,
    requests: Codes,
    in_flight: Gauge,
    retries: Counter,
    rpc: OnceLock<Histogram>,
    http: OnceLock<Histogram>,
    families: Families,
}

impl CallMetrics {
    /// Counts a call as in flight until the guard is dropped.
    pub fn start(self: &Arc<Self>) -> InFlight {
        InFlight::new(self.in_flight.clone())
    }

    /// Counts a finished call with its latency.
    pub fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        let label = || ("cluster", self.cluster.clone());
        self.requests.count(code, || {
            let labels = [label(), ("code", code.label().to_owned())];
            self.families.requests.get_or_create_owned(&labels)
        });
        let (cell, family) = match protocol {
            Protocol::Grpc => (&self.rpc, &self.families.rpc_client),
            Protocol::Http => (&self.http, &self.families.http_client),
        };
        cell.get_or_init(|| family.get_or_create_owned(&[label()]))
            .observe(latency);
    }

    /// Counts an attempt after the first.
    pub fn retry(&self) {
        self.retries.inc();
    }
}

impl fmt::Debug for CallMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallMetrics({})", self.cluster)
    }
}

/// Handles of one endpoint of a cluster.
pub struct EndpointMetrics {
    key: (String, SocketAddr),
    success: Counter,
    failure: Counter,
    shared: Weak<Shared>,
}

impl EndpointMetrics {
    /// Counts an attempt.
    pub fn record(&self, success: bool) {
        if success {
            &self.success
        } else {
            &self.failure
        }
        .inc();
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut held = shared
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A new holder may have come between the last drop and this lock: its series stay.
        if held
            .get(&self.key)
            .is_some_and(|metrics| metrics.strong_count() > 0)
        {
            return;
        }
        held.remove(&self.key);
        for outcome in ENDPOINT_OUTCOMES {
            shared
                .families
                .endpoint_requests
                .remove(&endpoint_labels(&self.key, outcome));
        }
    }
}

impl fmt::Debug for EndpointMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointMetrics({}, {})", self.key.0, self.key.1)
    }
}

/// Handles of the serving side.
pub struct ServerMetrics {
    requests: Codes,
    in_flight: Gauge,
    rpc: Histogram,
    http: Histogram,
    families: Families,
}

impl ServerMetrics {
    fn new(families: &Families, registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Codes::default(),
            in_flight: Gauge::default(),
            rpc: Histogram::default(),
            http: Histogram::default(),
            families: families.clone(),
        };
        registry.register(
            "mesh_server_requests_in_flight",
            "Served requests without an end yet",
            metrics.in_flight.clone(),
        );
        registry.register_with_unit(
            "rpc_server_call_duration",
            "Duration of served gRPC calls",
            Unit::Seconds,
            metrics.rpc.clone(),
        );
        registry.register_with_unit(
            "http_server_request_duration",
            "Duration of served HTTP requests",
            Unit::Seconds,
            metrics.http.clone(),
        );
        metrics
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn start(&self) -> InFlight {
        InFlight::new(self.in_flight.clone())
    }

    /// Counts a finished request with its latency.
    pub fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        self.requests.count(code, || {
            let labels = [("code", code.label().to_owned())];
            self.families.server_requests.get_or_create_owned(&labels)
        });
        match protocol {
            Protocol::Grpc => self.rpc.observe(latency),
            Protocol::Http => self.http.observe(latency),
        }
    }

    /// Counts a refusal by authorisation. `policy` is the one that matched, `None` when none did.
    pub fn denied(&self, policy: Option<&str>) {
        let labels = [("policy", policy.unwrap_or(NO_POLICY).to_owned())];
        self.families
            .server_denied
            .get_or_create_owned(&labels)
            .inc();
    }

    /// Counts a connection that was refused before any request.
    pub fn connection_refused(&self, reason: &str) {
        self.families
            .refused_connections
            .get_or_create_owned(&[("reason", reason.to_owned())])
            .inc();
    }
}

impl fmt::Debug for ServerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerMetrics")
    }
}

/// Something in flight; the gauge goes down when it is dropped.
#[derive(Debug)]
pub struct InFlight {
    gauge: Gauge,
}

impl InFlight {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self { gauge }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

const ENDPOINT_OUTCOMES: [&str; 2] = ["success", "failure"];

fn endpoint_labels((cluster, endpoint): &(String, SocketAddr), outcome: &str) -> Labels<3> {
    [
        ("cluster", cluster.clone()),
        ("endpoint", endpoint.to_string()),
        ("outcome", outcome.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_and_shown() {
        let metrics = Metrics::new();
        let cluster = metrics.cluster("outbound|80||a");
        assert!(Arc::ptr_eq(&cluster, &metrics.cluster("outbound|80||a")));
        let guard = cluster.start();
        cluster.retry();
        cluster.finish(Protocol::Grpc, Code::Grpc(0), Duration::from_millis(7));
        cluster.finish(Protocol::Http, Code::Http(503), Duration::from_secs(60));
        metrics
            .server()
            .finish(Protocol::Http, Code::Http(200), Duration::ZERO);
        metrics.server().denied(None);
        metrics.server().denied(Some("no-admin"));
        let text = metrics.encode();
        for line in [
            "mesh_client_requests_total{cluster=\"outbound|80||a\",code=\"OK\"} 1",
            "mesh_client_requests_total{cluster=\"outbound|80||a\",code=\"5xx\"} 1",
            "mesh_client_requests_in_flight{cluster=\"outbound|80||a\"} 1",
            "mesh_client_retries_total{cluster=\"outbound|80||a\"} 1",
            "rpc_client_call_duration_seconds_bucket{le=\"0.005\",cluster=\"outbound|80||a\"} 0",
            "rpc_client_call_duration_seconds_bucket{le=\"0.01\",cluster=\"outbound|80||a\"} 1",
            "http_client_request_duration_seconds_bucket{le=\"10.0\",cluster=\"outbound|80||a\"} 0",
            "http_client_request_duration_seconds_bucket{le=\"+Inf\",cluster=\"outbound|80||a\"} 1",
            "http_client_request_duration_seconds_sum{cluster=\"outbound|80||a\"} 60.0",
            "mesh_server_requests_total{code=\"2xx\"} 1",
            "mesh_server_denied_total{policy=\"no-admin\"} 1",
            "mesh_server_denied_total{policy=\"(none allows)\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        drop(guard);
        let line = "mesh_client_requests_in_flight{cluster=\"outbound|80||a\"} 0";
        assert!(metrics.encode().contains(line));
    }

    #[test]
    fn series_of_an_endpoint_end_with_their_last_holder() {
        let metrics = Metrics::new();
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        let first = metrics.endpoint("a", addr);
        let second = metrics.endpoint("a", addr);
        first.record(true);
        drop(first);
        second.record(false);
        let line = "mesh_client_endpoint_requests_total{cluster=\"a\",endpoint=\"10.0.0.1:80\",outcome=\"success\"} 1";
        assert!(metrics.encode().contains(line), "{}", metrics.encode());
        drop(second);
        assert!(!metrics.encode().contains("10.0.0.1"));
    }
}
