//! Clusters of hosts and of clusters.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::{
            ClusterDiscoveryType, CustomClusterType, LbPolicy as LbPolicyProto,
        },
        endpoint::v3::{Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
    },
    extensions::clusters::aggregate::v3::ClusterConfig,
};

use super::*;

const STRICT_DNS: i32 = 1;
const LOGICAL_DNS: i32 = 2;

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

#[test]
pub(super) fn aggregates() {
    let got = source(aggregate(&["a", "b", "a"]));
    let children = ["a", "b"].map(Into::into).to_vec();
    assert_eq!(got, ClusterSource::Aggregate(children));
    // As Envoy has it, which takes aggregates no other way.
    let provided = |resource: Any| {
        let mut cluster = ClusterProto::decode(&resource.value[..]).unwrap();
        cluster.lb_policy = LbPolicyProto::ClusterProvided as i32;
        any(&cluster)
    };
    let expected = ClusterSource::Aggregate(vec!["a".into()]);
    assert_eq!(source(provided(aggregate(&["a"]))), expected);
    let of_hosts = provided(hosts(STRICT_DNS, &[("a.example", 1)]));
    refused(
        Kind::Cluster,
        of_hosts,
        "lb_policy: CLUSTER_PROVIDED is not",
    );
    refused(
        Kind::Cluster,
        aggregate(&[]),
        "cluster_type.typed_config.clusters: must name 1 to 128",
    );
}
