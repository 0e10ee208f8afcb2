//! `ClusterLoadAssignment` to [`ClusterEndpoints`].
//!
//! Stage 3. Follows gRFC A27: priorities without gaps, unique localities and addresses, localities
//! without weight left out.

mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use hashbrown::HashSet;
use mesh_core::config::{
    ClusterEndpoints, DropOverload, Endpoint, EndpointDetails, LbMetadata, LocalityEndpoints,
    LocalityId,
};

pub(super) use self::message::ClusterLoadAssignment;
use self::message::{
    DropOverload as DropProto, HostIdentifier, LbConfig, LbEndpoint, LocalityLbEndpoints, Policy,
    SocketAddress,
};
use super::{
    canonical,
    path::Sink,
    report::report,
    value::{PORT, WrongAddress, fraction, health_status, ip_and_port},
};

pub(super) fn decode(
    sink: &mut Sink,
    proto: ClusterLoadAssignment<'_>,
) -> Option<ClusterEndpoints> {
    let policy = proto.policy;
    let (drop_overloads, overprovisioning_factor) = policy.map_or((Vec::new(), None), |policy| {
        sink.field("policy", |sink| decode_policy(sink, policy))
    });
    let mut seen = Seen::default();
    let localities = sink.each("endpoints", proto.endpoints, |sink, locality| {
        decode_locality(sink, locality, &mut seen)
    });
    check_priorities(sink, &localities);
    Some(ClusterEndpoints {
        name: canonical(proto.cluster_name.to_owned()).into(),
        localities,
        drop_overloads,
        overprovisioning_factor,
    })
}

/// What earlier endpoints of the resource have.
#[derive(Default)]
struct Seen {
    addresses: HashSet<SocketAddr>,
    /// Few differ, and all would hold their own.
    labels: BTreeSet<Arc<LbMetadata>>,
}

impl Seen {
    /// Whether no endpoint has this address yet.
    fn is_new(&mut self, address: SocketAddr) -> bool {
        self.addresses.insert(address)
    }

    fn labels(&mut self, labels: LbMetadata) -> Arc<LbMetadata> {
        if let Some(held) = self.labels.get(&labels) {
            return Arc::clone(held);
        }
        let labels = Arc::new(labels);
        self.labels.insert(Arc::clone(&labels));
        labels
    }
}

fn decode_policy(sink: &mut Sink, proto: Policy<'_>) -> (Vec<DropOverload>, Option<u32>) {
    report!(
        sink,
        proto,
        [endpoint_stale_after, weighted_priority_health]
    );
    let drops = sink.each("drop_overloads", proto.drop_overloads, decode_drop);
    let factor = proto.overprovisioning_factor;
    if factor == Some(0) {
        sink.error_at::<()>("overprovisioning_factor", "must be above 0");
    }
    (drops, factor)
}

fn decode_drop(sink: &mut Sink, proto: DropProto<'_>) -> Option<DropOverload> {
    if proto.category.is_empty() {
        return sink.error_at("category", "is missing");
    }
    let Some(share) = proto.drop_percentage else {
        return sink.error_at("drop_percentage", "is missing");
    };
    Some(DropOverload {
        category: proto.category.to_owned(),
        share: sink.field("drop_percentage", |sink| fraction(sink, &share))?,
    })
}

fn decode_locality(
    sink: &mut Sink,
    proto: LocalityLbEndpoints<'_>,
    seen: &mut Seen,
) -> Option<LocalityEndpoints> {
    let weight = proto.load_balancing_weight.unwrap_or(0);
    if weight == 0 {
        // gRFC A27: such a locality takes no traffic.
        sink.ignore([(
            "lb_endpoints (the locality has no load_balancing_weight)",
            true,
        )]);
        return None;
    }
    let listed = match proto.lb_config {
        None => proto.lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) => list,
        Some(LbConfig::LedsClusterLocalityConfig) => {
            return sink.error_at("leds_cluster_locality_config", "LEDS is not supported");
        }
    };
    seen.addresses.reserve(listed.len());
    let endpoints = sink.each("lb_endpoints", listed, |sink, endpoint| {
        decode_endpoint(sink, endpoint, seen)
    });
    let sum: u64 = endpoints
        .iter()
        .map(|endpoint| u64::from(endpoint.weight))
        .sum();
    if sum > u64::from(u32::MAX) {
        sink.error_at::<()>("lb_endpoints", "the weights sum up to more than 2^32 - 1");
    }
    Some(LocalityEndpoints {
        locality: LocalityId {
            region: proto.locality.region.to_owned(),
            zone: proto.locality.zone.to_owned(),
            sub_zone: proto.locality.sub_zone.to_owned(),
        },
        priority: proto.priority,
        weight,
        endpoints,
    })
}

fn decode_endpoint(sink: &mut Sink, proto: LbEndpoint<'_>, seen: &mut Seen) -> Option<Endpoint> {
    let endpoint = match proto.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName) => {
            return sink.error_at("endpoint_name", "named endpoints are not supported");
        }
        None => return sink.error_at("endpoint", "is missing"),
    };
    let weight = proto.load_balancing_weight.unwrap_or(1);
    if weight == 0 {
        sink.error_at::<()>("load_balancing_weight", "must not be 0");
    }
    let health = health_status(proto.health_status)
        .map_or_else(|reason| sink.error_at("health_status", reason), Some)?;
    sink.ignore([("endpoint.health_check_config", endpoint.health_check_config)]);
    let address = decode_address(sink, "endpoint.address", endpoint.address, seen)?;
    let additional_addresses = sink.each(
        "endpoint.additional_addresses",
        endpoint.additional_addresses,
        |sink, additional| decode_address(sink, "address", additional, seen),
    );
    let details = EndpointDetails {
        hostname: endpoint.hostname.to_owned(),
        additional_addresses,
        metadata: proto.metadata.lb,
        socket_labels: Some(proto.metadata.socket_labels)
            .filter(|labels| !labels.is_empty())
            .map(|labels| seen.labels(labels)),
    };
    let endpoint = Endpoint {
        weight,
        health,
        ..Endpoint::new(address)
    };
    Some(endpoint.with_details(details))
}

/// An address in field `name`.
fn decode_address(
    sink: &mut Sink,
    name: &str,
    proto: Option<SocketAddress<'_>>,
    seen: &mut Seen,
) -> Option<SocketAddr> {
    usable_address(proto, seen).map_or_else(|wrong| sink.field(name, |sink| wrong.tell(sink)), Some)
}

fn usable_address(
    proto: Option<SocketAddress<'_>>,
    seen: &mut Seen,
) -> Result<SocketAddr, WrongAddress> {
    let (ip, port) = ip_and_port(proto.map(|socket| (socket.address, socket.port_value)))?;
    let address = SocketAddr::new(ip, port);
    if port == 0 {
        return Err(WrongAddress::new(PORT, "must not be 0"));
    }
    if !seen.is_new(address) {
        let reason = format!("{address} is listed twice");
        return Err(WrongAddress::new("", reason));
    }
    Ok(address)
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
