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
use mesh_core::config::{CircuitBreakers, Cluster, Discovery, HttpVersion, LbPolicy};

use super::{ClientClass, Feature, ads, any, duration, tls, uint32};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Encodes a cluster.
pub fn cluster(config: &Cluster, class: ClientClass) -> ProtoCluster {
    let Discovery::Eds(service_name) = &config.discovery;
    let mut options = HashMap::new();
    options.insert(
        HTTP_OPTIONS.to_owned(),
        any(&http_options(config.http_version)),
    );
    let (lb_policy, lb_config) = lb_policy(config.lb_policy, class);
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
        circuit_breakers: Some(breakers(&config.circuit_breakers)),
        transport_socket: config.tls.as_ref().map(|tls| tls::upstream(tls, class)),
        typed_extension_protocol_options: options,
        ..ProtoCluster::default()
    }
}

fn lb_policy(
    policy: LbPolicy,
    class: ClientClass,
) -> (cluster::LbPolicy, Option<cluster::LbConfig>) {
    // gRPC refuses a policy that it does not have (A27), and only Java has least request (A48):
    // round robin is what every gRPC has.
    let has = |policy| match policy {
        LbPolicy::RoundRobin => true,
        LbPolicy::LeastRequest { .. } => class.has(Feature::LeastRequest, None),
        LbPolicy::Random => !class.is_grpc(),
    };
    match policy {
        policy if !has(policy) => (cluster::LbPolicy::RoundRobin, None),
        LbPolicy::RoundRobin => (cluster::LbPolicy::RoundRobin, None),
        LbPolicy::LeastRequest { choice_count } => {
            let config = cluster::LeastRequestLbConfig {
                choice_count: Some(uint32(choice_count)),
                ..cluster::LeastRequestLbConfig::default()
            };
            let config = cluster::LbConfig::LeastRequestLbConfig(config);
            (cluster::LbPolicy::LeastRequest, Some(config))
        }
        LbPolicy::Random => (cluster::LbPolicy::Random, None),
    }
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
