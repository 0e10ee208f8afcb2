//! Connections of a cluster: limits, HTTP versions, keepalives (CDS).

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers as ProtoBreakers, UpstreamConnectionOptions, circuit_breakers,
            },
            core::v3::{
                Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
                TcpKeepalive as ProtoKeepalive,
            },
        },
        extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
        r#type::v3::Percent,
    },
    google::protobuf::UInt32Value,
};
use mesh_core::config::{
    CircuitBreakers, ConnectionOptions, Http2Keepalive, Http2Options, HttpVersion, TcpKeepalive,
};

use super::{duration, uint32};

/// What differs from the default, and what must be said: a client's own default is another one.
pub(super) fn breakers(config: &CircuitBreakers) -> ProtoBreakers {
    let defaults = CircuitBreakers::default();
    let changed = |value: u32, default: u32| (value != default).then(|| uint32(value));
    let retry_budget = circuit_breakers::thresholds::RetryBudget {
        budget_percent: Some(Percent {
            value: config.retry_budget.percent.into(),
        }),
        min_retry_concurrency: Some(uint32(config.retry_budget.min_retry_concurrency)),
        ..circuit_breakers::thresholds::RetryBudget::default()
    };
    let thresholds = circuit_breakers::Thresholds {
        max_requests: Some(uint32(config.max_requests)),
        max_connections: changed(config.max_connections, defaults.max_connections),
        max_pending_requests: changed(config.max_pending_requests, defaults.max_pending_requests),
        max_retries: config.max_retries.map(uint32),
        retry_budget: config.max_retries.is_none().then_some(retry_budget),
        ..circuit_breakers::Thresholds::default()
    };
    let per_host = config
        .max_connections_per_host
        .map(|limit| circuit_breakers::Thresholds {
            max_connections: Some(uint32(limit)),
            ..circuit_breakers::Thresholds::default()
        });
    ProtoBreakers {
        thresholds: vec![thresholds],
        per_host_thresholds: per_host.into_iter().collect(),
    }
}

/// `None` where the defaults hold.
pub(super) fn connection_options(config: &ConnectionOptions) -> Option<UpstreamConnectionOptions> {
    let keepalive = config.tcp_keepalive.as_ref()?;
    Some(UpstreamConnectionOptions {
        tcp_keepalive: Some(tcp_keepalive(keepalive)),
        ..UpstreamConnectionOptions::default()
    })
}

fn tcp_keepalive(config: &TcpKeepalive) -> ProtoKeepalive {
    let seconds = |time: std::time::Duration| -> Option<UInt32Value> {
        Some(uint32(u32::try_from(time.as_secs()).unwrap_or(u32::MAX)))
    };
    ProtoKeepalive {
        keepalive_probes: config.probes.map(uint32),
        keepalive_time: seconds(config.time),
        keepalive_interval: seconds(config.interval),
    }
}

/// The HTTP version, with what its connections are told.
pub(super) fn http_options(
    version: HttpVersion,
    config: &ConnectionOptions,
) -> HttpProtocolOptions {
    use http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let http2 = http2_options(&config.http2);
    let options = match version {
        HttpVersion::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        HttpVersion::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(Default::default())),
        HttpVersion::ByRequest => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http2_protocol_options: Some(http2),
                ..UseDownstreamHttpConfig::default()
            })
        }
    };
    let common = CommonOptions {
        idle_timeout: config.idle_timeout.map(duration),
        max_connection_duration: config.max_connection_duration.map(duration),
        max_requests_per_connection: config.max_requests_per_connection.map(uint32),
        ..CommonOptions::default()
    };
    HttpProtocolOptions {
        common_http_protocol_options: (common != CommonOptions::default()).then_some(common),
        upstream_protocol_options: Some(options),
        ..HttpProtocolOptions::default()
    }
}

fn http2_options(config: &Http2Options) -> Http2ProtocolOptions {
    Http2ProtocolOptions {
        max_concurrent_streams: config.max_concurrent_streams.map(uint32),
        initial_stream_window_size: config.initial_stream_window_size.map(uint32),
        initial_connection_window_size: config.initial_connection_window_size.map(uint32),
        connection_keepalive: config.keepalive.as_ref().map(keepalive),
        ..Http2ProtocolOptions::default()
    }
}

fn keepalive(config: &Http2Keepalive) -> KeepaliveSettings {
    KeepaliveSettings {
        interval: Some(duration(config.interval)),
        timeout: Some(duration(config.timeout)),
        interval_jitter: Some(Percent {
            value: config.interval_jitter_percent.into(),
        }),
        ..KeepaliveSettings::default()
    }
}
