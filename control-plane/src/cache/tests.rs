//! What is shared between worlds, and Envoy's one route configuration.

use std::collections::BTreeMap;

use prost::Message;

use super::*;
use crate::server::tests::{CLUSTER, GREETER, OTHER, OTHER_CLUSTER, client, world};

#[test]
fn what_did_not_change_is_taken_over_from_the_world_before() {
    let client = client(ClientClass::Rust);
    let trust = || TrustBundle {
        name: "ROOTCA".into(),
        roots: vec![],
    };
    let get = |world: &World, name| {
        world
            .resource(&client, ResourceType::Cluster, name)
            .unwrap()
    };
    let before = world(&format!("{GREETER}{OTHER}"));
    let held = (get(&before, CLUSTER), get(&before, OTHER_CLUSTER));
    let changed =
        world(&format!("{GREETER}{OTHER}").replace("HTTP}, {number: 81", "GRPC}, {number: 81"));
    let after = World::following(changed.compiled().clone(), trust(), &before);
    assert!(Arc::ptr_eq(&held.0, &get(&after, CLUSTER)));
    assert_ne!(held.1, get(&after, OTHER_CLUSTER));
}

#[test]
fn envoys_domains_are_unique_and_the_name_alone_is_the_default_port() {
    let (world, client) = (
        world(&format!("{GREETER}{OTHER}")),
        client(ClientClass::Envoy),
    );
    let routes = world
        .resource(&client, ResourceType::Route, "outbound")
        .unwrap();
    let routes =
        RouteConfiguration::decode(&Any::decode(&routes.any[..]).unwrap().value[..]).unwrap();
    let mut hosts = BTreeMap::new();
    for host in &routes.virtual_hosts {
        for domain in &host.domains {
            let other = hosts.insert(domain.as_str(), host.name.as_str());
            assert_eq!(other, None, "{domain} twice");
        }
    }
    let port_80 = "outbound|80||other.default.svc.cluster.local/0";
    assert_eq!(hosts["other.default"], port_80);
    assert_eq!(hosts["other:80"], port_80);
    assert_eq!(
        hosts["other.default:81"],
        "outbound|81||other.default.svc.cluster.local/0"
    );
    assert!(!hosts.contains_key("*"));
}

#[test]
fn another_release_has_other_versions() {
    let config = "a cluster";
    assert_eq!(hash_by("1.0.0", &config), hash_by("1.0.0", &config));
    assert_ne!(hash_by("1.0.0", &config), hash_by("1.0.1", &config));
    assert_eq!(hash(&config), hash_by(env!("CARGO_PKG_VERSION"), &config));
}

#[test]
fn a_release_without_a_balancer_gets_round_robin() {
    use envoy_types::pb::{
        envoy::config::cluster::v3::cluster::LbPolicy as Proto, google::protobuf::Any,
    };
    let rule = "---
kind: DestinationRule
metadata: {name: greeter}
spec: {host: greeter, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}
";
    let world = world(&format!("{GREETER}{rule}"));
    let given = |class, release| {
        let client = Client {
            release,
            ..client(class)
        };
        let found = world.resource(&client, ResourceType::Cluster, CLUSTER);
        let any = Any::decode(&*found.unwrap().any).unwrap();
        ProtoCluster::decode(&any.value[..]).unwrap().lb_policy()
    };
    for (class, release, expected) in [
        (ClientClass::GrpcJava, Some((1, 48)), Proto::LeastRequest),
        (ClientClass::GrpcJava, Some((1, 47)), Proto::RoundRobin),
        (ClientClass::GrpcJava, None, Proto::LeastRequest),
        (ClientClass::GrpcGo, None, Proto::RoundRobin),
        (ClientClass::Envoy, None, Proto::LeastRequest),
    ] {
        assert_eq!(given(class, release), expected, "{class} {release:?}");
    }
}
