//! What collectors write with.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// Begins a metric. Histograms are of seconds.
pub(super) fn describe<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    let unit = matches!(kind, MetricType::Histogram).then_some(&Unit::Seconds);
    encoder.encode_descriptor(name, help, unit, kind)
}

pub(super) fn counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: u64,
) -> fmt::Result {
    let mut encoder = metric.encode_family(labels)?;
    encoder.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

pub(super) fn gauge(mut encoder: MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
}
