//! Where a cluster's endpoints come from.
//!
//! Stage 3. EDS (gRFC A27), DNS names and other clusters in order (gRFC A37, A75). Addresses of DNS
//! names are looked up again by their time to live, whatever the cluster says about refresh rates.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster as ClusterProto,
            cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType, LbConfig, LbPolicy},
        },
        core::v3::{address::Address, socket_address::PortSpecifier},
        endpoint::v3::lb_endpoint::HostIdentifier,
    },
    extensions::clusters::aggregate::v3::ClusterConfig as Aggregate,
};
pub use mesh_core::config::DnsHost;
use mesh_core::{
    ClusterName, EndpointsName,
    config::{self, CLEANUP_INTERVAL_DEFAULT, ORIGINAL_DST_HEADER, OriginalDst},
};

use super::{
    canonical,
    path::Sink,
    report::report,
    value::{duration, is, parse, same_stream},
};

/// Most clusters that one aggregate names.
const CHILDREN_MAX: usize = 128;

/// Most names of hosts in one cluster.
const HOSTS_MAX: usize = 1024;

/// A cluster resource: its policy, and where its endpoints come from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterSpec {
    /// Its policy. Its `discovery` is that of `source` for EDS, and the cluster's own name else.
    pub config: Arc<config::Cluster>,
    /// Where its endpoints come from.
    pub source: ClusterSource,
    /// Whether the control plane wants to know how many requests went where.
    pub load_reports: Option<LoadReports>,
}

/// Where a cluster's load is reported to, and what else of it (gRFC A27, A85).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReports {
    /// Address of the server; `None` is the one that sent the cluster.
    pub server: Option<Arc<str>>,
    /// Metrics of backends, by the names of gRFC A85. Default none.
    pub metrics: Vec<String>,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterSource {
    /// The control plane, by this name.
    Eds(EndpointsName),
    /// Hosts to look up; all are used.
    Dns(Vec<DnsHost>),
    /// Other clusters, the first one that has endpoints first.
    Aggregate(Vec<ClusterName>),
    /// The requests.
    OriginalDst(OriginalDst),
}

pub(super) fn decode(sink: &mut Sink, proto: &ClusterProto) -> Option<ClusterSource> {
    match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            sink.field("cluster_type", |sink| aggregate(sink, custom))
        }
        Some(ClusterDiscoveryType::Type(value)) => match DiscoveryType::try_from(*value) {
            Ok(DiscoveryType::Eds) => eds(sink, proto),
            Ok(DiscoveryType::LogicalDns) => {
                let hosts = dns(sink, proto)?;
                if hosts.len() != 1 {
                    // gRFC A37.
                    let reason = format!("a LOGICAL_DNS cluster has one host, not {}", hosts.len());
                    return sink.error_at("load_assignment", reason);
                }
                Some(ClusterSource::Dns(hosts))
            }
            Ok(DiscoveryType::StrictDns) => dns(sink, proto).map(ClusterSource::Dns),
            Ok(DiscoveryType::OriginalDst) => {
                original_dst(sink, proto).map(ClusterSource::OriginalDst)
            }
            Ok(other) => unsupported(sink, other.as_str_name()),
            Err(_) => unsupported(sink, &value.to_string()),
        },
        None => unsupported(sink, "STATIC"),
    }
}

fn unsupported<T>(sink: &mut Sink, name: &str) -> Option<T> {
    let known = "EDS, LOGICAL_DNS, STRICT_DNS, ORIGINAL_DST and aggregate clusters";
    sink.error_at(
        "type",
        format!("{name} is not supported; supported are {known}"),
    )
}

fn eds(sink: &mut Sink, proto: &ClusterProto) -> Option<ClusterSource> {
    report!(sink, proto, [load_assignment]);
    let eds = proto.eds_cluster_config.as_ref();
    same_stream(
        sink,
        "eds_cluster_config.eds_config",
        eds.and_then(|eds| eds.eds_config.as_ref()),
    );
    let service_name = eds.map_or("", |eds| &eds.service_name);
    let name = match service_name {
        "" if proto.name.starts_with("xdstp:") => {
            return sink.error_at(
                "eds_cluster_config.service_name",
                "must be set for a cluster with an xdstp: name",
            );
        }
        "" => &proto.name,
        name => name,
    };
    Some(ClusterSource::Eds(canonical(name.to_owned()).into()))
}

