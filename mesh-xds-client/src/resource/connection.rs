//! Connections of a cluster: limits, HTTP versions, keepalives.
//!
//! Stage 3. Limits by gRFC A32 and A105, Envoy's `max_connections`, `max_pending_requests` and retry
//! limits; of several priorities only DEFAULT is read.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            self as proto, CircuitBreakers as BreakersProto, Cluster as ClusterProto,
            circuit_breakers::Thresholds,
        },
        core::v3::{
            Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
            RoutingPriority, TcpKeepalive as KeepaliveProto,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};
use mesh_core::config::{
    CircuitBreakers, ConnectionOptions, HTTP2_KEEPALIVE_MIN, Http2Keepalive, Http2Options,
    HttpVersion, RetryBudget, TcpKeepalive,
};

use super::{
    path::Sink,
    report::report,
    value::{duration, is, parse, uint32},
};

/// Key of the HTTP options in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Smallest and largest flow-control window (RFC 9113, Envoy).
const WINDOWS: std::ops::RangeInclusive<u32> = 65_535..=0x7fff_ffff;

/// Random part of an interval between pings where nothing is said (Envoy).
const JITTER_PERCENT_DEFAULT: f64 = 15.0;

pub(super) fn circuit_breakers(sink: &mut Sink, proto: &ClusterProto) -> Option<CircuitBreakers> {
    let Some(breakers) = &proto.circuit_breakers else {
        return Some(CircuitBreakers::default());
    };
    sink.field("circuit_breakers", |sink| decode_breakers(sink, breakers))
}

fn decode_breakers(sink: &mut Sink, breakers: &BreakersProto) -> Option<CircuitBreakers> {
    let find = |list: &[Thresholds]| {
        let default = RoutingPriority::Default as i32;
        list.iter().position(|limits| limits.priority == default)
    };
    let mut config = CircuitBreakers::default();
    if let Some(found) = find(&breakers.thresholds) {
        let limits = &breakers.thresholds[found];
        config = sink.field(&format!("thresholds[{found}]"), |sink| {
            decode_thresholds(sink, limits)
        })?;
    }
    if let Some(found) = find(&breakers.per_host_thresholds) {
        let limits = &breakers.per_host_thresholds[found];
        sink.field(&format!("per_host_thresholds[{found}]"), |sink| {
            // Envoy takes no other limit there.
            report!(
                sink,
                limits,
                [
                    max_connection_pools,
                    max_pending_requests,
                    max_requests,
                    max_retries,
                    retry_budget
                ]
            );
            config.max_connections_per_host = uint32(limits.max_connections.as_ref());
            if config.max_connections_per_host == Some(0) {
                sink.error_at::<()>("max_connections", "must not be 0");
            }
        });
    }
    Some(config)
}

fn decode_thresholds(sink: &mut Sink, limits: &Thresholds) -> Option<CircuitBreakers> {
    report!(sink, limits, [max_connection_pools]);
    let defaults = CircuitBreakers::default();
    let or = |value: Option<u32>, default: u32| value.unwrap_or(default);
    let retry_budget = match &limits.retry_budget {
        Some(budget) => Some(sink.field("retry_budget", |sink| decode_budget(sink, budget))?),
        None => None,
    };
    Some(CircuitBreakers {
        max_requests: or(uint32(limits.max_requests.as_ref()), defaults.max_requests),
        max_connections: or(
            uint32(limits.max_connections.as_ref()),
            defaults.max_connections,
        ),
        max_pending_requests: or(
            uint32(limits.max_pending_requests.as_ref()),
            defaults.max_pending_requests,
        ),
        // Envoy: a budget wins.
        max_retries: uint32(limits.max_retries.as_ref()).filter(|_| retry_budget.is_none()),
        retry_budget: retry_budget.unwrap_or(defaults.retry_budget),
        ..defaults
    })
}

fn decode_budget(
    sink: &mut Sink,
    proto: &proto::circuit_breakers::thresholds::RetryBudget,
) -> Option<RetryBudget> {
    let defaults = RetryBudget::default();
    let percent = match &proto.budget_percent {
        None => defaults.percent,
        Some(percent) if (0.0..=100.0).contains(&percent.value) => percent.value.round() as u32,
        Some(percent) => {
            let reason = format!("{} is not 0 to 100", percent.value);
            return sink.error_at("budget_percent", reason);
        }
    };
    Some(RetryBudget {
        percent,
        min_retry_concurrency: uint32(proto.min_retry_concurrency.as_ref())
            .unwrap_or(defaults.min_retry_concurrency),
    })
}

