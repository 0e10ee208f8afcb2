//! Clusters (CDS).

use std::collections::HashMap;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers as ProtoBreakers, Cluster as ProtoCluster, circuit_breakers, cluster,
        },
        core::v3::Http2ProtocolOptions,
    },
    extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
    r#type::v3::Percent,
};
use mesh_core::config::{CircuitBreakers, Cluster, CommonLbConfig, Discovery, HttpVersion};

use super::balance::{Balance, balance, outlier_detection};
use super::{ClientClass, ads, any, duration, tls, uint32};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Encodes a cluster.
pub fn cluster(config: &Cluster, class: ClientClass) -> ProtoCluster {
    let Discovery::Eds(service_name) = &config.discovery;
    let mut options = HashMap::new();
    options.insert(
        HTTP_OPTIONS.to_owned(),
        any(&http_options(config.http_version)),
    );
    let common = &config.common_lb_config;
    let Balance {
        lb_policy,
        lb_config,
        load_balancing_policy,
    } = balance(config, class);
    ProtoCluster {
        name: config.name.to_string(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: service_name.to_string(),
        }),
        connect_timeout: Some(duration(config.connect_timeout)),
        lb_policy: lb_policy as i32,
        lb_config,
        load_balancing_policy,
        common_lb_config: common_lb_config(common),
        outlier_detection: config.outlier_detection.as_ref().map(outlier_detection),
        circuit_breakers: Some(breakers(&config.circuit_breakers)),
        transport_socket: config.tls.as_ref().map(|tls| tls::upstream(tls, class)),
        typed_extension_protocol_options: options,
        ..ProtoCluster::default()
    }
}

/// `None` where nothing of it is set.
fn common_lb_config(config: &CommonLbConfig) -> Option<cluster::CommonLbConfig> {
    use cluster::common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig};
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
    let proto = cluster::CommonLbConfig {
        healthy_panic_threshold: config.healthy_panic_threshold.map(|percent| Percent {
            value: percent.into(),
        }),
        locality_config_specifier: config.locality_weighted.then_some(weighted),
        ..cluster::CommonLbConfig::default()
    };
    (proto != cluster::CommonLbConfig::default()).then_some(proto)
}

fn breakers(config: &CircuitBreakers) -> ProtoBreakers {
    ProtoBreakers {
        thresholds: vec![circuit_breakers::Thresholds {
            max_requests: Some(uint32(config.max_requests)),
            retry_budget: Some(circuit_breakers::thresholds::RetryBudget {
                budget_percent: Some(Percent {
                    value: config.retry_budget.percent.into(),
                }),
                min_retry_concurrency: Some(uint32(config.retry_budget.min_retry_concurrency)),
                ..circuit_breakers::thresholds::RetryBudget::default()
            }),
            ..circuit_breakers::Thresholds::default()
        }],
        ..ProtoBreakers::default()
    }
}

fn http_options(version: HttpVersion) -> HttpProtocolOptions {
    use http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let options = match version {
        HttpVersion::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(
            Http2ProtocolOptions::default(),
        )),
        HttpVersion::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(Default::default())),
        HttpVersion::ByRequest => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        ..HttpProtocolOptions::default()
    }
}
