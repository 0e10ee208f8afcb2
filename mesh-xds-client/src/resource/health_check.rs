//! Active health checks of a cluster.
//!
//! Stage 3. HTTP, gRPC and TCP.

use std::{ops::Range, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::{
        HealthCheck as CheckProto, RequestMethod,
        health_check::{
            GrpcHealthCheck, HealthChecker, HttpHealthCheck as HttpProto, Payload, TcpHealthCheck,
            payload,
        },
    },
    r#type::v3::{CodecClientType, Int64Range},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_core::config::{
    HealthCheck, HealthCheckKind, HttpHealthCheck, NO_TRAFFIC_INTERVAL_DEFAULT,
};

use super::{
    path::Sink,
    report::report,
    value::{duration, uint32},
};

pub(super) fn decode(sink: &mut Sink, proto: &CheckProto, has_tls: bool) -> Option<HealthCheck> {
    report!(
        sink,
        proto,
        [
            no_traffic_healthy_interval,
            unhealthy_edge_interval,
            healthy_edge_interval,
            tls_options,
            transport_socket_match_criteria
        ]
    );
    sink.refuse(
        "alt_port",
        proto.alt_port.is_some(),
        "is not supported: checks go to the endpoint's port",
    );
    let timeout = required(sink, "timeout", proto.timeout.as_ref());
    let interval = required(sink, "interval", proto.interval.as_ref());
    let unhealthy_threshold = threshold(sink, "unhealthy_threshold", proto.unhealthy_threshold);
    let healthy_threshold = threshold(sink, "healthy_threshold", proto.healthy_threshold);
    let mut time = |name, value| duration(sink, name, value);
    let unhealthy_interval = time("unhealthy_interval", proto.unhealthy_interval.as_ref());
    let initial_jitter = time("initial_jitter", proto.initial_jitter.as_ref());
    let interval_jitter = time("interval_jitter", proto.interval_jitter.as_ref());
    let no_traffic = time("no_traffic_interval", proto.no_traffic_interval.as_ref());
    let kind = match &proto.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            sink.field("http_health_check", |sink| http_check(sink, http))
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            sink.field("grpc_health_check", |sink| Some(grpc_check(sink, grpc)))
        }
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            sink.field("tcp_health_check", |sink| tcp_check(sink, tcp, has_tls))
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            sink.error_at("custom_health_check", "is not supported")
        }
        None => sink.error("names no health checker"),
    };
    Some(HealthCheck {
        timeout: timeout?,
        interval: interval?,
        unhealthy_interval: unhealthy_interval.filter(|time| !time.is_zero()),
        initial_jitter: initial_jitter.unwrap_or_default(),
        interval_jitter: interval_jitter.unwrap_or_default(),
        interval_jitter_percent: proto.interval_jitter_percent,
        unhealthy_threshold: unhealthy_threshold?,
        healthy_threshold: healthy_threshold?,
        no_traffic_interval: no_traffic.unwrap_or(NO_TRAFFIC_INTERVAL_DEFAULT),
        reuse_connection: proto.reuse_connection.is_none_or(|reuse| reuse.value),
        kind: kind?,
    })
}

type DurationProto = envoy_types::pb::google::protobuf::Duration;
type UInt32Value = envoy_types::pb::google::protobuf::UInt32Value;

fn required(sink: &mut Sink, name: &str, value: Option<&DurationProto>) -> Option<Duration> {
    match (value, duration(sink, name, value)) {
        (None, _) => sink.error_at(name, "is missing"),
        (_, Some(time)) if time.is_zero() => sink.error_at(name, "must be above 0"),
        (_, time) => time,
    }
}

fn threshold(sink: &mut Sink, name: &str, value: Option<UInt32Value>) -> Option<u32> {
    match uint32(value.as_ref()) {
        None => sink.error_at(name, "is missing"),
        Some(0) => sink.error_at(name, "must not be 0"),
        count => count,
    }
}

