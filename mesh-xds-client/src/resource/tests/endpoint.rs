//! Endpoints.

use envoy_types::pb::envoy::config::{
    core::v3::Locality,
    endpoint::v3::{
        Endpoint, LbEndpoint, LocalityLbEndpoints, endpoint::AdditionalAddress,
        lb_endpoint::HostIdentifier,
    },
};
use mesh_core::config::{ClusterEndpoints, HealthStatus};

use super::*;

fn endpoint(port: u32) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address("10.0.0.1", port),
            hostname: "host".into(),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

fn locality(zone: &str, priority: u32, endpoints: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality {
            zone: zone.into(),
            ..Locality::default()
        }),
        lb_endpoints: endpoints,
        load_balancing_weight: uint32(3),
        priority,
        ..LocalityLbEndpoints::default()
    }
}

fn assignment(endpoints: Vec<LocalityLbEndpoints>) -> Any {
    any(&EndpointsProto {
        cluster_name: "c".into(),
        endpoints,
        ..EndpointsProto::default()
    })
}

fn accepted(endpoints: Vec<LocalityLbEndpoints>) -> Arc<ClusterEndpoints> {
    match decode(Kind::Endpoints, assignment(endpoints)).unwrap() {
        Config::Endpoints(endpoints) => endpoints,
        other => panic!("{other:?}"),
    }
}

#[test]
pub(super) fn weights_health_and_priorities_are_taken() {
    let mut weighted = endpoint(1);
    weighted.load_balancing_weight = uint32(7);
    weighted.health_status = 3;
    let got = accepted(vec![
        locality("a", 0, vec![weighted, endpoint(2)]),
        locality("a", 1, vec![endpoint(3)]),
    ]);
    let [first, second] = &got.localities[..] else {
        panic!("{got:?}")
    };
    assert_eq!(
        (first.weight, first.priority, &*first.locality.zone),
        (3, 0, "a")
    );
    assert_eq!(
        (first.endpoints[0].weight, first.endpoints[1].weight),
        (7, 1)
    );
    assert_eq!(first.endpoints[0].health, HealthStatus::Draining);
    assert_eq!(first.endpoints[0].details().hostname, "host");
    assert_eq!(second.priority, 1);
    assert!(
        accepted(vec![]).localities.is_empty(),
        "empty means: fail at once"
    );
}

#[test]
pub(super) fn localities_without_weight_are_left_out() {
    let mut weightless = locality("b", 5, vec![endpoint(2)]);
    weightless.load_balancing_weight = None;
    let got = accepted(vec![locality("a", 0, vec![endpoint(1)]), weightless]);
    assert_eq!(got.localities.len(), 1);
}

#[test]
pub(super) fn assignments_that_contradict_themselves_are_refused() {
    let mut heavy = endpoint(2);
    heavy.load_balancing_weight = uint32(u32::MAX);
    let mut heavy_locality = locality("b", 0, vec![]);
    heavy_locality.load_balancing_weight = uint32(u32::MAX);
    let empty = |zone, priority| locality(zone, priority, vec![]);
    let full = |zone| locality(zone, 0, vec![endpoint(1)]);
    for (localities, expected) in [
        (
            vec![empty("a", 0), empty("a", 2)],
            "endpoints: priorities have a gap: 1 is missing",
        ),
        (vec![empty("a", 1)], "endpoints: priorities have a gap"),
        (
            vec![empty("a", 0), empty("a", 0)],
            "endpoints: locality \"\"/\"a\"/\"\" is listed twice in priority 0",
        ),
        (
            vec![full("a"), full("b")],
            "endpoints[1].lb_endpoints[0].endpoint.address: 10.0.0.1:1 is listed twice",
        ),
        (
            vec![locality("a", 0, vec![endpoint(1), heavy])],
            "endpoints[0].lb_endpoints: the weights sum up",
        ),
        (
            vec![empty("a", 0), heavy_locality],
            "endpoints: the weights of priority 0 sum up",
        ),
    ] {
        refused(Kind::Endpoints, assignment(localities), expected);
    }
}

#[test]
pub(super) fn endpoints_that_cannot_be_used_are_refused() {
    let check = |change: &dyn Fn(&mut LbEndpoint), expected: &str| {
        let mut changed = endpoint(1);
        change(&mut changed);
        let resource = assignment(vec![locality("a", 0, vec![changed])]);
        let expected = format!("endpoints[0].lb_endpoints[0].{expected}");
        refused(Kind::Endpoints, resource, &expected);
    };
    let at = |address: Option<Address>, expected: &str| {
        let host = HostIdentifier::Endpoint(Endpoint {
            address,
            ..Endpoint::default()
        });
        let expected = format!("endpoint.address{expected}");
        check(
            &|endpoint| endpoint.host_identifier = Some(host.clone()),
            &expected,
        );
    };
    check(
        &|endpoint| endpoint.load_balancing_weight = uint32(0),
        "load_balancing_weight: must not be 0",
    );
    check(
        &|endpoint| endpoint.health_status = 77,
        "health_status: 77 is not",
    );
    check(
        &|endpoint| endpoint.host_identifier = None,
        "endpoint: is missing",
    );
    let place = ".socket_address.address: \"example.com\" is not an IP";
    at(address("example.com", 1), place);
    at(
        address("10.0.0.1", 0),
        ".socket_address.port_value: must not be 0",
    );
    at(
        address("10.0.0.1", 65_536),
        ".socket_address.port_value: must be 0 to 65535",
    );
    at(None, ": must be a socket_address");
}

#[test]
fn an_endpoint_may_have_several_addresses_each_of_them_once() {
    let with = |additional: &[(&str, u32)]| {
        let mut endpoint = endpoint(1);
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier {
            let additional = additional.iter();
            endpoint.additional_addresses = additional
                .map(|(ip, port)| AdditionalAddress {
                    address: address(ip, *port),
                })
                .collect();
        }
        endpoint
    };
    let got = accepted(vec![locality(
        "a",
        0,
        vec![with(&[("::1", 2), ("10.0.0.2", 3)]), endpoint(4)],
    )]);
    let [first, second] = &got.localities[0].endpoints[..] else {
        panic!("{got:?}")
    };
    let expected = ["[::1]:2", "10.0.0.2:3"].map(|address| address.parse().unwrap());
    assert_eq!(first.details().additional_addresses, expected);
    assert!(second.details().additional_addresses.is_empty());
    let place = "endpoints[0].lb_endpoints[0].endpoint.additional_addresses[0].address";
    for ((ip, port), expected) in [
        (("10.0.0.1", 1), ": 10.0.0.1:1 is listed twice"),
        (("::1", 0), ".socket_address.port_value: must not be 0"),
        (
            ("a.example", 1),
            ".socket_address.address: \"a.example\" is not an IP",
        ),
    ] {
        let resource = assignment(vec![locality("a", 0, vec![with(&[(ip, port)])])]);
        refused(Kind::Endpoints, resource, &format!("{place}{expected}"));
    }
    // Nor may it be one of another endpoint's.
    let endpoints = vec![endpoint(5), with(&[("10.0.0.1", 5)])];
    let resource = assignment(vec![locality("a", 0, endpoints)]);
    let place = "endpoints[0].lb_endpoints[1].endpoint.additional_addresses[0].address";
    refused(
        Kind::Endpoints,
        resource,
        &format!("{place}: 10.0.0.1:5 is listed twice"),
    );
}
