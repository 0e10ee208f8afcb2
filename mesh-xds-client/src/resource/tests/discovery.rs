//! Clusters of hosts and of clusters.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::{ClusterDiscoveryType, CustomClusterType},
        endpoint::v3::{Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
    },
    extensions::clusters::aggregate::v3::ClusterConfig,
};

use super::*;

const STRICT_DNS: i32 = 1;
const LOGICAL_DNS: i32 = 2;

fn hosts(kind: i32, hosts: &[(&str, u32)]) -> Any {
    any(&hosts_of(kind, hosts))
}

pub(super) fn hosts_of(kind: i32, hosts: &[(&str, u32)]) -> ClusterProto {
    let endpoint = |(host, port): &(&str, u32)| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(host, *port),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind)),
        load_assignment: Some(EndpointsProto {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: hosts.iter().map(endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..EndpointsProto::default()
        }),
        ..ClusterProto::default()
    }
}

fn aggregate(clusters: &[&str]) -> Any {
    any(&ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
            name: "envoy.clusters.aggregate".into(),
            typed_config: Some(any(&ClusterConfig {
                clusters: clusters.iter().map(|name| (*name).to_owned()).collect(),
            })),
        })),
        ..ClusterProto::default()
    })
}

fn source(resource: Any) -> ClusterSource {
    match decode(Kind::Cluster, resource).unwrap() {
        Config::Cluster(spec) => spec.source.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
pub(super) fn dns_clusters() {
    let host = |name: &str, port| DnsHost {
        name: name.into(),
        port,
    };
    let one = source(hosts(LOGICAL_DNS, &[("a.example", 80)]));
    let plain = |hosts| {
        ClusterSource::Dns(DnsSource {
            hosts,
            lookup: DnsLookup::default(),
        })
    };
    assert_eq!(one, plain(vec![host("a.example", 80)]));
    let many = source(hosts(STRICT_DNS, &[("b", 1), ("a", 1), ("b", 1)]));
    assert_eq!(many, plain(vec![host("a", 1), host("b", 1)]));
    for (kind, list, expected) in [
        (
            LOGICAL_DNS,
            &[][..],
            "load_assignment.endpoints: must hold 1 to",
        ),
        (
            LOGICAL_DNS,
            &[("a", 1), ("b", 1)],
            "load_assignment: a LOGICAL_DNS cluster has one host",
        ),
        (
            STRICT_DNS,
            &[("a", 0)],
            "load_assignment.endpoints[0]: must have an address and a port",
        ),
    ] {
        let errors = decode(Kind::Cluster, hosts(kind, list)).unwrap_err();
        assert!(errors[0].starts_with(expected), "{errors:?}");
    }
}

fn seconds(seconds: i64) -> Option<envoy_types::pb::google::protobuf::Duration> {
    Some(envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 })
}

#[test]
fn how_hosts_are_looked_up_is_said_by_the_cluster_or_by_the_extension() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        DnsLookupFamily, RefreshRate as ClusterRate,
    };
    use envoy_types::pb::envoy::extensions::clusters::{
        common::dns::v3::DnsLookupFamily as TypedFamily,
        dns::v3::{DnsCluster, dns_cluster::RefreshRate},
    };
    let host = &[("a.example", 80)];
    let expected = |family| DnsLookup {
        refresh_rate: Some(Duration::from_secs(7)),
        respects_ttl: true,
        min_refresh_rate: None,
        failure: Some((Duration::from_secs(2), Duration::from_secs(20))),
        jitter: Duration::from_secs(1),
        family,
    };
    let lookup = |proto: &ClusterProto| match source(any(proto)) {
        ClusterSource::Dns(source) => source.lookup,
        other => panic!("{other:?}"),
    };
    for (own, typed, family) in [
        (
            DnsLookupFamily::Auto,
            TypedFamily::Unspecified,
            DnsFamily::All,
        ),
        (DnsLookupFamily::Auto, TypedFamily::Auto, DnsFamily::All),
        (DnsLookupFamily::All, TypedFamily::All, DnsFamily::All),
        (DnsLookupFamily::V4Only, TypedFamily::V4Only, DnsFamily::V4),
        (DnsLookupFamily::V6Only, TypedFamily::V6Only, DnsFamily::V6),
        (
            DnsLookupFamily::V4Preferred,
            TypedFamily::V4Preferred,
            DnsFamily::PreferV4,
        ),
    ] {
        let cluster = ClusterProto {
            dns_refresh_rate: seconds(7),
            dns_failure_refresh_rate: Some(ClusterRate {
                base_interval: seconds(2),
                max_interval: None,
            }),
            respect_dns_ttl: true,
            dns_jitter: seconds(1),
            dns_lookup_family: own as i32,
            ..hosts_of(STRICT_DNS, host)
        };
        assert_eq!(lookup(&cluster), expected(family), "{own:?}");
        let extension = DnsCluster {
            dns_refresh_rate: seconds(7),
            dns_failure_refresh_rate: Some(RefreshRate {
                base_interval: seconds(2),
                max_interval: seconds(20),
            }),
            respect_dns_ttl: true,
            dns_jitter: seconds(1),
            dns_lookup_family: typed as i32,
            all_addresses_in_single_endpoint: true,
            ..DnsCluster::default()
        };
        let custom = |hosts: &[(&str, u32)]| ClusterProto {
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "envoy.clusters.dns".into(),
                typed_config: Some(any(&extension)),
            })),
            // The extension goes before it.
            dns_refresh_rate: seconds(99),
            ..hosts_of(STRICT_DNS, hosts)
        };
        assert_eq!(lookup(&custom(host)), expected(family), "{typed:?}");
        let two = any(&custom(&[("a", 1), ("b", 1)]));
        refused(
            Kind::Cluster,
            two,
            "load_assignment: a LOGICAL_DNS cluster has one host",
        );
    }
}

#[test]
fn a_rate_of_lookups_that_nobody_can_keep_is_refused() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::RefreshRate;
    let base = || hosts_of(STRICT_DNS, &[("a.example", 80)]);
    let failure = |base_interval, max_interval| ClusterProto {
        dns_failure_refresh_rate: Some(RefreshRate {
            base_interval,
            max_interval,
        }),
        ..base()
    };
    for (proto, expected) in [
        (
            ClusterProto {
                dns_refresh_rate: seconds(0),
                ..base()
            },
            "dns_refresh_rate: must not be zero",
        ),
        (
            failure(None, None),
            "dns_failure_refresh_rate.base_interval: is missing",
        ),
        (
            failure(seconds(2), seconds(1)),
            "dns_failure_refresh_rate.max_interval: must not be less",
        ),
        (
            ClusterProto {
                dns_lookup_family: 9,
                ..base()
            },
            "dns_lookup_family: must be AUTO",
        ),
    ] {
        refused(Kind::Cluster, any(&proto), expected);
    }
}

#[test]
pub(super) fn aggregates() {
    let got = source(aggregate(&["a", "b", "a"]));
    let children = ["a", "b"].map(Into::into).to_vec();
    assert_eq!(got, ClusterSource::Aggregate(children));
    refused(
        Kind::Cluster,
        aggregate(&[]),
        "cluster_type.typed_config.clusters: must name 1 to 128",
    );
}
