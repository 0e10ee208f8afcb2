//! Balancers as extensions, for what has a policy inside of it.

use envoy_types::pb::envoy::{
    config::cluster::v3::LoadBalancingPolicy,
    extensions::load_balancing_policies::{
        common::v3::SlowStartConfig, least_request::v3::LeastRequest, maglev::v3::Maglev,
        random::v3::Random, ring_hash::v3::RingHash, round_robin::v3::RoundRobin,
    },
    r#type::v3::Percent,
};
use mesh_core::config::{LbPolicy, SlowStart};

use super::{
    balance::{any_policy, runtime_double, uint64},
    duration, uint32,
};

/// `None` for a policy that is an extension anyway.
pub(super) fn encode(
    policy: &LbPolicy,
    slow_start: Option<&SlowStart>,
) -> Option<LoadBalancingPolicy> {
    let slow_start_config = slow_start.map(|config| SlowStartConfig {
        slow_start_window: Some(duration(config.window)),
        aggression: Some(runtime_double(config.aggression, "aggression")),
        min_weight_percent: Some(Percent {
            value: config.min_weight_percent,
        }),
    });
    Some(match policy {
        LbPolicy::RoundRobin => any_policy(&RoundRobin {
            slow_start_config,
            ..RoundRobin::default()
        }),
        LbPolicy::LeastRequest(least) => any_policy(&LeastRequest {
            choice_count: Some(uint32(least.choice_count)),
            active_request_bias: Some(runtime_double(least.active_request_bias, "bias")),
            slow_start_config,
            ..LeastRequest::default()
        }),
        LbPolicy::Random => any_policy(&Random::default()),
        LbPolicy::RingHash(ring) => any_policy(&RingHash {
            minimum_ring_size: Some(uint64(ring.minimum_ring_size)),
            maximum_ring_size: Some(uint64(ring.maximum_ring_size)),
            ..RingHash::default()
        }),
        LbPolicy::Maglev { table_size } => any_policy(&Maglev {
            table_size: Some(uint64((*table_size).into())),
            ..Maglev::default()
        }),
        LbPolicy::ClientSideWeightedRoundRobin(_)
        | LbPolicy::PickFirst { .. }
        | LbPolicy::PeakEwma(_)
        | LbPolicy::Prequal(_)
        | LbPolicy::Custom { .. } => return None,
    })
}
