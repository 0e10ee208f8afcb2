//! Clusters of hosts that are looked up, and how often.
//!
//! Stage 3. LOGICAL_DNS and STRICT_DNS in the cluster's own fields, and Envoy's extension
//! `envoy.clusters.dns` with the same fields of its own. Deviations from Envoy: without a
//! `dns_refresh_rate` the records' time to live says when to look again, not five seconds; nobody is asked
//! more often than once a second; `AUTO` takes the addresses of both families, as gRPC does, not those of
//! IPv4 where there are none of IPv6 alone.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster as ClusterProto, cluster::DnsLookupFamily},
            core::v3::{address::Address, socket_address::PortSpecifier},
            endpoint::v3::lb_endpoint::HostIdentifier,
        },
        extensions::clusters::dns::v3::DnsCluster,
    },
    google::protobuf::{Any, Duration as DurationProto},
};
pub use mesh_core::config::DnsHost;

use super::{
    path::Sink,
    report::report,
    value::{duration, parse},
};

/// Most names of hosts in one cluster.
const HOSTS_MAX: usize = 1024;

/// The longest pause after failures is this many times the first, where none is given (Envoy
/// `RefreshRate.max_interval`).
const FAILURE_GROWTH: u32 = 10;

/// Hosts to look up, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSource {
    /// In order, each once.
    pub hosts: Vec<DnsHost>,
    /// How they are looked up.
    pub lookup: DnsLookup,
}

/// How the names of a cluster are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsLookup {
    /// From one answer to the next question; `None` is the records' time to live. Default none.
    pub refresh_rate: Option<Duration>,
    /// The time to live holds beside a [`refresh_rate`](Self::refresh_rate), which is then for records
    /// without one. Default `false`.
    pub respects_ttl: bool,
    /// The time to live is taken for so much at least. Default 1 s.
    pub min_refresh_rate: Option<Duration>,
    /// The first and the longest pause after failures. Default one that grows from 1 s to 2 min.
    pub failure: Option<(Duration, Duration)>,
    /// Up to so much is added to each pause. Default none.
    pub jitter: Duration,
    /// Which addresses are wanted.
    pub family: DnsFamily,
}

/// Which addresses of a host are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DnsFamily {
    /// All.
    #[default]
    All,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4, or IPv6 where there is none.
    PreferV4,
}

/// A cluster with its settings in its own fields.
pub(super) fn of_cluster(
    sink: &mut Sink,
    proto: &ClusterProto,
    is_logical: bool,
) -> Option<DnsSource> {
    let failure = proto.dns_failure_refresh_rate.as_ref();
    let lookup = lookup(
        sink,
        &Fields {
            refresh_rate: proto.dns_refresh_rate.as_ref(),
            failure: failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
            respects_ttl: proto.respect_dns_ttl,
            min_refresh_rate: None,
            jitter: proto.dns_jitter.as_ref(),
            family: proto.dns_lookup_family,
        },
    );
    let hosts = hosts(sink, proto, is_logical);
    Some(DnsSource {
        hosts: hosts?,
        lookup: lookup?,
    })
}

/// A cluster with the extension, which goes before the cluster's own fields.
pub(super) fn typed(sink: &mut Sink, proto: &ClusterProto, any: &Any) -> Option<DnsSource> {
    report!(
        sink,
        proto,
        [
            dns_failure_refresh_rate,
            dns_jitter,
            dns_lookup_family,
            dns_refresh_rate,
            respect_dns_ttl
        ]
    );
    let (lookup, is_logical) = sink.field("cluster_type.typed_config", |sink| {
        let proto: DnsCluster = parse(sink, any)?;
        report!(sink, proto, [typed_dns_resolver_config]);
        let failure = proto.dns_failure_refresh_rate.as_ref();
        // `UNSPECIFIED` is before those that a cluster's own field has.
        let family = match proto.dns_lookup_family {
            0 => DnsLookupFamily::Auto as i32,
            other => other - 1,
        };
        let lookup = lookup(
            sink,
            &Fields {
                refresh_rate: proto.dns_refresh_rate.as_ref(),
                failure: failure
                    .map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
                respects_ttl: proto.respect_dns_ttl,
                min_refresh_rate: proto.dns_min_refresh_rate.as_ref(),
                jitter: proto.dns_jitter.as_ref(),
                family,
            },
        )?;
        Some((lookup, proto.all_addresses_in_single_endpoint))
    })?;
    let hosts = hosts(sink, proto, is_logical)?;
    Some(DnsSource { hosts, lookup })
}

/// What both forms say.
struct Fields<'p> {
    refresh_rate: Option<&'p DurationProto>,
    failure: Option<(Option<&'p DurationProto>, Option<&'p DurationProto>)>,
    respects_ttl: bool,
    min_refresh_rate: Option<&'p DurationProto>,
    jitter: Option<&'p DurationProto>,
    family: i32,
}

fn lookup(sink: &mut Sink, fields: &Fields<'_>) -> Option<DnsLookup> {
    let refresh_rate = positive(sink, "dns_refresh_rate", fields.refresh_rate)?;
    let min_refresh_rate = positive(sink, "dns_min_refresh_rate", fields.min_refresh_rate)?;
    let failure = match fields.failure {
        None => None,
        Some((base, max)) => Some(sink.field("dns_failure_refresh_rate", |sink| {
            let Some(base) = positive(sink, "base_interval", base)? else {
                return sink.error_at("base_interval", "is missing");
            };
            let max = positive(sink, "max_interval", max)?;
            let max = max.unwrap_or_else(|| base.saturating_mul(FAILURE_GROWTH));
            match max < base {
                true => sink.error_at("max_interval", "must not be less than base_interval"),
                false => Some((base, max)),
            }
        })?),
    };
    let jitter = duration(sink, "dns_jitter", fields.jitter).unwrap_or_default();
    let family = match DnsLookupFamily::try_from(fields.family) {
        Ok(DnsLookupFamily::Auto | DnsLookupFamily::All) => DnsFamily::All,
        Ok(DnsLookupFamily::V4Only) => DnsFamily::V4,
        Ok(DnsLookupFamily::V6Only) => DnsFamily::V6,
        Ok(DnsLookupFamily::V4Preferred) => DnsFamily::PreferV4,
        Err(_) => {
            let reason = "must be AUTO, ALL, V4_ONLY, V6_ONLY or V4_PREFERRED";
            return sink.error_at("dns_lookup_family", reason);
        }
    };
    Some(DnsLookup {
        refresh_rate,
        respects_ttl: fields.respects_ttl,
        min_refresh_rate,
        failure,
        jitter,
        family,
    })
}

/// A duration of more than zero, if there is one. The outer `None` is an error.
fn positive(
    sink: &mut Sink,
    name: &str,
    proto: Option<&DurationProto>,
) -> Option<Option<Duration>> {
    match proto {
        None => Some(None),
        Some(_) => match duration(sink, name, proto)? {
            Duration::ZERO => sink.error_at(name, "must not be zero"),
            value => Some(Some(value)),
        },
    }
}

/// The hosts; a logical cluster has one (gRFC A37).
fn hosts(sink: &mut Sink, proto: &ClusterProto, is_logical: bool) -> Option<Vec<DnsHost>> {
    let Some(assignment) = &proto.load_assignment else {
        return sink.error_at("load_assignment", "is missing, and names the host");
    };
    let hosts = sink.field("load_assignment", |sink| {
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
    })?;
    if is_logical && hosts.len() != 1 {
        let reason = format!("a LOGICAL_DNS cluster has one host, not {}", hosts.len());
        return sink.error_at("load_assignment", reason);
    }
    Some(hosts)
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