/// The HTTP version, and how connections are kept. The typed options win over the deprecated fields
/// of the cluster.
pub(super) fn options(
    sink: &mut Sink,
    proto: &ClusterProto,
) -> Option<(HttpVersion, ConnectionOptions)> {
    let mut config = ConnectionOptions::default();
    if let Some(options) = &proto.upstream_connection_options {
        sink.field("upstream_connection_options", |sink| {
            report!(
                sink,
                options,
                [
                    set_local_interface_name_on_upstream_connections,
                    happy_eyeballs_config
                ]
            );
            config.tcp_keepalive = options.tcp_keepalive.as_ref().map(tcp_keepalive);
        });
    }
    let Some(any) = proto.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        let version = deprecated_options(sink, proto, &mut config)?;
        return Some((version, config));
    };
    let name = format!("typed_extension_protocol_options[{HTTP_OPTIONS:?}]");
    let version = sink.field(&name, |sink| {
        if !is::<HttpProtocolOptions>(any) {
            return sink.error(format!("holds {}", any.type_url));
        }
        let options: HttpProtocolOptions = parse(sink, any)?;
        typed_options(sink, &options, &mut config)
    })?;
    Some((version, config))
}

/// HTTP/2 options without a choice of protocol mean HTTP/2.
fn deprecated_options(
    sink: &mut Sink,
    proto: &ClusterProto,
    config: &mut ConnectionOptions,
) -> Option<HttpVersion> {
    if let Some(common) = &proto.common_http_protocol_options {
        sink.field("common_http_protocol_options", |sink| {
            common_options(sink, common, config)
        })?;
    }
    if let Some(max) = uint32(proto.max_requests_per_connection.as_ref()) {
        config.max_requests_per_connection = Some(max).filter(|max| *max > 0);
    }
    if let Some(http2) = &proto.http2_protocol_options {
        config.http2 = sink.field("http2_protocol_options", |sink| http2_options(sink, http2))?;
    }
    Some(match proto.http2_protocol_options {
        Some(_) if proto.protocol_selection == 0 => HttpVersion::Http2,
        _ => HttpVersion::ByRequest,
    })
}

fn typed_options(
    sink: &mut Sink,
    options: &HttpProtocolOptions,
    config: &mut ConnectionOptions,
) -> Option<HttpVersion> {
    report!(
        sink,
        options,
        [
            hash_policy,
            header_validation_config,
            outlier_detection,
            request_mirror_policies,
            retry_policy,
            upstream_http_protocol_options,
        ]
    );
    let mut filters = options.http_filters.iter();
    let is_filtered = filters.any(|filter| !filter.is_optional);
    // One filter is the codec, which says nothing.
    sink.ignore([(
        "http_filters",
        is_filtered && options.http_filters.len() > 1,
    )]);
    if let Some(common) = &options.common_http_protocol_options {
        sink.field("common_http_protocol_options", |sink| {
            common_options(sink, common, config)
        })?;
    }
    let (version, http2, name) = match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            let name = "explicit_http_config.http2_protocol_options";
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(_)) => (HttpVersion::Http1, None, name),
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    (HttpVersion::Http2, Some(http2), name)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    let name = "explicit_http_config.http3_protocol_options";
                    return sink.error_at(name, "HTTP/3 is not supported");
                }
                None => return sink.error_at("explicit_http_config", "names no protocol"),
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(both)) => {
            let name = "use_downstream_protocol_config.http2_protocol_options";
            let http2 = both.http2_protocol_options.as_ref();
            (HttpVersion::ByRequest, http2, name)
        }
        Some(UpstreamProtocolOptions::AutoConfig(both)) => {
            let http2 = both.http2_protocol_options.as_ref();
            let name = "auto_config.http2_protocol_options";
            (HttpVersion::ByRequest, http2, name)
        }
        None => (HttpVersion::ByRequest, None, ""),
    };
    if let Some(http2) = http2 {
        config.http2 = sink.field(name, |sink| http2_options(sink, http2))?;
    }
    Some(version)
}

