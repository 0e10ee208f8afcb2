//! Connections of a cluster.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{CircuitBreakers, UpstreamConnectionOptions, circuit_breakers::Thresholds},
        core::v3::{
            Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
            TcpKeepalive,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig},
    },
};
use envoy_types::pb::google::protobuf::{Duration as DurationProto, UInt32Value};
use mesh_core::config;

use super::*;

const NAME: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn seconds(seconds: i64) -> Option<DurationProto> {
    Some(DurationProto { seconds, nanos: 0 })
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn proto() -> ClusterProto {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, EdsClusterConfig,
    };
    use envoy_types::pb::envoy::config::core::v3::{
        AggregatedConfigSource, ConfigSource, config_source::ConfigSourceSpecifier,
    };
    ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource {},
                )),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        ..ClusterProto::default()
    }
}

fn http2(options: Http2ProtocolOptions) -> ClusterProto {
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            UseDownstreamHttpConfig {
                http2_protocol_options: Some(options),
                ..UseDownstreamHttpConfig::default()
            },
        )),
        ..HttpProtocolOptions::default()
    };
    ClusterProto {
        typed_extension_protocol_options: [(NAME.to_owned(), any(&options))].into(),
        ..proto()
    }
}

fn decoded(proto: &ClusterProto) -> Result<config::Cluster, String> {
    let decoded = decode_any(Kind::Cluster, vec![any(proto)]);
    if let Some(rejected) = decoded.rejected.first() {
        return Err(format!("{rejected:?}"));
    }
    match &decoded.accepted[0].config {
        Config::Cluster(spec) => Ok((*spec.config).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_and_ages_of_connections_are_read_and_a_budget_wins_over_a_number_of_retries() {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            idle_timeout: seconds(7),
            max_connection_duration: seconds(8),
            max_requests_per_connection: number(9),
            ..CommonOptions::default()
        }),
        ..HttpProtocolOptions::default()
    };
    let mut thresholds = Thresholds {
        max_connections: number(1),
        max_pending_requests: number(2),
        max_retries: number(3),
        ..Thresholds::default()
    };
    let with = |thresholds: &Thresholds| ClusterProto {
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![*thresholds],
            per_host_thresholds: vec![Thresholds {
                max_connections: number(4),
                ..Thresholds::default()
            }],
        }),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_probes: number(5),
                keepalive_time: number(6),
                keepalive_interval: None,
            }),
            ..UpstreamConnectionOptions::default()
        }),
        typed_extension_protocol_options: [(NAME.to_owned(), any(&options))].into(),
        ..proto()
    };
    let config = decoded(&with(&thresholds)).unwrap();
    let limits = config.circuit_breakers;
    assert_eq!(
        (limits.max_connections, limits.max_pending_requests),
        (1, 2)
    );
    assert_eq!(limits.max_retries, Some(3));
    assert_eq!(limits.max_connections_per_host, Some(4));
    let connection = config.connection;
    assert_eq!(connection.idle_timeout, Some(Duration::from_secs(7)));
    let age = connection.max_connection_duration;
    assert_eq!(age, Some(Duration::from_secs(8)));
    assert_eq!(connection.max_requests_per_connection, Some(9));
    let expected = config::TcpKeepalive {
        time: Duration::from_secs(6),
        probes: Some(5),
        ..config::TcpKeepalive::default()
    };
    assert_eq!(connection.tcp_keepalive, Some(expected));

    thresholds.retry_budget = Some(Default::default());
    let config = decoded(&with(&thresholds)).unwrap();
    assert_eq!(config.circuit_breakers.max_retries, None);
}

#[test]
fn http2_settings_are_read_within_their_bounds_and_refused_with_their_path_beyond() {
    let good = Http2ProtocolOptions {
        max_concurrent_streams: number(10),
        initial_stream_window_size: number(65_535),
        initial_connection_window_size: number(0x7fff_ffff),
        connection_keepalive: Some(KeepaliveSettings {
            interval: seconds(30),
            timeout: seconds(5),
            ..KeepaliveSettings::default()
        }),
        ..Http2ProtocolOptions::default()
    };
    let config = decoded(&http2(good.clone())).unwrap().connection.http2;
    assert_eq!(config.max_concurrent_streams, Some(10));
    assert_eq!(config.initial_stream_window_size, Some(65_535));
    let keepalive = config.keepalive.unwrap();
    assert_eq!(keepalive.interval, Duration::from_secs(30));
    assert_eq!(keepalive.interval_jitter_percent, 15, "Envoy's default");

    type Change = fn(&mut Http2ProtocolOptions);
    let wrong: [(&str, Change); 5] = [
        ("max_concurrent_streams", |o| {
            o.max_concurrent_streams = number(0)
        }),
        ("initial_stream_window_size", |o| {
            o.initial_stream_window_size = number(65_534);
        }),
        ("initial_connection_window_size", |o| {
            o.initial_connection_window_size = number(1 << 31);
        }),
        ("connection_keepalive.timeout", |o| {
            o.connection_keepalive.as_mut().unwrap().timeout = None;
        }),
        ("connection_keepalive.interval", |o| {
            o.connection_keepalive.as_mut().unwrap().interval = seconds(0);
        }),
    ];
    for (path, change) in wrong {
        let mut options = good.clone();
        change(&mut options);
        let error = decoded(&http2(options)).unwrap_err();
        let place = format!("use_downstream_protocol_config.http2_protocol_options.{path}");
        assert!(error.contains(&place), "{path}: {error}");
    }
}
