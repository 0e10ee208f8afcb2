//! What a backend says of its load (ORCA, gRFC A51): its bytes.
//!
//! Beside the stream: the data plane reads trailers with it, and asks for reports out of band.

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, HeaderValue};
use mesh_core::observed::LoadReport;
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};

/// The trailer that carries a report.
pub const ORCA_TRAILER: &str = "endpoint-load-metrics-bin";

/// Longest trailer and longest report that is read, encoded. Names come from the backend.
pub const ORCA_TRAILER_MAX: usize = 16 << 10;

/// The method that streams reports out of band.
pub const STREAM_CORE_METRICS: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";

/// `xds.data.orca.v3.OrcaLoadReport`.
#[derive(Clone, PartialEq, prost::Message)]
struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "4")]
    request_cost: HashMap<String, f64>,
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

/// `xds.service.orca.v3.OrcaLoadReportRequest`; `request_cost_names` says nothing here, as reports out of
/// band are of no request.
#[derive(Clone, PartialEq, prost::Message)]
struct OrcaLoadReportRequest {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<prost_types::Duration>,
}

/// The report among trailers; `None` when there is none, or it is malformed or longer than
/// [`ORCA_TRAILER_MAX`].
pub fn load_report(trailers: &HeaderMap) -> Option<LoadReport> {
    let value = trailers.get(ORCA_TRAILER)?;
    if value.len() > ORCA_TRAILER_MAX {
        return None;
    }
    decode_load_report(&decoded(value)?)
}

/// The trailer that carries `report`.
pub fn load_report_trailer(report: &LoadReport) -> HeaderValue {
    let value = MetadataValue::from_bytes(&encode_load_report(report));
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(ORCA_TRAILER, value);
    let value = metadata.into_headers().remove(ORCA_TRAILER);
    value.unwrap_or_else(|| HeaderValue::from_static(""))
}

/// A report from its protobuf; `None` when it is malformed or longer than [`ORCA_TRAILER_MAX`].
pub fn decode_load_report(bytes: &[u8]) -> Option<LoadReport> {
    if bytes.len() > ORCA_TRAILER_MAX {
        return None;
    }
    let report = OrcaLoadReport::decode(bytes).ok()?;
    Some(LoadReport {
        application_utilization: report.application_utilization,
        cpu_utilization: report.cpu_utilization,
        mem_utilization: report.mem_utilization,
        requests_per_second: report.rps_fractional,
        errors_per_second: report.eps,
        named_metrics: report.named_metrics.into_iter().collect(),
        utilization: report.utilization.into_iter().collect(),
        request_cost: report.request_cost.into_iter().collect(),
    })
}

/// The protobuf of a report.
pub fn encode_load_report(report: &LoadReport) -> Vec<u8> {
    let map = |metrics: &[(String, f64)]| metrics.iter().cloned().collect();
    let report = OrcaLoadReport {
        cpu_utilization: report.cpu_utilization,
        mem_utilization: report.mem_utilization,
        request_cost: map(&report.request_cost),
        utilization: map(&report.utilization),
        rps_fractional: report.requests_per_second,
        eps: report.errors_per_second,
        named_metrics: map(&report.named_metrics),
        application_utilization: report.application_utilization,
    };
    report.encode_to_vec()
}

/// The protobuf of a request for a report every `interval`.
pub fn encode_report_request(interval: Duration) -> Vec<u8> {
    let request = OrcaLoadReportRequest {
        report_interval: interval.try_into().ok(),
    };
    request.encode_to_vec()
}

/// How often a request wants reports, 0 where it does not say; `None` when it is malformed.
pub fn decode_report_request(bytes: &[u8]) -> Option<Duration> {
    let request = OrcaLoadReportRequest::decode(bytes).ok()?;
    let interval = request.report_interval.unwrap_or_default();
    // A time before now is none.
    Some(interval.try_into().unwrap_or_default())
}

fn decoded(value: &HeaderValue) -> Option<bytes::Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert(ORCA_TRAILER, value.clone());
    let metadata = MetadataMap::from_headers(headers);
    metadata.get_bin(ORCA_TRAILER)?.to_bytes().ok()
}

#[cfg(test)]
mod tests {
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
        assert_eq!(decode_load_report(&named(2_000).encode_to_vec()), None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let metric = |name: &str, value| vec![(name.to_owned(), value)];
        let report = LoadReport {
            application_utilization: 0.9,
            cpu_utilization: 1.5,
            mem_utilization: 0.3,
            requests_per_second: 12.5,
            errors_per_second: 0.5,
            named_metrics: metric("queue", 4.0),
            utilization: metric("disk", 0.7),
            request_cost: metric("rows", 30.0),
        };
        let bytes = encode_load_report(&report);
        assert_eq!(decode_load_report(&bytes), Some(report.clone()));
        let mut headers = HeaderMap::new();
        headers.insert(ORCA_TRAILER, load_report_trailer(&report));
        assert_eq!(load_report(&headers), Some(report));
    }

    #[test]
    fn an_interval_that_is_missing_or_negative_is_none() {
        let every = Duration::from_millis(1_500);
        assert_eq!(
            decode_report_request(&encode_report_request(every)),
            Some(every)
        );
        assert_eq!(decode_report_request(&[]), Some(Duration::ZERO));
        // report_interval { seconds: -1 }
        let mut negative = vec![0x0a, 0x0b, 0x08];
        negative.extend([0xff; 9]);
        negative.push(0x01);
        assert_eq!(decode_report_request(&negative), Some(Duration::ZERO));
        assert_eq!(decode_report_request(&[0xff]), None);
    }
}
