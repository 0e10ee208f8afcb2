//! Clusters of hosts and of clusters.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::{
                ClusterDiscoveryType, CustomClusterType, LbConfig, LbPolicy, OriginalDstLbConfig,
            },
            endpoint::v3::{
                Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::clusters::aggregate::v3::ClusterConfig,
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use mesh_core::config::OriginalDst;

use super::*;

const STRICT_DNS: i32 = 1;
const LOGICAL_DNS: i32 = 2;
const ORIGINAL_DST: i32 = 4;

fn hosts(kind: i32, hosts: &[(&str, u32)]) -> Any {
    let endpoint = |(host, port): &(&str, u32)| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(host, *port),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    any(&ClusterProto {
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
    })
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
    assert_eq!(one, ClusterSource::Dns(vec![host("a.example", 80)]));
    let many = source(hosts(STRICT_DNS, &[("b", 1), ("a", 1), ("b", 1)]));
    assert_eq!(many, ClusterSource::Dns(vec![host("a", 1), host("b", 1)]));
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

fn passing(change: impl FnOnce(&mut ClusterProto)) -> Any {
    let mut cluster = ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(ORIGINAL_DST)),
        lb_policy: LbPolicy::ClusterProvided as i32,
        ..ClusterProto::default()
    };
    change(&mut cluster);
    any(&cluster)
}

fn with_header(use_http_header: bool, name: &str, port: Option<u32>) -> Any {
    passing(|cluster| {
        cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            use_http_header,
            http_header_name: name.to_owned(),
            upstream_port_override: port.map(|value| UInt32Value { value }),
            ..OriginalDstLbConfig::default()
        }));
    })
}

#[test]
pub(super) fn addresses_that_requests_name() {
    let read = |resource| match source(resource) {
        ClusterSource::OriginalDst(config) => config,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(passing(|_| {})), OriginalDst::default());
    let header = |name: &str| OriginalDst {
        http_header: Some(name.parse().unwrap()),
        ..OriginalDst::default()
    };
    assert_eq!(
        read(with_header(true, "", None)),
        header("x-envoy-original-dst-host")
    );
    assert_eq!(read(with_header(true, "x-to", None)), header("x-to"));
    // A name alone does not give the header a say.
    assert_eq!(
        read(with_header(false, "x-to", None)),
        OriginalDst::default()
    );
    let port = read(with_header(false, "", Some(15001)));
    assert_eq!(port.port_override, Some(15001));
    for (resource, expected) in [
        (
            with_header(true, "no header", None),
            "original_dst_lb_config.http_header_name: is no header name",
        ),
        (
            with_header(true, "", Some(0)),
            "original_dst_lb_config.upstream_port_override: must be 1 to 65535",
        ),
        (
            with_header(true, "", Some(65_536)),
            "original_dst_lb_config.upstream_port_override: must be 1 to 65535",
        ),
        (
            passing(|cluster| cluster.lb_policy = LbPolicy::RoundRobin as i32),
            "lb_policy: must be CLUSTER_PROVIDED",
        ),
        (
            passing(|cluster| cluster.load_assignment = Some(EndpointsProto::default())),
            "load_assignment: must not be set",
        ),
        (
            passing(|cluster| cluster.cleanup_interval = Some(DurationProto::default())),
            "cleanup_interval: must not be zero",
        ),
    ] {
        refused(Kind::Cluster, resource, expected);
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