fn http_check(sink: &mut Sink, proto: &HttpProto) -> Option<HealthCheckKind> {
    report!(
        sink,
        proto,
        [
            response_buffer_size,
            service_name_matcher,
            request_headers_to_remove
        ]
    );
    sink.refuse("send", proto.send.is_some(), "a body is not supported");
    sink.refuse("receive", !proto.receive.is_empty(), "is not supported");
    if !proto.path.starts_with('/') {
        return sink.error_at("path", format!("{:?} does not begin with /", proto.path));
    }
    let method = match RequestMethod::try_from(proto.method) {
        Ok(RequestMethod::MethodUnspecified) => Method::GET,
        Ok(RequestMethod::Connect) | Err(_) => {
            return sink.error_at("method", "is not one that a check can have");
        }
        Ok(method) => method.as_str_name().parse().ok()?,
    };
    let is_http2 = match CodecClientType::try_from(proto.codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => return sink.error_at("codec_client_type", "must be HTTP1 or HTTP2"),
    };
    let mut headers = HeaderMap::new();
    let added = &proto.request_headers_to_add;
    let pairs = sink.each("request_headers_to_add", added, |sink, option| {
        let header = option.header.as_ref()?;
        let name: Option<HeaderName> = header.key.parse().ok();
        let value: Option<HeaderValue> = header.value.parse().ok();
        match (name, value) {
            (Some(name), Some(value)) => Some((name, value)),
            _ => sink.error_at("header", "is not a header with a fixed value"),
        }
    });
    headers.extend(pairs.into_iter().map(|(name, value)| (Some(name), value)));
    Some(HealthCheckKind::Http(HttpHealthCheck {
        host: proto.host.clone(),
        path: proto.path.clone(),
        method,
        headers,
        expected_statuses: sink.each("expected_statuses", &proto.expected_statuses, statuses),
        retriable_statuses: sink.each("retriable_statuses", &proto.retriable_statuses, statuses),
        is_http2,
    }))
}

fn statuses(sink: &mut Sink, range: &Int64Range) -> Option<Range<u16>> {
    match (u16::try_from(range.start), u16::try_from(range.end)) {
        (Ok(start), Ok(end)) if 100 <= start && start < end && end <= 600 => Some(start..end),
        _ => sink.error("is not a range within 100 to 600"),
    }
}

fn grpc_check(sink: &mut Sink, proto: &GrpcHealthCheck) -> HealthCheckKind {
    report!(sink, proto, [initial_metadata]);
    HealthCheckKind::Grpc {
        service_name: proto.service_name.clone(),
        authority: proto.authority.clone(),
    }
}

fn tcp_check(sink: &mut Sink, proto: &TcpHealthCheck, has_tls: bool) -> Option<HealthCheckKind> {
    sink.refuse(
        "proxy_protocol_config",
        proto.proxy_protocol_config.is_some(),
        "is not supported",
    );
    let has_payload = proto.send.is_some() || !proto.receive.is_empty();
    sink.refuse(
        "send",
        has_tls && has_payload,
        "bytes inside of TLS are not supported: a check of a cluster with TLS only connects",
    );
    let send = proto.send.as_ref();
    let send = send.map(|send| sink.field("send", |sink| bytes(sink, send)));
    Some(HealthCheckKind::Tcp {
        send: send.unwrap_or(Some(Vec::new()))?,
        receive: sink.each("receive", &proto.receive, bytes),
    })
}

fn bytes(sink: &mut Sink, proto: &Payload) -> Option<Vec<u8>> {
    match &proto.payload {
        Some(payload::Payload::Binary(bytes)) => Some(bytes.clone()),
        Some(payload::Payload::Text(hex)) => {
            let digits = hex.as_bytes().chunks(2);
            let byte = |pair: &[u8]| {
                let pair = std::str::from_utf8(pair)
                    .ok()
                    .filter(|pair| pair.len() == 2)?;
                u8::from_str_radix(pair, 16).ok()
            };
            let decoded: Option<Vec<u8>> = digits.map(byte).collect();
            decoded.or_else(|| sink.error_at("text", "is not hexadecimal"))
        }
        None => sink.error("holds nothing"),
    }
}
