//! Clusters.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers as BreakersProto, LoadBalancingPolicy,
                circuit_breakers::{Thresholds, thresholds::RetryBudget as BudgetProto},
                cluster::{
                    ClusterDiscoveryType, CustomClusterType, EdsClusterConfig, LbConfig,
                    LbSubsetConfig, LeastRequestLbConfig, TransportSocketMatch,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, TypedExtensionConfig},
        },
        extensions::{
            load_balancing_policies::{
                least_request::v3::LeastRequest, ring_hash::v3::RingHash,
                round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_core::config::{
    CircuitBreakers, Cluster, CommonLbConfig, Discovery, HttpVersion, LbPolicy, RetryBudget,
};

use super::*;

fn proto() -> ClusterProto {
    ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            service_name: String::new(),
        }),
        ..ClusterProto::default()
    }
}

fn with(change: impl FnOnce(&mut ClusterProto)) -> Any {
    let mut cluster = proto();
    change(&mut cluster);
    any(&cluster)
}

#[track_caller]
fn accepted(resource: Any) -> Arc<Cluster> {
    match decode(Kind::Cluster, resource).unwrap() {
        Config::Cluster(cluster) => Arc::clone(&cluster.config),
        other => panic!("{other:?}"),
    }
}

fn policies(list: Vec<Any>) -> Option<LoadBalancingPolicy> {
    let policy = |any: Any| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(any),
        }),
    };
    Some(LoadBalancingPolicy {
        policies: list.into_iter().map(policy).collect(),
    })
}

#[test]
pub(super) fn defaults() {
    let expected = Cluster {
        common_lb_config: CommonLbConfig {
            locality_weighted: true,
            ..CommonLbConfig::default()
        },
        ..Cluster::new("c")
    };
    assert_eq!(*accepted(with(|_| {})), expected);
    let named = accepted(with(|c| {
        c.eds_cluster_config.as_mut().unwrap().service_name = "s".into();
    }));
    assert_eq!(named.discovery, Discovery::Eds("s".into()));
}

#[test]
pub(super) fn policies_are_taken_from_the_new_field_first() {
    let least = |choice_count: Option<u32>| {
        any(&LeastRequest {
            choice_count: choice_count.map(|value| UInt32Value { value }),
            ..LeastRequest::default()
        })
    };
    let locality = any(&WrrLocality {
        endpoint_picking_policy: policies(vec![least(None)]),
    });
    let ring = any(&RingHash::default());
    let foreign = Any {
        type_url: "type.googleapis.com/envoy.extensions.load_balancing_policies.x".into(),
        value: vec![],
    };
    for (policy, expected) in [
        (
            policies(vec![any(&RoundRobin::default())]),
            LbPolicy::RoundRobin,
        ),
        (
            policies(vec![foreign.clone(), least(Some(3))]),
            LbPolicy::least_request(3),
        ),
        (
            policies(vec![ring, least(Some(3))]),
            LbPolicy::RingHash(Default::default()),
        ),
        (policies(vec![least(Some(99))]), LbPolicy::least_request(10)),
        (policies(vec![locality]), LbPolicy::least_request(2)),
    ] {
        let cluster = accepted(with(|c| {
            c.load_balancing_policy = policy;
            // MAGLEV in the old field does not matter then.
            c.lb_policy = 5;
        }));
        assert_eq!(cluster.lb_policy, expected);
    }
    for (value, expected) in [
        (0, LbPolicy::RoundRobin),
        (1, LbPolicy::least_request(2)),
        (2, LbPolicy::RingHash(Default::default())),
        (3, LbPolicy::Random),
        (5, LbPolicy::Maglev { table_size: 65_537 }),
    ] {
        assert_eq!(accepted(with(|c| c.lb_policy = value)).lb_policy, expected);
    }
    let none = with(|c| c.load_balancing_policy = policies(vec![foreign]));
    refused(
        Kind::Cluster,
        none,
        "load_balancing_policy.policies: none of [\"envoy.extensions.load",
    );
    let one = with(|c| c.load_balancing_policy = policies(vec![least(Some(1))]));
    let path = "load_balancing_policy.policies[0].typed_extension_config.typed_config.choice_count";
    refused(Kind::Cluster, one, path);
}

