//! `ClusterLoadAssignment` to [`ClusterEndpoints`].
//!
//! Stage 3. Follows gRFC A27: priorities without gaps, unique localities and addresses, localities
//! without weight left out. Deviation: `policy.drop_overloads` has no effect and is noted.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
};

use envoy_types::pb::envoy::config::{
    core::v3::HealthStatus as HealthProto,
    endpoint::v3::{
        ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        locality_lb_endpoints::LbConfig,
    },
};
use mesh_core::config::{ClusterEndpoints, Endpoint, HealthStatus, LocalityEndpoints, LocalityId};

use super::{
    canonical,
    path::Sink,
    report::report,
    value::{socket_address, uint32},
};

pub(super) fn decode(sink: &mut Sink, proto: &ClusterLoadAssignment) -> Option<ClusterEndpoints> {
    if let Some(policy) = &proto.policy {
        sink.field("policy", |sink| {
            report!(
                sink,
                policy,
                [
                    drop_overloads,
                    endpoint_stale_after,
                    overprovisioning_factor,
                    weighted_priority_health,
                ]
            );
        });
    }
    let mut addresses = HashSet::new();
    let localities = sink.each("endpoints", &proto.endpoints, |sink, locality| {
        decode_locality(sink, locality, &mut addresses)
    });
    check_priorities(sink, &localities);
    Some(ClusterEndpoints {
        name: canonical(proto.cluster_name.clone()).into(),
        localities,
    })
}

fn decode_locality(
    sink: &mut Sink,
    proto: &LocalityLbEndpoints,
    addresses: &mut HashSet<SocketAddr>,
) -> Option<LocalityEndpoints> {
    let weight = uint32(proto.load_balancing_weight.as_ref()).unwrap_or(0);
    if weight == 0 {
        // gRFC A27: such a locality takes no traffic.
        sink.ignore([(
            "lb_endpoints (the locality has no load_balancing_weight)",
            true,
        )]);
        return None;
    }
    let listed = match &proto.lb_config {
        None => &proto.lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return sink.error_at("leds_cluster_locality_config", "LEDS is not supported");
        }
    };
    let endpoints = sink.each("lb_endpoints", listed, |sink, endpoint| {
        decode_endpoint(sink, endpoint, addresses)
    });
    let sum: u64 = endpoints
        .iter()
        .map(|endpoint| u64::from(endpoint.weight))
        .sum();
    if sum > u64::from(u32::MAX) {
        sink.error_at::<()>("lb_endpoints", "the weights sum up to more than 2^32 - 1");
    }
    let locality = proto.locality.as_ref();
    Some(LocalityEndpoints {
        locality: locality.map_or_else(LocalityId::default, |locality| LocalityId {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        priority: proto.priority,
        weight,
        endpoints,
    })
}

fn decode_endpoint(
    sink: &mut Sink,
    proto: &LbEndpoint,
    addresses: &mut HashSet<SocketAddr>,
) -> Option<Endpoint> {
    let endpoint = match &proto.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName(_)) => {
            return sink.error_at("endpoint_name", "named endpoints are not supported");
        }
        None => return sink.error_at("endpoint", "is missing"),
    };
    let weight = uint32(proto.load_balancing_weight.as_ref()).unwrap_or(1);
    if weight == 0 {
        sink.error_at::<()>("load_balancing_weight", "must not be 0");
    }
    let health = match HealthProto::try_from(proto.health_status) {
        Ok(HealthProto::Unknown) => HealthStatus::Unknown,
        Ok(HealthProto::Healthy) => HealthStatus::Healthy,
        Ok(HealthProto::Unhealthy) => HealthStatus::Unhealthy,
        Ok(HealthProto::Draining) => HealthStatus::Draining,
        Ok(HealthProto::Timeout) => HealthStatus::Timeout,
        Ok(HealthProto::Degraded) => HealthStatus::Degraded,
        Err(_) => {
            return sink.error_at(
                "health_status",
                format!("{} is not a known health status", proto.health_status),
            );
        }
    };
    sink.field("endpoint", |sink| {
        report!(sink, endpoint, [additional_addresses, health_check_config]);
    });
    let address = sink.field("endpoint.address", |sink| {
        let (ip, port) = socket_address(sink, endpoint.address.as_ref())?;
        let address = SocketAddr::new(ip, port);
        if port == 0 {
            return sink.error_at("socket_address.port_value", "must not be 0");
        }
        if !addresses.insert(address) {
            return sink.error(format!("{address} is listed twice"));
        }
        Some(address)
    })?;
    Some(Endpoint {
        address,
        weight,
        health,
        hostname: endpoint.hostname.clone(),
    })
}

/// Priorities run from 0 without gaps, each with unique localities and a sum of weights in `u32`.
fn check_priorities(sink: &mut Sink, localities: &[LocalityEndpoints]) {
    let mut tiers: BTreeMap<u32, (BTreeSet<&LocalityId>, u64)> = BTreeMap::new();
    for locality in localities {
        let (seen, sum) = tiers.entry(locality.priority).or_default();
        *sum += u64::from(locality.weight);
        if !seen.insert(&locality.locality) {
            let LocalityId {
                region,
                zone,
                sub_zone,
            } = &locality.locality;
            sink.error_at::<()>(
                "endpoints",
                format!(
                    "locality {region:?}/{zone:?}/{sub_zone:?} is listed twice in priority {}",
                    locality.priority
                ),
            );
        }
    }
    for (expected, (priority, (_, sum))) in tiers.iter().enumerate() {
        if *priority as usize != expected {
            sink.error_at::<()>(
                "endpoints",
                format!("priorities have a gap: {expected} is missing, {priority} is there"),
            );
            break;
        }
        if *sum > u64::from(u32::MAX) {
            let reason = format!("the weights of priority {priority} sum up to more than 2^32 - 1");
            sink.error_at::<()>("endpoints", reason);
        }
    }
}
