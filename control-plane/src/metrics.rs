//! The control plane's own metrics, in the OpenMetrics text format.
//!
//! Names are those that dashboards of other meshes know: `pilot_*` and `citadel_*` of Istio,
//! `xds_*` of Kuma; what nobody else has begins with `mesh_control_plane_`. Owns names and labels;
//! label values come from small fixed sets, never from clients.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, TypedMetric, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Seconds, for what should take milliseconds.
const SECONDS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0,
];
/// Istio's buckets of sizes; gRPC clients take 4 MB by default.
const BYTES: [f64; 5] = [10e3, 1e6, 4e6, 10e6, 40e6];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Severity {
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Confirmation {
    r#type: String,
    confirmation: &'static str,
}

/// A counter whose name stays as it is: OpenMetrics would add `_total`, which the names of others
/// do not have.
#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Unknown;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

type Times = Family<Label, Histogram, fn() -> Histogram>;

/// Counters and gauges. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    streams: Family<Class, Gauge>,
    streams_active: Gauge,
    streams_refused: Count,
    pushes: Family<Label, Count>,
    push_time: Histogram,
    debounce_time: Histogram,
    convergence_time: Histogram,
    config_size: Times,
    too_large: Family<Label, Count>,
    responses_sent: Count,
    responses_sent_bytes: Count,
    requests: Family<Confirmation, Count>,
    expired_nonces: Family<Label, Count>,
    rejects: [(&'static str, Count); 5],
    rejects_total: Count,
    delivery: Times,
    inbound_updates: Count,
    triggers: Family<Label, Count>,
    compiles: Family<Label, Count>,
    services: Gauge,
    snapshot_resources: Family<Label, Gauge>,
    csr_count: Count,
    csr_results: [(&'static str, Count); 6],
    rotation: Gauge,
    diagnostics: Family<Severity, Gauge>,
    root_expiry: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn bytes() -> Histogram {
    Histogram::new(BYTES)
}

fn label(text: &str) -> Label {
    Label {
        r#type: text.to_owned(),
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that are all zero.
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::default(),
            streams: Family::default(),
            streams_active: Gauge::default(),
            streams_refused: Count::default(),
            pushes: Family::default(),
            push_time: seconds(),
            debounce_time: seconds(),
            convergence_time: seconds(),
            config_size: Family::new_with_constructor(bytes),
            too_large: Family::default(),
            responses_sent: Count::default(),
            responses_sent_bytes: Count::default(),
            requests: Family::default(),
            expired_nonces: Family::default(),
            rejects: ["cds", "eds", "lds", "rds", "sds"].map(|kind| (kind, Count::default())),
            rejects_total: Count::default(),
            delivery: Family::new_with_constructor(seconds),
            inbound_updates: Count::default(),
            triggers: Family::default(),
            compiles: Family::default(),
            services: Gauge::default(),
            snapshot_resources: Family::default(),
            csr_count: Count::default(),
            csr_results: [
                "ok",
                "unauthenticated",
                "invalid",
                "denied",
                "rate_limited",
                "error",
            ]
            .map(|result| (result, Count::default())),
            rotation: Gauge::default(),
            diagnostics: Family::default(),
            root_expiry: Gauge::default(),
        };
        inner.register_streams();
        inner.register_delivery();
        inner.register_rest();
        Self(Arc::new(inner))
    }

    /// A stream of a client class was opened.
    pub fn stream_opened(&self, class: &str) {
        let class = class.to_owned();
        self.0.streams.get_or_create(&Class { class }).inc();
        self.0.streams_active.inc();
    }

    /// A stream of a client class was closed.
    pub fn stream_closed(&self, class: &str) {
        let class = class.to_owned();
        self.0.streams.get_or_create(&Class { class }).dec();
        self.0.streams_active.dec();
    }

    /// A stream was refused because there are too many.
    pub fn stream_refused(&self) {
        self.0.streams_refused.add(1);
    }

    /// A request came; whether it confirms or refuses a response.
    pub fn requested(&self, kind: &str, is_confirmation: bool) {
        let labels = Confirmation {
            r#type: kind.to_owned(),
            confirmation: if is_confirmation { "true" } else { "false" },
        };
        self.0.requests.get_or_create(&labels).add(1);
    }

    /// A request was about a response that is not the last one.
    pub fn nonce_expired(&self, kind: &str) {
        self.0.expired_nonces.get_or_create(&label(kind)).add(1);
    }

    /// A response of so many bytes was sent.
    pub fn pushed(&self, kind: &str, bytes: usize) {
        self.0.pushes.get_or_create(&label(kind)).add(1);
        self.0
            .config_size
            .get_or_create(&label(kind))
            .observe(bytes as f64);
        self.0.responses_sent.add(1);
        self.0.responses_sent_bytes.add(bytes as u64);
    }

    /// A response is larger than what clients take by default.
    pub fn response_too_large(&self, kind: &str) {
        self.0.too_large.get_or_create(&label(kind)).add(1);
    }

    /// A response was refused.
    pub fn nacked(&self, kind: &str) {
        self.0.rejects_total.add(1);
        if let Some((_, count)) = self.0.rejects.iter().find(|(known, _)| *known == kind) {
            count.add(1);
        }
    }

    /// A response was accepted so long after it was sent.
    pub fn acked(&self, kind: &str, after: Duration) {
        self.0
            .delivery
            .get_or_create(&label(kind))
            .observe(after.as_secs_f64());
    }

    /// A client has answered all of a change so long after it was published.
    pub fn delivered(&self, after: Duration) {
        self.0.convergence_time.observe(after.as_secs_f64());
    }

    /// The source saw a change.
    pub fn source_changed(&self) {
        self.0.inbound_updates.add(1);
    }

    /// A change waited so long to be joined by others; `kind` says why it was published.
    pub fn triggered(&self, kind: &str, waited: Duration) {
        self.0.triggers.get_or_create(&label(kind)).add(1);
        self.0.debounce_time.observe(waited.as_secs_f64());
    }

    /// `everything` was compiled, or `endpoints` alone.
    pub fn compiled(&self, what: &str) {
        self.0.compiles.get_or_create(&label(what)).add(1);
    }

    /// A configuration was compiled and published in so long, with so many of each.
    pub fn published(&self, took: Duration, services: usize, resources: &[(&str, usize)]) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.push_time.observe(took.as_secs_f64());
        self.0.services.set(gauge(services));
        for (kind, count) in resources {
            self.0
                .snapshot_resources
                .get_or_create(&label(kind))
                .set(gauge(*count));
        }
    }

    /// A certificate signing request was answered: `ok`, `unauthenticated`, `invalid`,
    /// `denied`, `rate_limited` or `error`.
    pub fn csr(&self, result: &str) {
        self.0.csr_count.add(1);
        if let Some((_, count)) = self
            .0
            .csr_results
            .iter()
            .find(|(known, _)| *known == result)
        {
            count.add(1);
        }
    }

    /// How many findings the configuration has now.
    pub fn diagnostics(&self, errors: usize, warnings: usize) {
        for (severity, count) in [("error", errors), ("warning", warnings)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.0
                .diagnostics
                .get_or_create(&Severity { severity })
                .set(count);
        }
    }

    /// When the root certificate ends.
    pub fn root_expires(&self, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0
            .root_expiry
            .set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    /// Which step a change of roots is in: 0 for none, else from 1.
    pub fn root_rotation(&self, step: u8) {
        self.0.rotation.set(step.into());
    }

    /// Refused responses of all types since the start.
    pub fn nacks_total(&self) -> u64 {
        self.0.rejects_total.get()
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        _ = encode(&mut text, &self.0.registry);
        text
    }
}

impl Inner {
    fn register_streams(&mut self) {
        let registry = &mut self.registry;
        registry.register("pilot_xds", "Open xDS streams", self.streams.clone());
        let help = "Open xDS streams of all classes";
        registry.register("xds_streams_active", help, self.streams_active.clone());
        let help = "Streams that were refused because there are too many";
        let name = "mesh_control_plane_streams_refused";
        registry.register(name, help, self.streams_refused.clone());
        let help = "Requests; confirmation is whether they accept or refuse a response";
        registry.register("xds_requests_received", help, self.requests.clone());
        let help = "Requests about a response that is not the last one";
        registry.register("pilot_xds_expired_nonce", help, self.expired_nonces.clone());
        let help = "Responses that clients refused";
        registry.register("pilot_total_xds_rejects", help, self.rejects_total.clone());
        for (kind, count) in &self.rejects {
            let name = format!("pilot_xds_{kind}_reject");
            registry.register(name, help, count.clone());
        }
    }

    fn register_delivery(&mut self) {
        let registry = &mut self.registry;
        registry.register("pilot_xds_pushes", "Responses sent", self.pushes.clone());
        registry.register(
            "xds_responses_sent",
            "Responses sent",
            self.responses_sent.clone(),
        );
        let help = "Bytes of the resources in them";
        registry.register(
            "xds_responses_sent_bytes",
            help,
            self.responses_sent_bytes.clone(),
        );
        let help = "Bytes of the resources in a response";
        registry.register(
            "pilot_xds_config_size_bytes",
            help,
            self.config_size.clone(),
        );
        let help = "Responses larger than what gRPC clients take by default";
        let name = "mesh_control_plane_responses_too_large";
        registry.register(name, help, self.too_large.clone());
        let help = "Seconds from sending a response to its acceptance";
        registry.register("xds_delivery", help, self.delivery.clone());
        let help = "Seconds from publishing a change to a client's answer to all of it";
        registry.register(
            "pilot_proxy_convergence_time",
            help,
            self.convergence_time.clone(),
        );
    }

    fn register_rest(&mut self) {
        let registry = &mut self.registry;
        let help = "Changes that the source saw";
        registry.register("pilot_inbound_updates", help, self.inbound_updates.clone());
        let help = "Seconds that a change waited to be joined by others";
        registry.register("pilot_debounce_time", help, self.debounce_time.clone());
        let help = "Changes that were published, by why they were";
        registry.register("pilot_push_triggers", help, self.triggers.clone());
        let help = "Compiles of everything, and of the endpoints of instances that changed alone";
        registry.register("mesh_compiles", help, self.compiles.clone());
        let help = "Seconds to compile and publish a change";
        registry.register("pilot_xds_push_time", help, self.push_time.clone());
        registry.register("pilot_services", "Services", self.services.clone());
        let help = "Resources that can be asked for";
        registry.register(
            "xds_snapshot_resources",
            help,
            self.snapshot_resources.clone(),
        );
        let help = "Certificate signing requests";
        registry.register("citadel_server_csr_count", help, self.csr_count.clone());
        for (result, count) in &self.csr_results {
            let name = match *result {
                "ok" => "citadel_server_success_cert_issuance_count",
                "unauthenticated" => "citadel_server_authentication_failure_count",
                "invalid" => "citadel_server_csr_parsing_err_count",
                "denied" => "mesh_control_plane_csr_denied",
                "rate_limited" => "mesh_control_plane_csr_rate_limited",
                _ => "citadel_server_csr_sign_err_count",
            };
            registry.register(
                name,
                "Certificate signing requests by outcome",
                count.clone(),
            );
        }
        let help = "When the root certificate ends, in seconds since the epoch";
        let name = "citadel_server_root_cert_expiry_timestamp";
        registry.register(name, help, self.root_expiry.clone());
        let help = "Step of a change of roots: 0 none, 1 distribute, 2 issue, 3 retire";
        registry.register(
            "mesh_control_plane_root_rotation",
            help,
            self.rotation.clone(),
        );
        let help = "Findings in the configuration as it is now";
        let name = "mesh_control_plane_config_diagnostics";
        registry.register(name, help, self.diagnostics.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.stream_opened("grpc-go");
        metrics.stream_opened("grpc-go");
        metrics.stream_closed("grpc-go");
        metrics.stream_refused();
        metrics.requested("cds", true);
        metrics.nonce_expired("cds");
        metrics.pushed("cds", 5_000_000);
        metrics.response_too_large("cds");
        metrics.nacked("cds");
        metrics.acked("cds", Duration::from_millis(7));
        metrics.delivered(Duration::from_millis(7));
        metrics.source_changed();
        metrics.triggered("config", Duration::ZERO);
        metrics.published(Duration::from_millis(7), 3, &[("cds", 4)]);
        metrics.csr("ok");
        metrics.csr("invalid");
        metrics.diagnostics(1, 2);
        metrics.root_expires(UNIX_EPOCH + Duration::from_secs(9));
        let text = metrics.encode();
        for line in [
            "pilot_xds{class=\"grpc-go\"} 1",
            "xds_streams_active 1",
            "mesh_control_plane_streams_refused 1",
            "xds_requests_received{type=\"cds\",confirmation=\"true\"} 1",
            "pilot_xds_expired_nonce{type=\"cds\"} 1",
            "pilot_xds_pushes{type=\"cds\"} 1",
            "xds_responses_sent 1",
            "xds_responses_sent_bytes 5000000",
            "pilot_xds_config_size_bytes_bucket{le=\"4000000.0\",type=\"cds\"} 0",
            "pilot_xds_config_size_bytes_bucket{le=\"10000000.0\",type=\"cds\"} 1",
            "mesh_control_plane_responses_too_large{type=\"cds\"} 1",
            "pilot_total_xds_rejects 1",
            "pilot_xds_cds_reject 1",
            "pilot_xds_lds_reject 0",
            "xds_delivery_bucket{le=\"0.01\",type=\"cds\"} 1",
            "pilot_proxy_convergence_time_count 1",
            "pilot_inbound_updates 1",
            "pilot_debounce_time_count 1",
            "pilot_push_triggers{type=\"config\"} 1",
            "pilot_xds_push_time_count 1",
            "pilot_services 3",
            "xds_snapshot_resources{type=\"cds\"} 4",
            "citadel_server_csr_count 2",
            "citadel_server_success_cert_issuance_count 1",
            "citadel_server_csr_parsing_err_count 1",
            "citadel_server_csr_sign_err_count 0",
            "citadel_server_root_cert_expiry_timestamp 9",
            "mesh_control_plane_config_diagnostics{severity=\"warning\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.nacks_total(), 1);
    }
}
