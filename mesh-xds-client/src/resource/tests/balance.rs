//! Load balancing, passive health and drop rules.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                LoadBalancingPolicy, OutlierDetection as OutlierProto,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig as CommonProto, EdsClusterConfig,
                    LbConfig, MaglevLbConfig, RingHashLbConfig,
                    common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
                },
                load_balancing_policy::Policy,
            },
            core::v3::{HealthStatusSet, RuntimeDouble, TypedExtensionConfig},
            endpoint::v3::cluster_load_assignment::{
                Policy as EndpointsPolicy, policy::DropOverload as DropProto,
            },
        },
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            common::v3::SlowStartConfig, least_request::v3::LeastRequest as LeastRequestProto,
            maglev::v3::Maglev, pick_first::v3::PickFirst, random_subsetting::v3::RandomSubsetting,
            ring_hash::v3::RingHash as RingHashProto, round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
        r#type::v3::{FractionalPercent, Percent},
    },
    google::protobuf::{Duration as DurationProto, FloatValue, UInt64Value},
};
use mesh_core::config::{
    ClientSideWrr, Cluster, DropOverload, Fraction, HealthStatus, LbPolicy, LeastRequest,
    OutlierDetection, RingHash, SlowStart, Subsetting,
};

use super::{super::own_policy::DeterministicSubsetting, *};

pub(super) fn with(change: impl FnOnce(&mut ClusterProto)) -> Any {
    let mut cluster = ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            service_name: String::new(),
        }),
        ..ClusterProto::default()
    };
    change(&mut cluster);
    any(&cluster)
}

#[track_caller]
pub(super) fn accepted(change: impl FnOnce(&mut ClusterProto)) -> Arc<Cluster> {
    match decode(Kind::Cluster, with(change)).unwrap() {
        Config::Cluster(cluster) => Arc::clone(&cluster.config),
        other => panic!("{other:?}"),
    }
}

fn policies(policy: Any) -> Option<LoadBalancingPolicy> {
    Some(LoadBalancingPolicy {
        policies: vec![Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "x".into(),
                typed_config: Some(policy),
            }),
        }],
    })
}

pub(super) fn by_policy(policy: Any) -> Arc<Cluster> {
    accepted(|c| c.load_balancing_policy = policies(policy))
}

pub(super) fn bad_policy(policy: Any, expected: &str) {
    let resource = with(|c| c.load_balancing_policy = policies(policy));
    let place = "load_balancing_policy.policies[0].typed_extension_config.typed_config";
    refused(Kind::Cluster, resource, &format!("{place}.{expected}"));
}

fn seconds(seconds: i64) -> Option<DurationProto> {
    Some(DurationProto { seconds, nanos: 0 })
}

fn uint64(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

#[test]
fn localities_share_by_weight_where_the_policy_says_so() {
    let round_robin = || any(&RoundRobin::default());
    let weighted = |cluster: Arc<Cluster>| cluster.common_lb_config.locality_weighted;
    assert!(weighted(accepted(|_| {})), "by lb_policy, as gRPC has it");
    assert!(!weighted(by_policy(round_robin())));
    assert!(weighted(by_policy(any(&WrrLocality {
        endpoint_picking_policy: policies(round_robin()),
    }))));
    assert!(weighted(accepted(|c| {
        c.load_balancing_policy = policies(round_robin());
        let weighted = LocalityWeightedLbConfig {};
        c.common_lb_config = Some(CommonProto {
            locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
                weighted,
            )),
            ..CommonProto::default()
        });
    })));
}

#[test]
fn ring_hash_in_both_forms_and_its_bounds() {
    let ring = |smallest, largest| RingHashProto {
        minimum_ring_size: uint64(smallest),
        maximum_ring_size: uint64(largest),
        ..RingHashProto::default()
    };
    let expected = LbPolicy::RingHash(RingHash {
        minimum_ring_size: 10,
        maximum_ring_size: 20,
    });
    assert_eq!(by_policy(any(&ring(10, 20))).lb_policy, expected);
    let legacy = accepted(|c| {
        c.lb_policy = 2;
        c.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: uint64(10),
            maximum_ring_size: uint64(20),
            hash_function: 0,
        }));
    });
    assert_eq!(legacy.lb_policy, expected);
    for (proto, expected) in [
        (ring(21, 20), "minimum_ring_size: is more than"),
        (ring(0, 20), "minimum_ring_size: must be 1 to 8388608"),
        (
            ring(1, 8_388_609),
            "maximum_ring_size: must be 1 to 8388608",
        ),
        (
            RingHashProto {
                hash_function: 2,
                ..RingHashProto::default()
            },
            "hash_function: must be XX_HASH",
        ),
    ] {
        bad_policy(any(&proto), expected);
    }
    let murmur = with(|c| {
        c.lb_policy = 2;
        c.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            hash_function: 1,
            ..RingHashLbConfig::default()
        }));
    });
    refused(Kind::Cluster, murmur, "ring_hash_lb_config.hash_function: ");
}

