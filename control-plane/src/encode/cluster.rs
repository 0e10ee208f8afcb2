//! Clusters (CDS).

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster as ProtoCluster, cluster},
            endpoint::v3::ClusterLoadAssignment,
        },
        r#type::v3::Percent,
    },
    google::protobuf::UInt64Value,
};
use mesh_core::config::{
    Cluster, CommonLbConfig, ConsistentHashing, Discovery, SocketMatch, ZoneAware,
};

use super::{
    ClientClass, ads, any,
    balance::{Balance, balance, outlier_detection},
    connection::{breakers, connection_options, http_options},
    duration, endpoint,
    health_check::health_check,
    subset::{structure, subset_config},
    tls, uint32,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Encodes a cluster.
pub fn cluster(config: &Cluster, class: ClientClass) -> ProtoCluster {
    let Found {
        kind,
        eds_cluster_config,
        load_assignment,
    } = discovery(config, class);
    let mut options = HashMap::new();
    options.insert(
        HTTP_OPTIONS.to_owned(),
        any(&http_options(config.http_version, &config.connection)),
    );
    let common = &config.common_lb_config;
    let Balance {
        lb_policy,
        lb_config,
        load_balancing_policy,
    } = balance(config, class);
    ProtoCluster {
        name: config.name.to_string(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(kind as i32)),
        eds_cluster_config,
        load_assignment,
        connect_timeout: Some(duration(config.connect_timeout)),
        lb_policy: lb_policy as i32,
        lb_config,
        load_balancing_policy,
        common_lb_config: common_lb_config(common),
        lb_subset_config: config.subsets.as_ref().map(subset_config),
        outlier_detection: config.outlier_detection.as_ref().map(outlier_detection),
        health_checks: config.health_checks.iter().map(health_check).collect(),
        circuit_breakers: Some(breakers(&config.circuit_breakers)),
        upstream_connection_options: connection_options(&config.connection),
        transport_socket: config.tls.as_ref().map(|tls| tls::upstream(tls, class)),
        transport_socket_matches: socket_matches(config, class),
        typed_extension_protocol_options: options,
        ..of_envoy_dns(config, class)
    }
}

/// Where endpoints come from, on the wire.
struct Found {
    kind: cluster::DiscoveryType,
    eds_cluster_config: Option<cluster::EdsClusterConfig>,
    load_assignment: Option<ClusterLoadAssignment>,
}

fn discovery(config: &Cluster, class: ClientClass) -> Found {
    let (kind, hosts) = match &config.discovery {
        Discovery::Eds(service_name) => {
            return Found {
                kind: cluster::DiscoveryType::Eds,
                eds_cluster_config: Some(cluster::EdsClusterConfig {
                    eds_config: Some(ads()),
                    service_name: service_name.to_string(),
                }),
                load_assignment: None,
            };
        }
        // gRPC knows the other kind alone, for one host (gRFC A37).
        Discovery::StrictDns(hosts) if class.is_grpc() => {
            (cluster::DiscoveryType::LogicalDns, hosts.as_slice())
        }
        Discovery::StrictDns(hosts) => (cluster::DiscoveryType::StrictDns, hosts.as_slice()),
        Discovery::LogicalDns(host) => (
            cluster::DiscoveryType::LogicalDns,
            std::slice::from_ref(host),
        ),
    };
    Found {
        kind,
        eds_cluster_config: None,
        load_assignment: Some(endpoint::hosts(config.name.as_str(), hosts)),
    }
}

/// How Envoy looks hosts up; our library and gRPC follow times to live, and both families, unasked.
fn of_envoy_dns(config: &Cluster, class: ClientClass) -> ProtoCluster {
    let is_dns = !matches!(config.discovery, Discovery::Eds(_));
    if !is_dns || class != ClientClass::Envoy {
        return ProtoCluster::default();
    }
    let mut proto = ProtoCluster {
        dns_lookup_family: cluster::DnsLookupFamily::All as i32,
        ..ProtoCluster::default()
    };
    #[expect(
        deprecated,
        reason = "the extension that follows it is newer than Envoys in use"
    )]
    let respect_dns_ttl = &mut proto.respect_dns_ttl;
    *respect_dns_ttl = true;
    proto
}

/// gRPC knows none, and refuses clusters with them: to it such a cluster is plaintext, as every one is that
/// Istio makes for it without a rule that says `ISTIO_MUTUAL`. Endpoints that take mTLS alone refuse it.
fn socket_matches(config: &Cluster, class: ClientClass) -> Vec<cluster::TransportSocketMatch> {
    if class.is_grpc() {
        if config
            .socket_matches
            .iter()
            .any(|socket| socket.tls.is_some())
        {
            tracing::warn!(
                cluster = %config.name,
                "only some endpoints take mTLS, which gRPC clients cannot tell apart: they speak plaintext \
                 to all of them; give every endpoint tlsMode istio, or the host a DestinationRule with \
                 tls: {{mode: ISTIO_MUTUAL}}"
            );
        }
        return Vec::new();
    }
    let socket = |socket: &SocketMatch| cluster::TransportSocketMatch {
        name: socket.name.clone(),
        r#match: Some(structure(&socket.labels)),
        transport_socket: Some(match &socket.tls {
            Some(tls) => tls::upstream(tls, class),
            None => tls::plaintext(),
        }),
    };
    config.socket_matches.iter().map(socket).collect()
}

/// `None` where nothing of it is set. Weights of localities win over zones, as there is one of them.
fn common_lb_config(config: &CommonLbConfig) -> Option<cluster::CommonLbConfig> {
    use cluster::common_lb_config::{
        ConsistentHashingLbConfig, LocalityConfigSpecifier, LocalityWeightedLbConfig,
    };
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
    let zone_aware = config.zone_aware.as_ref().map(zone_aware);
    let hashing = &config.consistent_hashing;
    let has_hashing = *hashing != ConsistentHashing::default();
    let proto = cluster::CommonLbConfig {
        healthy_panic_threshold: config.healthy_panic_threshold.map(|percent| Percent {
            value: percent.into(),
        }),
        locality_config_specifier: match config.locality_weighted {
            true => Some(weighted),
            false => zone_aware.map(LocalityConfigSpecifier::ZoneAwareLbConfig),
        },
        consistent_hashing_lb_config: has_hashing.then(|| ConsistentHashingLbConfig {
            use_hostname_for_hashing: hashing.use_hostname_for_hashing,
            hash_balance_factor: hashing.hash_balance_factor.map(uint32),
        }),
        ..cluster::CommonLbConfig::default()
    };
    (proto != cluster::CommonLbConfig::default()).then_some(proto)
}

fn zone_aware(config: &ZoneAware) -> cluster::common_lb_config::ZoneAwareLbConfig {
    cluster::common_lb_config::ZoneAwareLbConfig {
        routing_enabled: Some(Percent {
            value: config.routing_enabled,
        }),
        min_cluster_size: Some(UInt64Value {
            value: config.min_cluster_size,
        }),
        fail_traffic_on_panic: config.fail_traffic_on_panic,
    }
}
