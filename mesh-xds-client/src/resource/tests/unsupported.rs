//! Ways to fetch parts of a resource by themselves that are not spoken: refused by the field's path,
//! never taken for nothing.

use envoy_types::pb::envoy::config::{
    endpoint::v3::{
        LedsClusterLocalityConfig, LocalityLbEndpoints, locality_lb_endpoints::LbConfig,
    },
    route::v3::Vhds,
};

use super::*;

#[test]
fn virtual_hosts_on_demand_are_refused() {
    let routes = any(&RouteProto {
        name: "r".into(),
        vhds: Some(Vhds::default()),
        ..RouteProto::default()
    });
    refused(Kind::Route, routes, "vhds: is not supported");
}

/// gRFC A95: without its endpoints a locality would silently be empty.
#[test]
fn endpoints_by_reference_are_refused() {
    let locality = LocalityLbEndpoints {
        load_balancing_weight: uint32(1),
        lb_config: Some(LbConfig::LedsClusterLocalityConfig(
            LedsClusterLocalityConfig::default(),
        )),
        ..LocalityLbEndpoints::default()
    };
    let endpoints = any(&EndpointsProto {
        cluster_name: "c".into(),
        endpoints: vec![locality],
        ..EndpointsProto::default()
    });
    let path = "endpoints[0].leds_cluster_locality_config: LEDS is not supported";
    refused(Kind::Endpoints, endpoints, path);
}

#[test]
fn only_the_last_segment_of_a_new_name_makes_it_a_glob() {
    for (name, is_glob) in [
        ("xdstp://a/envoy.config.cluster.v3.Cluster/foo/*", true),
        ("xdstp://a/envoy.config.cluster.v3.Cluster/*?x=1", true),
        ("xdstp:///t/*#f", true),
        ("xdstp://a/t/foo*", false),
        ("xdstp://a/t/*/foo", false),
        ("outbound/*", false),
        ("*", false),
    ] {
        assert_eq!(is_glob_collection(name), is_glob, "{name}");
    }
}
