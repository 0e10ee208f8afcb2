//! Active health checks of a cluster (CDS).

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue, HeaderValueOption, HealthCheck as ProtoCheck, RequestMethod,
            health_check::{
                GrpcHealthCheck, HealthChecker, HttpHealthCheck as ProtoHttp, Payload,
                TcpHealthCheck, payload,
            },
        },
        r#type::v3::{CodecClientType, Int64Range},
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{HealthCheck, HealthCheckKind, HttpHealthCheck};

use super::{duration, uint32};

pub(super) fn health_check(config: &HealthCheck) -> ProtoCheck {
    let set = |time: std::time::Duration| (!time.is_zero()).then(|| duration(time));
    ProtoCheck {
        timeout: Some(duration(config.timeout)),
        interval: Some(duration(config.interval)),
        unhealthy_interval: config.unhealthy_interval.map(duration),
        initial_jitter: set(config.initial_jitter),
        interval_jitter: set(config.interval_jitter),
        interval_jitter_percent: config.interval_jitter_percent,
        unhealthy_threshold: Some(uint32(config.unhealthy_threshold)),
        healthy_threshold: Some(uint32(config.healthy_threshold)),
        no_traffic_interval: Some(duration(config.no_traffic_interval)),
        reuse_connection: Some(BoolValue {
            value: config.reuse_connection,
        }),
        health_checker: Some(match &config.kind {
            HealthCheckKind::Http(http) => HealthChecker::HttpHealthCheck(http_check(http)),
            HealthCheckKind::Grpc {
                service_name,
                authority,
            } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
                service_name: service_name.clone(),
                authority: authority.clone(),
                ..GrpcHealthCheck::default()
            }),
            HealthCheckKind::Tcp { send, receive } => {
                HealthChecker::TcpHealthCheck(TcpHealthCheck {
                    send: (!send.is_empty()).then(|| binary(send)),
                    receive: receive.iter().map(|bytes| binary(bytes)).collect(),
                    ..TcpHealthCheck::default()
                })
            }
        }),
        ..ProtoCheck::default()
    }
}

fn http_check(config: &HttpHealthCheck) -> ProtoHttp {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_string(),
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    };
    let statuses = |ranges: &[std::ops::Range<u16>]| {
        let range = |range: &std::ops::Range<u16>| Int64Range {
            start: range.start.into(),
            end: range.end.into(),
        };
        ranges.iter().map(range).collect()
    };
    let method = match config.method {
        http::Method::GET => RequestMethod::MethodUnspecified,
        ref other => RequestMethod::from_str_name(other.as_str()).unwrap_or_default(),
    };
    let codec = match config.is_http2 {
        true => CodecClientType::Http2,
        false => CodecClientType::Http1,
    };
    ProtoHttp {
        host: config.host.clone(),
        path: config.path.clone(),
        method: method as i32,
        codec_client_type: codec as i32,
        request_headers_to_add: config.headers.iter().map(header).collect(),
        expected_statuses: statuses(&config.expected_statuses),
        retriable_statuses: statuses(&config.retriable_statuses),
        ..ProtoHttp::default()
    }
}

fn binary(bytes: &[u8]) -> Payload {
    Payload {
        payload: Some(payload::Payload::Binary(bytes.to_vec())),
    }
}