#[test]
fn a_table_has_a_prime_size() {
    let maglev = |size| Maglev {
        table_size: uint64(size),
        ..Maglev::default()
    };
    let expected = LbPolicy::Maglev { table_size: 251 };
    assert_eq!(by_policy(any(&maglev(251))).lb_policy, expected);
    for size in [0, 1, 65_536, 5_000_017, u64::MAX] {
        bad_policy(any(&maglev(size)), "table_size: must be a prime");
    }
    let legacy = with(|c| {
        c.lb_policy = 5;
        c.lb_config = Some(LbConfig::MaglevLbConfig(MaglevLbConfig {
            table_size: uint64(4),
        }));
    });
    refused(
        Kind::Cluster,
        legacy,
        "maglev_lb_config.table_size: must be a prime",
    );
}

#[test]
fn client_side_weights_have_the_defaults_of_the_grfc() {
    let config = |policy: &Cluster| match &policy.lb_policy {
        LbPolicy::ClientSideWeightedRoundRobin(config) => config.clone(),
        other => panic!("{other:?}"),
    };
    let defaults = by_policy(any(&ClientSideWeightedRoundRobin::default()));
    assert_eq!(config(&defaults), ClientSideWrr::default());
    let set = by_policy(any(&ClientSideWeightedRoundRobin {
        blackout_period: seconds(0),
        weight_expiration_period: seconds(7),
        weight_update_period: Some(DurationProto {
            seconds: 0,
            nanos: 1,
        }),
        error_utilization_penalty: Some(FloatValue { value: 0.5 }),
        metric_names_for_computing_utilization: vec!["named_metrics.x".into()],
        ..ClientSideWeightedRoundRobin::default()
    }));
    let expected = ClientSideWrr {
        blackout_period: Duration::ZERO,
        weight_expiration_period: Duration::from_secs(7),
        weight_update_period: Duration::from_millis(100),
        error_utilization_penalty: 0.5,
        metric_names_for_computing_utilization: vec!["named_metrics.x".into()],
    };
    assert_eq!(config(&set), expected);
    let negative = ClientSideWeightedRoundRobin {
        error_utilization_penalty: Some(FloatValue { value: -0.1 }),
        ..ClientSideWeightedRoundRobin::default()
    };
    bad_policy(
        any(&negative),
        "error_utilization_penalty: must be 0 or more",
    );
}

#[test]
fn least_request_takes_a_bias_and_slow_start() {
    let double = |default_value| {
        Some(RuntimeDouble {
            default_value,
            runtime_key: String::new(),
        })
    };
    let slow_start = |aggression, percent| SlowStartConfig {
        slow_start_window: seconds(60),
        aggression: double(aggression),
        min_weight_percent: Some(Percent { value: percent }),
    };
    let least = |bias, slow_start| LeastRequestProto {
        active_request_bias: double(bias),
        slow_start_config: Some(slow_start),
        ..LeastRequestProto::default()
    };
    let cluster = by_policy(any(&least(0.5, slow_start(2.0, 5.0))));
    let expected = LbPolicy::LeastRequest(LeastRequest {
        choice_count: 2,
        active_request_bias: 0.5,
    });
    assert_eq!(cluster.lb_policy, expected);
    let expected = SlowStart {
        window: Duration::from_secs(60),
        aggression: 2.0,
        min_weight_percent: 5.0,
    };
    assert_eq!(cluster.common_lb_config.slow_start, Some(expected));
    for (proto, expected) in [
        (
            least(-1.0, slow_start(1.0, 5.0)),
            "active_request_bias: must be 0 or more",
        ),
        (
            least(f64::NAN, slow_start(1.0, 5.0)),
            "active_request_bias: ",
        ),
        (
            least(1.0, slow_start(0.0, 5.0)),
            "slow_start_config.aggression: must be above 0",
        ),
        (
            least(1.0, slow_start(1.0, 101.0)),
            "slow_start_config.min_weight_percent: 101 is not",
        ),
    ] {
        bad_policy(any(&proto), expected);
    }
}

#[test]
fn subsets_and_pick_first() {
    let subsetting = |size| RandomSubsetting {
        subset_size: uint32(size),
        child_policy: policies(any(&PickFirst {
            shuffle_address_list: true,
        })),
    };
    let cluster = by_policy(any(&subsetting(7)));
    assert_eq!(cluster.common_lb_config.subset_size, Some(7));
    let expected = LbPolicy::PickFirst {
        shuffle_address_list: true,
    };
    assert_eq!(cluster.lb_policy, expected);
    assert_eq!(cluster.common_lb_config.subsetting, Subsetting::Random);
    bad_policy(any(&subsetting(0)), "subset_size: must be 1 or more");
    let deterministic = |size| DeterministicSubsetting {
        subset_size: uint32(size),
        child_policy: policies(any(&RoundRobin::default())),
    };
    let cluster = by_policy(any(&deterministic(7)));
    let common = &cluster.common_lb_config;
    assert_eq!(
        (common.subset_size, common.subsetting, &cluster.lb_policy),
        (Some(7), Subsetting::Deterministic, &LbPolicy::RoundRobin)
    );
    bad_policy(any(&deterministic(0)), "subset_size: must be 1 or more");
    let childless = RandomSubsetting {
        subset_size: uint32(1),
        child_policy: None,
    };
    bad_policy(any(&childless), "child_policy: is missing");
}