fn aggregate(sink: &mut Sink, custom: &CustomClusterType) -> Option<ClusterSource> {
    let config = custom.typed_config.as_ref();
    let Some(any) = config.filter(|any| is::<Aggregate>(any)) else {
        return sink.error(format!("{:?} is not supported", custom.name));
    };
    sink.field("typed_config", |sink| {
        let proto: Aggregate = parse(sink, any)?;
        let count = proto.clusters.len();
        if count == 0 || count > CHILDREN_MAX {
            let reason = format!("must name 1 to {CHILDREN_MAX} clusters, not {count}");
            return sink.error_at("clusters", reason);
        }
        let mut children: Vec<ClusterName> = Vec::new();
        for name in proto.clusters {
            let name: ClusterName = canonical(name).into();
            // The second time it would only be tried after itself (gRFC A75).
            if !children.contains(&name) {
                children.push(name);
            }
        }
        Some(ClusterSource::Aggregate(children))
    })
}

fn dns(sink: &mut Sink, proto: &ClusterProto) -> Option<Vec<DnsHost>> {
    let Some(assignment) = &proto.load_assignment else {
        return sink.error_at("load_assignment", "is missing, and names the host");
    };
    sink.field("load_assignment", |sink| {
        let localities = &assignment.endpoints;
        if localities.iter().any(|locality| locality.priority != 0) {
            return sink.error_at("endpoints", "priorities are not supported with DNS");
        }
        let endpoints = localities
            .iter()
            .flat_map(|locality| &locality.lb_endpoints);
        let mut hosts = sink.each("endpoints", endpoints, |sink, endpoint| {
            match &endpoint.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => {
                    let address = endpoint.address.as_ref();
                    host(sink, address.and_then(|address| address.address.as_ref()))
                }
                _ => sink.error("must hold an address"),
            }
        });
        hosts.sort_unstable();
        hosts.dedup();
        if hosts.is_empty() || hosts.len() > HOSTS_MAX {
            let reason = format!("must hold 1 to {HOSTS_MAX} hosts, not {}", hosts.len());
            return sink.error_at("endpoints", reason);
        }
        Some(hosts)
    })
}

/// What the requests say, which nobody else may beside them (Envoy).
fn original_dst(sink: &mut Sink, proto: &ClusterProto) -> Option<OriginalDst> {
    if proto.lb_policy() != LbPolicy::ClusterProvided {
        let reason = "must be CLUSTER_PROVIDED for a cluster of type ORIGINAL_DST";
        return sink.error_at("lb_policy", reason);
    }
    sink.refuse(
        "load_assignment",
        proto.load_assignment.is_some(),
        "must not be set for a cluster of type ORIGINAL_DST",
    );
    let interval = proto.cleanup_interval.as_ref();
    let cleanup_interval = match interval {
        None => CLEANUP_INTERVAL_DEFAULT,
        Some(_) => duration(sink, "cleanup_interval", interval)?,
    };
    if cleanup_interval.is_zero() {
        return sink.error_at("cleanup_interval", "must not be zero");
    }
    let mut config = OriginalDst {
        cleanup_interval,
        ..OriginalDst::default()
    };
    let Some(LbConfig::OriginalDstLbConfig(proto)) = &proto.lb_config else {
        return Some(config);
    };
    sink.field("original_dst_lb_config", |sink| {
        report!(sink, proto, [metadata_key]);
        config.port_override = match proto.upstream_port_override {
            None => None,
            Some(port) => match u16::try_from(port.value) {
                Ok(port) if port != 0 => Some(port),
                _ => return sink.error_at("upstream_port_override", "must be 1 to 65535"),
            },
        };
        let name = match proto.http_header_name.as_str() {
            _ if !proto.use_http_header => return Some(config),
            "" => ORIGINAL_DST_HEADER,
            name => match name.parse() {
                Ok(name) => name,
                Err(_) => return sink.error_at("http_header_name", "is no header name"),
            },
        };
        config.http_header = Some(name);
        Some(config)
    })
}

fn host(sink: &mut Sink, address: Option<&Address>) -> Option<DnsHost> {
    let Some(Address::SocketAddress(address)) = address else {
        return sink.error("must be a socket_address");
    };
    if !address.resolver_name.is_empty() {
        return sink.error_at("resolver_name", "is not supported");
    }
    let port = match &address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        _ => None,
    };
    match port {
        Some(port) if port != 0 && !address.address.is_empty() => Some(DnsHost {
            name: address.address.clone(),
            port,
        }),
        _ => sink.error("must have an address and a port of 1 to 65535"),
    }
}
