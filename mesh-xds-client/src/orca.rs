//! What a backend says of its load with a response (ORCA, gRFC A51).
//!
//! Beside the stream: the data plane reads trailers with it. Metrics of single requests; a stream of
//! reports out of band is not asked for.

use std::collections::HashMap;

use http::{HeaderMap, HeaderValue};
use mesh_core::observed::LoadReport;
use prost::Message as _;
use tonic::metadata::MetadataMap;

/// The trailer that carries a report.
pub const ORCA_TRAILER: &str = "endpoint-load-metrics-bin";

/// Longest trailer that is read, encoded. Names come from the backend.
pub const ORCA_TRAILER_MAX: usize = 16 << 10;

/// `xds.data.orca.v3.OrcaLoadReport`.
#[derive(Clone, PartialEq, prost::Message)]
struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "5")]
    utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    rps_fractional: f64,
    #[prost(double, tag = "7")]
    eps: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

/// The report among trailers; `None` when there is none, or it is malformed or longer than
/// [`ORCA_TRAILER_MAX`].
pub fn load_report(trailers: &HeaderMap) -> Option<LoadReport> {
    let value = trailers.get(ORCA_TRAILER)?;
    if value.len() > ORCA_TRAILER_MAX {
        return None;
    }
    let report = OrcaLoadReport::decode(decoded(value)?).ok()?;
    Some(LoadReport {
        application_utilization: report.application_utilization,
        cpu_utilization: report.cpu_utilization,
        mem_utilization: report.mem_utilization,
        requests_per_second: report.rps_fractional,
        errors_per_second: report.eps,
        named_metrics: report.named_metrics.into_iter().collect(),
        utilization: report.utilization.into_iter().collect(),
    })
}

fn decoded(value: &HeaderValue) -> Option<bytes::Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert(ORCA_TRAILER, value.clone());
    let metadata = MetadataMap::from_headers(headers);
    metadata.get_bin(ORCA_TRAILER)?.to_bytes().ok()
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn trailers(bytes: &[u8]) -> HeaderMap {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(ORCA_TRAILER, MetadataValue::from_bytes(bytes));
        metadata.into_headers()
    }

    #[test]
    fn a_report_is_read_from_its_trailer() {
        let sent = OrcaLoadReport {
            cpu_utilization: 0.5,
            rps_fractional: 100.0,
            eps: 1.0,
            named_metrics: [("queue".to_owned(), 4.0)].into(),
            ..OrcaLoadReport::default()
        };
        let read = load_report(&trailers(&sent.encode_to_vec())).expect("a report");
        assert_eq!(
            (read.cpu_utilization, read.requests_per_second),
            (0.5, 100.0)
        );
        assert_eq!(read.metric("named_metrics.queue"), Some(4.0));
        assert_eq!(load_report(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_malformed_or_too_long_is_no_report() {
        assert_eq!(load_report(&trailers(&[0xff; 7])), None);
        let mut odd = HeaderMap::new();
        odd.insert(ORCA_TRAILER, HeaderValue::from_static("not base64!"));
        assert_eq!(load_report(&odd), None);
        let named = |count| OrcaLoadReport {
            named_metrics: (0..count).map(|i| (format!("metric-{i}"), 1.0)).collect(),
            ..OrcaLoadReport::default()
        };
        assert!(load_report(&trailers(&named(10).encode_to_vec())).is_some());
        assert!(load_report(&trailers(&named(2_000).encode_to_vec())).is_none());
    }
}