#[test]
fn common_settings() {
    let common = |percent, statuses: Vec<i32>| {
        Some(CommonProto {
            healthy_panic_threshold: Some(Percent { value: percent }),
            override_host_status: Some(HealthStatusSet { statuses }),
            ..CommonProto::default()
        })
    };
    let got = accepted(|c| c.common_lb_config = common(33.0, vec![1, 3]));
    assert_eq!(got.common_lb_config.healthy_panic_threshold, Some(33));
    let expected = [HealthStatus::Healthy, HealthStatus::Draining];
    assert_eq!(got.common_lb_config.override_host_status, expected);
    let got = accepted(|_| {});
    assert_eq!(got.common_lb_config.healthy_panic_threshold, None, "opt-in");
    for (percent, status, expected) in [
        (
            101.0,
            1,
            "common_lb_config.healthy_panic_threshold: 101 is not 0 to 100",
        ),
        (
            1.0,
            99,
            "common_lb_config.override_host_status.statuses[0]: 99 is not a known",
        ),
    ] {
        let resource = with(|c| c.common_lb_config = common(percent, vec![status]));
        refused(Kind::Cluster, resource, expected);
    }
}

#[test]
fn outlier_detection_has_envoys_defaults() {
    assert_eq!(accepted(|_| {}).outlier_detection, None);
    let outlier = |proto| {
        accepted(|c| c.outlier_detection = Some(proto))
            .outlier_detection
            .clone()
    };
    assert_eq!(
        outlier(OutlierProto::default()),
        Some(OutlierDetection::default())
    );
    let got = outlier(OutlierProto {
        consecutive_5xx: uint32(7),
        enforcing_consecutive_5xx: uint32(50),
        enforcing_success_rate: uint32(0),
        enforcing_failure_percentage: uint32(100),
        interval: seconds(1),
        split_external_local_origin_errors: true,
        ..OutlierProto::default()
    });
    let got = got.unwrap();
    assert_eq!(
        (got.consecutive_5xx.threshold, got.consecutive_5xx.enforcing),
        (7, 50)
    );
    assert_eq!(got.success_rate.enforcing, 0);
    assert_eq!(got.failure_percentage.enforcing, 100);
    assert_eq!(got.interval, Duration::from_secs(1));
    assert!(got.split_external_local_origin_errors);
    let check = |proto, expected: &str| {
        let resource = with(|c| c.outlier_detection = Some(proto));
        refused(
            Kind::Cluster,
            resource,
            &format!("outlier_detection.{expected}"),
        );
    };
    check(
        OutlierProto {
            max_ejection_percent: uint32(101),
            ..OutlierProto::default()
        },
        "max_ejection_percent: 101 is not 0 to 100",
    );
    check(
        OutlierProto {
            interval: seconds(0),
            ..OutlierProto::default()
        },
        "interval: must not be zero",
    );
    check(
        OutlierProto {
            base_ejection_time: seconds(-1),
            ..OutlierProto::default()
        },
        "base_ejection_time: is not a duration",
    );
}

#[test]
fn drop_rules_are_taken_and_their_mistakes_named() {
    let assignment = |category: &str, denominator| {
        any(&EndpointsProto {
            cluster_name: "c".into(),
            policy: Some(EndpointsPolicy {
                drop_overloads: vec![DropProto {
                    category: category.into(),
                    drop_percentage: Some(FractionalPercent {
                        numerator: 25,
                        denominator,
                    }),
                }],
                overprovisioning_factor: uint32(150),
                ..EndpointsPolicy::default()
            }),
            ..EndpointsProto::default()
        })
    };
    let Config::Endpoints(got) = decode(Kind::Endpoints, assignment("lb", 1)).unwrap() else {
        panic!()
    };
    let expected = DropOverload {
        category: "lb".into(),
        share: Fraction::new(25, 10_000).unwrap(),
    };
    assert_eq!(got.drop_overloads, [expected]);
    assert_eq!(got.overprovisioning_factor, Some(150));
    let place = "policy.drop_overloads[0].";
    for (resource, expected) in [
        (assignment("", 0), "category: is missing"),
        (
            assignment("lb", 9),
            "drop_percentage.denominator: 9 is not one of",
        ),
    ] {
        refused(Kind::Endpoints, resource, &format!("{place}{expected}"));
    }
}
