//! Where a cluster's endpoints come from.
//!
//! Stage 3. EDS (gRFC A27), DNS names and other clusters in order (gRFC A37, A75).

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::cluster::v3::{
        Cluster as ClusterProto,
        cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType},
    },
    extensions::clusters::{aggregate::v3::ClusterConfig as Aggregate, dns::v3::DnsCluster},
};
use mesh_core::{ClusterName, EndpointsName, config};

use super::{
    canonical,
    dns::{self, DnsSource},
    path::Sink,
    report::report,
    value::{is, parse, same_stream},
};

/// Most clusters that one aggregate names.
const CHILDREN_MAX: usize = 128;

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
    Dns(DnsSource),
    /// Other clusters, the first one that has endpoints first.
    Aggregate(Vec<ClusterName>),
}

pub(super) fn decode(sink: &mut Sink, proto: &ClusterProto) -> Option<ClusterSource> {
    match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let config = custom.typed_config.as_ref();
            match config.filter(|any| is::<DnsCluster>(any)) {
                Some(any) => dns::typed(sink, proto, any).map(ClusterSource::Dns),
                None => sink.field("cluster_type", |sink| aggregate(sink, custom)),
            }
        }
        Some(ClusterDiscoveryType::Type(value)) => match DiscoveryType::try_from(*value) {
            Ok(DiscoveryType::Eds) => eds(sink, proto),
            Ok(DiscoveryType::LogicalDns) => {
                dns::of_cluster(sink, proto, true).map(ClusterSource::Dns)
            }
            Ok(DiscoveryType::StrictDns) => {
                dns::of_cluster(sink, proto, false).map(ClusterSource::Dns)
            }
            Ok(other) => unsupported(sink, other.as_str_name()),
            Err(_) => unsupported(sink, &value.to_string()),
        },
        None => unsupported(sink, "STATIC"),
    }
}

fn unsupported<T>(sink: &mut Sink, name: &str) -> Option<T> {
    let known = "EDS, LOGICAL_DNS, STRICT_DNS and aggregate clusters";
    sink.error_at(
        "type",
        format!("{name} is not supported; supported are {known}"),
    )
}

fn eds(sink: &mut Sink, proto: &ClusterProto) -> Option<ClusterSource> {
    report!(
        sink,
        proto,
        [
            dns_failure_refresh_rate,
            dns_jitter,
            dns_lookup_family,
            dns_refresh_rate,
            load_assignment,
            respect_dns_ttl
        ]
    );
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
