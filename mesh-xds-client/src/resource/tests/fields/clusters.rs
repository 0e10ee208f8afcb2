//! Messages about connections of a cluster.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, UpstreamConnectionOptions,
            circuit_breakers::Thresholds,
            cluster::{
                ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig,
            },
        },
        core::v3::{
            Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
            TcpKeepalive,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
        },
    },
};

use super::{
    super::*,
    messages::{Table, add, cluster},
};

pub(super) fn connections(t: &mut Table) {
    let original_dst = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    let by_header = OriginalDstLbConfig {
        use_http_header: true,
        ..OriginalDstLbConfig::default()
    };
    add(t, "", Kind::Cluster, &by_header, |m| {
        any(&ClusterProto {
            cluster_discovery_type: Some(original_dst.clone()),
            lb_policy: LbPolicy::ClusterProvided as i32,
            lb_config: Some(LbConfig::OriginalDstLbConfig(m)),
            ..cluster()
        })
    });
    let breakers = |m| {
        any(&ClusterProto {
            circuit_breakers: Some(CircuitBreakers {
                per_host_thresholds: vec![m],
                ..CircuitBreakers::default()
            }),
            ..cluster()
        })
    };
    let note = " (per_host_thresholds)";
    add(t, note, Kind::Cluster, &Thresholds::default(), breakers);
    let with_tcp = |m| {
        any(&ClusterProto {
            upstream_connection_options: Some(m),
            ..cluster()
        })
    };
    let none = UpstreamConnectionOptions::default();
    add(t, "", Kind::Cluster, &none, with_tcp);
    add(t, "", Kind::Cluster, &TcpKeepalive::default(), |m| {
        with_tcp(UpstreamConnectionOptions {
            tcp_keepalive: Some(m),
            ..UpstreamConnectionOptions::default()
        })
    });
    let with_options = |m: HttpProtocolOptions| {
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
        any(&ClusterProto {
            typed_extension_protocol_options: [(name, any(&m))].into(),
            ..cluster()
        })
    };
    let note = " (of clusters)";
    add(t, note, Kind::Cluster, &CommonOptions::default(), |m| {
        with_options(HttpProtocolOptions {
            common_http_protocol_options: Some(m),
            ..HttpProtocolOptions::default()
        })
    });
    let with_http2 = |m| {
        with_options(HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
                ExplicitHttpConfig {
                    protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(m)),
                },
            )),
            ..HttpProtocolOptions::default()
        })
    };
    let none = Http2ProtocolOptions::default();
    add(t, note, Kind::Cluster, &none, with_http2);
    let second = envoy_types::pb::google::protobuf::Duration {
        seconds: 1,
        nanos: 0,
    };
    let pings = KeepaliveSettings {
        interval: Some(second),
        timeout: Some(second),
        ..KeepaliveSettings::default()
    };
    add(t, note, Kind::Cluster, &pings, |m| {
        with_http2(Http2ProtocolOptions {
            connection_keepalive: Some(m),
            ..Http2ProtocolOptions::default()
        })
    });
}
