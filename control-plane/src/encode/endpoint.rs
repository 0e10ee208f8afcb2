//! Endpoints (EDS).

use std::net::SocketAddr;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{HealthStatus as ProtoHealth, Locality},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as ProtoEndpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::{Policy, policy::DropOverload},
            endpoint::AdditionalAddress,
            lb_endpoint,
        },
    },
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};
use mesh_core::config::{ClusterEndpoints, DnsHost, Endpoint, HealthStatus};

use super::{host_address, socket, subset, uint32};

/// Encodes endpoints.
pub fn endpoints(config: &ClusterEndpoints) -> ClusterLoadAssignment {
    let localities = config
        .localities
        .iter()
        .map(|locality| LocalityLbEndpoints {
            locality: Some(Locality {
                region: locality.locality.region.clone(),
                zone: locality.locality.zone.clone(),
                sub_zone: locality.locality.sub_zone.clone(),
            }),
            lb_endpoints: locality.endpoints.iter().map(endpoint).collect(),
            load_balancing_weight: Some(uint32(locality.weight)),
            priority: locality.priority,
            ..LocalityLbEndpoints::default()
        });
    ClusterLoadAssignment {
        cluster_name: config.name.to_string(),
        endpoints: localities.collect(),
        policy: policy(config),
        ..ClusterLoadAssignment::default()
    }
}

/// `None` where nothing of it is set.
fn policy(config: &ClusterEndpoints) -> Option<Policy> {
    let drop = |rule: &mesh_core::config::DropOverload| DropOverload {
        category: rule.category.clone(),
        drop_percentage: Some(FractionalPercent {
            numerator: rule.share.per_million(),
            denominator: DenominatorType::Million as i32,
        }),
    };
    let policy = Policy {
        drop_overloads: config.drop_overloads.iter().map(drop).collect(),
        overprovisioning_factor: config.overprovisioning_factor.map(uint32),
        ..Policy::default()
    };
    (policy != Policy::default()).then_some(policy)
}

/// "There are none": calls fail at once instead of waiting for an answer.
pub fn empty_endpoints(name: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        ..ClusterLoadAssignment::default()
    }
}

fn endpoint(config: &Endpoint) -> LbEndpoint {
    let health = match config.health {
        HealthStatus::Unknown => ProtoHealth::Unknown,
        HealthStatus::Healthy => ProtoHealth::Healthy,
        HealthStatus::Unhealthy => ProtoHealth::Unhealthy,
        HealthStatus::Draining => ProtoHealth::Draining,
        HealthStatus::Timeout => ProtoHealth::Timeout,
        HealthStatus::Degraded => ProtoHealth::Degraded,
    };
    let additional = config.details().additional_addresses.iter();
    let additional_address = |address: &SocketAddr| AdditionalAddress {
        address: Some(socket(*address)),
    };
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(ProtoEndpoint {
            address: Some(socket(config.address)),
            hostname: config.details().hostname.clone(),
            additional_addresses: additional.map(additional_address).collect(),
            ..ProtoEndpoint::default()
        })),
        health_status: health as i32,
        load_balancing_weight: Some(uint32(config.weight)),
        metadata: subset::metadata(
            &config.details().metadata,
            config.details().socket_labels.as_deref(),
        ),
    }
}

/// The hosts of a cluster whose clients look them up.
pub(super) fn hosts(cluster: &str, hosts: &[DnsHost]) -> ClusterLoadAssignment {
    let endpoint = |host: &DnsHost| LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(ProtoEndpoint {
            address: Some(host_address(&host.name, host.port)),
            hostname: host.name.clone(),
            ..ProtoEndpoint::default()
        })),
        ..LbEndpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: hosts.iter().map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}
