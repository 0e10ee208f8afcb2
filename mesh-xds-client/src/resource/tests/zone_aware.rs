//! Zone-aware routing, by a policy and by a cluster.

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::cluster::{
            CommonLbConfig as CommonProto, LbPolicy as LbPolicyProto,
            common_lb_config::{
                LocalityConfigSpecifier as OfCluster, ZoneAwareLbConfig as ZoneAwareOfCluster,
            },
        },
        extensions::load_balancing_policies::{
            common::v3::{
                LocalityLbConfig,
                locality_lb_config::{
                    LocalityConfigSpecifier, ZoneAwareLbConfig,
                    zone_aware_lb_config::ForceLocalZone,
                },
            },
            least_request::v3::LeastRequest,
            random::v3::Random,
            round_robin::v3::RoundRobin,
        },
        r#type::v3::Percent,
    },
    google::protobuf::UInt64Value,
};
use mesh_core::config::{LocalityBasis, ZoneAware};

use super::{
    balance::{accepted, bad_policy, by_policy, with},
    *,
};

fn in_policy(config: ZoneAwareLbConfig) -> Option<LocalityLbConfig> {
    let specifier = LocalityConfigSpecifier::ZoneAwareLbConfig(config);
    Some(LocalityLbConfig {
        locality_config_specifier: Some(specifier),
    })
}

fn in_cluster(config: ZoneAwareOfCluster) -> Option<CommonProto> {
    Some(CommonProto {
        locality_config_specifier: Some(OfCluster::ZoneAwareLbConfig(config)),
        ..CommonProto::default()
    })
}

fn round_robin(config: ZoneAwareLbConfig) -> Any {
    any(&RoundRobin {
        locality_lb_config: in_policy(config),
        ..RoundRobin::default()
    })
}

#[test]
fn a_policy_says_all_there_is_of_zones() {
    let none = ZoneAwareLbConfig::default();
    let least = LeastRequest {
        locality_lb_config: in_policy(none),
        ..LeastRequest::default()
    };
    let random = Random {
        locality_lb_config: in_policy(none),
    };
    for policy in [round_robin(none), any(&least), any(&random)] {
        let common = by_policy(policy).common_lb_config.clone();
        assert_eq!(common.zone_aware, Some(ZoneAware::default()));
        assert!(!common.locality_weighted);
    }
    let all = ZoneAwareLbConfig {
        routing_enabled: Some(Percent { value: 12.5 }),
        min_cluster_size: Some(UInt64Value { value: 3 }),
        fail_traffic_on_panic: true,
        force_local_zone: Some(ForceLocalZone {
            min_size: uint32(2),
        }),
        locality_basis: 1,
        ..none
    };
    let common = by_policy(round_robin(all)).common_lb_config.clone();
    let expected = ZoneAware {
        routing_enabled: 12.5,
        min_cluster_size: 3,
        fail_traffic_on_panic: true,
        force_local_zone: Some(2),
        locality_basis: LocalityBasis::HealthyHostsWeight,
    };
    assert_eq!(common.zone_aware, Some(expected));
    assert_eq!(common.panic_threshold(), Some(50), "there has to be one");
    #[expect(deprecated, reason = "what it stood for")]
    let older = ZoneAwareLbConfig {
        force_locality_direct_routing: true,
        ..none
    };
    for forced in [
        older,
        ZoneAwareLbConfig {
            force_local_zone: Some(ForceLocalZone::default()),
            ..none
        },
    ] {
        let zones = by_policy(round_robin(forced)).common_lb_config.zone_aware;
        assert_eq!(zones.unwrap().force_local_zone, Some(1));
    }
    let place = "locality_lb_config.zone_aware_lb_config";
    let bad = ZoneAwareLbConfig {
        routing_enabled: Some(Percent { value: 101.0 }),
        ..none
    };
    let expected = format!("{place}.routing_enabled: 101 is not 0 to 100");
    bad_policy(round_robin(bad), &expected);
    let bad = ZoneAwareLbConfig {
        locality_basis: 9,
        ..none
    };
    bad_policy(round_robin(bad), &format!("{place}.locality_basis: 9 is"));
}

#[test]
fn a_cluster_says_it_for_its_lb_policy_instead_of_weights() {
    let zones = ZoneAwareOfCluster {
        min_cluster_size: Some(UInt64Value { value: 2 }),
        ..ZoneAwareOfCluster::default()
    };
    let common = accepted(|c| c.common_lb_config = in_cluster(zones));
    let common = &common.common_lb_config;
    assert_eq!(common.zone_aware.unwrap().min_cluster_size, 2);
    assert!(!common.locality_weighted, "one of the two");
    // Where it does nothing, that is said.
    for (policy, is_one_list) in [
        (LbPolicyProto::RoundRobin, false),
        (LbPolicyProto::LeastRequest, false),
        (LbPolicyProto::Random, false),
        (LbPolicyProto::RingHash, true),
        (LbPolicyProto::Maglev, true),
    ] {
        let resource = with(|c| {
            c.lb_policy = policy as i32;
            c.common_lb_config = in_cluster(zones);
        });
        let decoded = decode_any(Kind::Cluster, vec![resource]);
        let ignored = &decoded.accepted[0].ignored;
        let ignored = ignored.iter().any(|field| field.contains("zone_aware"));
        assert_eq!(ignored, is_one_list, "{policy:?}");
    }
}
