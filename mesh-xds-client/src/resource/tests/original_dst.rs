//! Clusters whose requests name their addresses.

use envoy_types::pb::{
    envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig,
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use mesh_core::config::OriginalDst;

use super::*;

const ORIGINAL_DST: i32 = 4;

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
fn addresses_that_requests_name() {
    let read = |resource| match decode(Kind::Cluster, resource).unwrap() {
        Config::Cluster(spec) => match &spec.source {
            ClusterSource::OriginalDst(config) => config.clone(),
            other => panic!("{other:?}"),
        },
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