fn common_options(
    sink: &mut Sink,
    proto: &CommonOptions,
    config: &mut ConnectionOptions,
) -> Option<()> {
    report!(
        sink,
        proto,
        [
            max_headers_count,
            max_stream_duration,
            headers_with_underscores_action
        ]
    );
    config.idle_timeout = duration(sink, "idle_timeout", proto.idle_timeout.as_ref());
    let age = proto.max_connection_duration.as_ref();
    config.max_connection_duration = duration(sink, "max_connection_duration", age);
    if config.max_connection_duration == Some(Duration::ZERO) {
        return sink.error_at("max_connection_duration", "must be above 0");
    }
    let requests = uint32(proto.max_requests_per_connection.as_ref());
    // Envoy: 0 is no limit.
    config.max_requests_per_connection = requests.filter(|max| *max > 0);
    Some(())
}

fn http2_options(sink: &mut Sink, proto: &Http2ProtocolOptions) -> Option<Http2Options> {
    report!(
        sink,
        proto,
        [allow_connect, allow_metadata, custom_settings_parameters]
    );
    let streams = uint32(proto.max_concurrent_streams.as_ref());
    if streams.is_some_and(|streams| !(1..=0x7fff_ffff).contains(&streams)) {
        return sink.error_at("max_concurrent_streams", "must be 1 to 2^31 - 1");
    }
    let mut window = |name: &str, value: Option<u32>| match value {
        Some(size) if !WINDOWS.contains(&size) => {
            sink.error_at(name, format!("{size} is not 65535 to 2^31 - 1"))
        }
        size => Some(size),
    };
    let stream = uint32(proto.initial_stream_window_size.as_ref());
    let stream = window("initial_stream_window_size", stream)?;
    let connection = uint32(proto.initial_connection_window_size.as_ref());
    let connection = window("initial_connection_window_size", connection)?;
    let keepalive = match &proto.connection_keepalive {
        Some(proto) => sink.field("connection_keepalive", |sink| keepalive(sink, proto))?,
        None => None,
    };
    Some(Http2Options {
        max_concurrent_streams: streams,
        initial_stream_window_size: stream,
        initial_connection_window_size: connection,
        keepalive,
    })
}

/// The outer `None` is an error; without an interval there are no pings.
fn keepalive(sink: &mut Sink, proto: &KeepaliveSettings) -> Option<Option<Http2Keepalive>> {
    report!(sink, proto, [connection_idle_interval]);
    let interval = duration(sink, "interval", proto.interval.as_ref());
    let Some(timeout) = duration(sink, "timeout", proto.timeout.as_ref()) else {
        return sink.error_at("timeout", "is missing");
    };
    let Some(interval) = interval else {
        return Some(None);
    };
    for (name, value) in [("interval", interval), ("timeout", timeout)] {
        if value < HTTP2_KEEPALIVE_MIN {
            return sink.error_at(name, format!("must be {HTTP2_KEEPALIVE_MIN:?} or more"));
        }
    }
    let jitter = proto.interval_jitter.as_ref().map(|jitter| jitter.value);
    let jitter = jitter.unwrap_or(JITTER_PERCENT_DEFAULT);
    if !(0.0..=100.0).contains(&jitter) {
        return sink.error_at("interval_jitter", format!("{jitter} is not 0 to 100"));
    }
    Some(Some(Http2Keepalive {
        interval,
        timeout,
        interval_jitter_percent: jitter.round() as u32,
    }))
}

fn tcp_keepalive(proto: &KeepaliveProto) -> TcpKeepalive {
    let defaults = TcpKeepalive::default();
    // The kernel takes no 0; Envoy: so its own value holds.
    let seconds = |value: Option<u32>, default: Duration| {
        let value = value.filter(|seconds| *seconds > 0);
        value.map_or(default, |seconds| Duration::from_secs(seconds.into()))
    };
    TcpKeepalive {
        time: seconds(uint32(proto.keepalive_time.as_ref()), defaults.time),
        interval: seconds(uint32(proto.keepalive_interval.as_ref()), defaults.interval),
        probes: uint32(proto.keepalive_probes.as_ref()).filter(|probes| *probes > 0),
    }
}
