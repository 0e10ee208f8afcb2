//! What is shown of the streams to control planes (gRFC A78).
//!
//! Stage 13. Rows come from whoever holds a client of a control plane, asked at each scrape; names are
//! gRPC's, with underscores. Knows nothing of the protocol.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// What a scrape finds.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControlPlaneRows {
    /// `grpc_xds_client_connected` by target and server.
    pub(crate) connected: Vec<(Labels, u64)>,
    /// `grpc_xds_client_server_failure` by target and server.
    pub(crate) failures: Vec<(Labels, u64)>,
    /// `grpc_xds_client_resource_updates_valid` by target, server and type.
    pub(crate) valid: Vec<(Labels, u64)>,
    /// `grpc_xds_client_resource_updates_invalid` by target, server and type.
    pub(crate) invalid: Vec<(Labels, u64)>,
    /// `grpc_xds_client_resources` by target, authority, type and state.
    pub(crate) resources: Vec<(Labels, u64)>,
}

/// Names and values.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// Gives rows, or `None` when there will be none any more.
type Source = Box<dyn Fn() -> Option<ControlPlaneRows> + Send + Sync>;

/// The collector of one registry; several clients add their rows. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct ControlPlaneSeries {
    sources: Arc<Mutex<Vec<Source>>>,
}

impl ControlPlaneSeries {
    /// Adds a client's rows.
    pub(crate) fn add(
        &self,
        source: impl Fn() -> Option<ControlPlaneRows> + Send + Sync + 'static,
    ) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.push(Box::new(source));
    }

    fn rows(&self) -> ControlPlaneRows {
        let mut all = ControlPlaneRows::default();
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|source| {
            let Some(rows) = source() else {
                return false;
            };
            all.connected.extend(rows.connected);
            all.failures.extend(rows.failures);
            all.valid.extend(rows.valid);
            all.invalid.extend(rows.invalid);
            all.resources.extend(rows.resources);
            true
        });
        all
    }
}

impl Collector for ControlPlaneSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rows = self.rows();
        let gauges = [
            (
                "grpc_xds_client_connected",
                "Whether there is a working stream to the control plane",
                &rows.connected,
            ),
            (
                "grpc_xds_client_resources",
                "Resources by what became of them",
                &rows.resources,
            ),
        ];
        for (name, help, rows) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in rows {
                let value = i64::try_from(*value).unwrap_or(i64::MAX);
                metric.encode_family(labels)?.encode_gauge(&value)?;
            }
        }
        let counters = [
            (
                "grpc_xds_client_server_failure",
                "Streams to the control plane that were lost or not made, without a response",
                &rows.failures,
            ),
            (
                "grpc_xds_client_resource_updates_valid",
                "Valid resources received",
                &rows.valid,
            ),
            (
                "grpc_xds_client_resource_updates_invalid",
                "Refused resources received",
                &rows.invalid,
            ),
        ];
        for (name, help, rows) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in rows {
                let mut metric = metric.encode_family(labels)?;
                metric.encode_counter::<NoLabelSet, _, u64>(value, None)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ControlPlaneSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlaneSeries").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn two_clients_of_one_registry_share_each_metric_and_end_apart() {
        let metrics = Metrics::new();
        let is_there = Arc::new(Mutex::new(true));
        let of = |target: &'static str, is_there: Arc<Mutex<bool>>| {
            move || {
                let labels = vec![("grpc_target", target.to_owned())];
                is_there.lock().unwrap().then(|| ControlPlaneRows {
                    connected: vec![(labels.clone(), 1)],
                    failures: vec![(labels, 3)],
                    ..ControlPlaneRows::default()
                })
            }
        };
        metrics.control_planes().add(of("a", Arc::clone(&is_there)));
        metrics.control_planes().add(of("b", Arc::default()));
        metrics
            .control_planes()
            .add(of("b", Arc::new(Mutex::new(true))));
        let text = metrics.encode();
        for line in [
            "grpc_xds_client_connected{grpc_target=\"a\"} 1",
            "grpc_xds_client_connected{grpc_target=\"b\"} 1",
            "grpc_xds_client_server_failure_total{grpc_target=\"a\"} 3",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert_eq!(text.matches("# TYPE grpc_xds_client_connected").count(), 1);
        *is_there.lock().unwrap() = false;
        assert!(!metrics.encode().contains("grpc_target=\"a\""));
    }
}
