//! Counters of this process, and their names.
//!
//! Stage 13. Handles are resolved once per cluster and server; a request then only adds to them.
//! The series of a cluster and of its endpoints end with them, so that churn does not grow the
//! registry. It keeps no history and pushes nothing: somebody scrapes [`Metrics::encode`].

mod cluster;
mod encode;
mod listener;
mod server;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use mesh_core::{filter::FilterAction, health::Circuit};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[cfg(feature = "xds")]
use super::control_plane::ControlPlaneSeries;
use super::{certificate::CertificateSeries, handshakes::HandshakeFailures};
use cluster::{ClientSeries, Clusters};
use listener::{ListenerSeries, Listeners};

pub use cluster::CallMetrics;
pub(crate) use listener::ListenerMetrics;
pub use server::{NO_POLICY, ServerMetrics};

type Labels<const N: usize> = [(&'static str, String); N];

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
        let metrics = Arc::new(CallMetrics::new(name, circuit));
        keep(&self.shared.clusters, &metrics);
        metrics
    }

    /// Counters of what is dialled by one name. Its series end with the handle.
    pub(crate) fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let metrics = Arc::new(ListenerMetrics::new(name));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{Code, Extra, Protocol},
        *,
    };

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