#[test]
pub(super) fn limits() {
    let thresholds = |budget: Option<BudgetProto>| {
        Some(BreakersProto {
            thresholds: vec![
                Thresholds {
                    priority: 1,
                    max_requests: uint32(1),
                    ..Thresholds::default()
                },
                Thresholds {
                    max_requests: uint32(7),
                    retry_budget: budget,
                    ..Thresholds::default()
                },
            ],
            ..BreakersProto::default()
        })
    };
    let percent = |value| Some(Percent { value });
    let got = accepted(with(|c| c.circuit_breakers = thresholds(None))).circuit_breakers;
    assert_eq!(
        got,
        CircuitBreakers {
            max_requests: 7,
            ..CircuitBreakers::default()
        }
    );
    let budget = BudgetProto {
        budget_percent: percent(33.4),
        min_retry_concurrency: uint32(0),
        ..BudgetProto::default()
    };
    let got = accepted(with(|c| c.circuit_breakers = thresholds(Some(budget)))).circuit_breakers;
    assert_eq!(
        got.retry_budget,
        RetryBudget {
            percent: 33,
            min_retry_concurrency: 0
        }
    );
    let budget = BudgetProto {
        budget_percent: percent(101.0),
        ..BudgetProto::default()
    };
    refused(
        Kind::Cluster,
        with(|c| c.circuit_breakers = thresholds(Some(budget))),
        "circuit_breakers.thresholds[1].retry_budget.budget_percent: 101 is not 0 to 100",
    );
}

#[test]
pub(super) fn http_versions() {
    let options = |config: Option<ProtocolConfig>| {
        let options = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
                ExplicitHttpConfig {
                    protocol_config: config,
                },
            )),
            ..HttpProtocolOptions::default()
        };
        with(|c| {
            let key = HttpProtocolOptions::full_name();
            c.typed_extension_protocol_options
                .insert(key, any(&options));
        })
    };
    let h1 = ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default());
    let h2 = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
    let h3 = ProtocolConfig::Http3ProtocolOptions(Default::default());
    assert_eq!(accepted(options(Some(h1))).http_version, HttpVersion::Http1);
    assert_eq!(accepted(options(Some(h2))).http_version, HttpVersion::Http2);
    let old = accepted(with(|c| {
        c.http2_protocol_options = Some(Default::default())
    }));
    assert_eq!(old.http_version, HttpVersion::Http2);
    for (resource, path) in [
        (options(Some(h3)), ".http3_protocol_options"),
        (options(None), ""),
    ] {
        let key = HttpProtocolOptions::full_name();
        let place =
            format!("typed_extension_protocol_options[{key:?}].explicit_http_config{path}: ");
        refused(Kind::Cluster, resource, &place);
    }
}

#[test]
pub(super) fn what_would_change_traffic_is_refused() {
    for (resource, expected) in [
        (
            with(|c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(2))),
            "load_assignment: is missing, and names the host",
        ),
        (
            with(|c| c.cluster_discovery_type = None),
            "type: STATIC is not supported",
        ),
        (
            with(|c| {
                let custom = CustomClusterType::default();
                c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
            }),
            "cluster_type: ",
        ),
        (
            with(|c| c.eds_cluster_config = None),
            "eds_cluster_config.eds_config: must be ads",
        ),
        (
            with(|c| c.lb_policy = 6),
            "lb_policy: CLUSTER_PROVIDED is not supported",
        ),
        (with(|c| c.lb_policy = 99), "lb_policy: 99 is not known"),
        (
            with(|c| {
                c.lb_policy = 1;
                c.lb_config = Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    choice_count: uint32(1),
                    ..LeastRequestLbConfig::default()
                }));
            }),
            "least_request_lb_config.choice_count: must be 2 or more",
        ),
        (
            with(|c| c.transport_socket_matches = vec![TransportSocketMatch::default()]),
            "transport_socket_matches[0].transport_socket: is missing",
        ),
        (
            with(|c| {
                c.lb_subset_config = Some(LbSubsetConfig {
                    subset_selectors: vec![Default::default()],
                    ..LbSubsetConfig::default()
                });
            }),
            "lb_subset_config.subset_selectors[0].keys: is empty",
        ),
        (
            with(|c| c.connect_timeout = Some(DurationProto::default())),
            "connect_timeout: must not be zero",
        ),
        (
            with(|c| {
                c.connect_timeout = Some(DurationProto {
                    seconds: -1,
                    nanos: 0,
                });
            }),
            "connect_timeout: is not a duration",
        ),
    ] {
        refused(Kind::Cluster, resource, expected);
    }
}

#[test]
pub(super) fn every_error_is_collected() {
    let errors = decode(
        Kind::Cluster,
        with(|c| {
            c.lb_policy = 6;
            c.cluster_discovery_type = None;
            c.transport_socket = Some(Default::default());
        }),
    )
    .unwrap_err();
    let paths: Vec<_> = errors
        .iter()
        .map(|error| error.split(':').next().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["type", "lb_policy", "transport_socket.typed_config"]
    );
}
