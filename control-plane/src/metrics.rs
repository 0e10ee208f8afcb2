//! The control plane's own metrics, in the OpenMetrics text format.
//!
//! Owns names and labels; label values come from small fixed sets, never from clients.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Severity {
    severity: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    streams: Family<Class, Gauge>,
    pushes: Family<Type, Counter>,
    nacks: Family<Type, Counter>,
    nacks_total: AtomicU64,
    ack_seconds: Family<Type, Histogram, fn() -> Histogram>,
    csrs: Family<Outcome, Counter>,
    diagnostics: Family<Severity, Gauge>,
    root_expiry: Gauge,
}

fn ack_histogram() -> Histogram {
    Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0])
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
            registry: Registry::with_prefix("mesh_control_plane"),
            streams: Family::default(),
            pushes: Family::default(),
            nacks: Family::default(),
            nacks_total: AtomicU64::new(0),
            ack_seconds: Family::new_with_constructor(ack_histogram),
            csrs: Family::default(),
            diagnostics: Family::default(),
            root_expiry: Gauge::default(),
        };
        let registry = &mut inner.registry;
        registry.register("xds_streams", "Open xDS streams", inner.streams.clone());
        registry.register(
            "xds_pushes",
            "Responses sent on xDS streams",
            inner.pushes.clone(),
        );
        registry.register(
            "xds_nacks",
            "Responses that clients refused",
            inner.nacks.clone(),
        );
        registry.register_with_unit(
            "xds_ack",
            "From sending a response to its acceptance",
            Unit::Seconds,
            inner.ack_seconds.clone(),
        );
        registry.register("csr", "Certificate signing requests", inner.csrs.clone());
        registry.register(
            "config_diagnostics",
            "Findings in the configuration as it is now",
            inner.diagnostics.clone(),
        );
        registry.register(
            "root_certificate_expiry_timestamp_seconds",
            "When the root certificate ends, in seconds since the epoch",
            inner.root_expiry.clone(),
        );
        Self(Arc::new(inner))
    }

    /// A stream of a client class was opened.
    pub fn stream_opened(&self, class: &str) {
        self.0
            .streams
            .get_or_create(&Class {
                class: class.to_owned(),
            })
            .inc();
    }

    /// A stream of a client class was closed.
    pub fn stream_closed(&self, class: &str) {
        self.0
            .streams
            .get_or_create(&Class {
                class: class.to_owned(),
            })
            .dec();
    }

    /// A response of a resource type was sent.
    pub fn pushed(&self, type_name: &str) {
        self.0
            .pushes
            .get_or_create(&Type {
                r#type: type_name.to_owned(),
            })
            .inc();
    }

    /// A response of a resource type was refused.
    pub fn nacked(&self, type_name: &str) {
        self.0
            .nacks
            .get_or_create(&Type {
                r#type: type_name.to_owned(),
            })
            .inc();
        self.0.nacks_total.fetch_add(1, Ordering::Relaxed);
    }

    /// A response of a resource type was accepted so long after it was sent.
    pub fn acked(&self, type_name: &str, after: Duration) {
        let labels = Type {
            r#type: type_name.to_owned(),
        };
        self.0
            .ack_seconds
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
    }

    /// A certificate signing request was answered: `ok`, `unauthenticated`, `invalid` or `error`.
    pub fn csr(&self, result: &str) {
        self.0
            .csrs
            .get_or_create(&Outcome {
                result: result.to_owned(),
            })
            .inc();
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
        let seconds = at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.0
            .root_expiry
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Refused responses of all types since the start.
    pub fn nacks_total(&self) -> u64 {
        self.0.nacks_total.load(Ordering::Relaxed)
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        _ = encode(&mut text, &self.0.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.stream_opened("proxyless");
        metrics.stream_opened("proxyless");
        metrics.stream_closed("proxyless");
        metrics.pushed("cluster");
        metrics.nacked("cluster");
        metrics.csr("ok");
        metrics.diagnostics(1, 2);
        let text = metrics.encode();
        for line in [
            "mesh_control_plane_xds_streams{class=\"proxyless\"} 1",
            "mesh_control_plane_xds_pushes_total{type=\"cluster\"} 1",
            "mesh_control_plane_xds_nacks_total{type=\"cluster\"} 1",
            "mesh_control_plane_csr_total{result=\"ok\"} 1",
            "mesh_control_plane_config_diagnostics{severity=\"warning\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.nacks_total(), 1);
    }
}
