//! Load balancing and passive health of a cluster (CDS).
//!
//! `lb_policy` and its settings, which every client reads. gRPC refuses a policy that it does not have
//! (A27): it gets round robin, which every one has. What only our library can do is in
//! `load_balancing_policy`, for our library.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                LoadBalancingPolicy, OutlierDetection as ProtoOutlier, cluster,
                load_balancing_policy::Policy,
            },
            core::v3::{RuntimeDouble, TypedExtensionConfig},
        },
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            pick_first::v3::PickFirst, random_subsetting::v3::RandomSubsetting,
            wrr_locality::v3::WrrLocality,
        },
        r#type::v3::Percent,
    },
    google::protobuf::{FloatValue, UInt64Value},
};
use mesh_core::config::{
    ClientSideWrr, Cluster, LbPolicy, LeastRequest, OutlierDetection, RingHash, SlowStart,
    Subsetting,
};
use prost::Name;

use super::{
    ClientClass, Feature, any, duration, extension,
    own_policy::{self, DeterministicSubsetting},
    uint32,
};

/// How a class of clients is told to balance.
#[derive(Debug, Default)]
pub(super) struct Balance {
    pub(super) lb_policy: cluster::LbPolicy,
    pub(super) lb_config: Option<cluster::LbConfig>,
    pub(super) load_balancing_policy: Option<LoadBalancingPolicy>,
}

pub(super) fn balance(config: &Cluster, class: ClientClass) -> Balance {
    let balance = whole(config, class);
    let size = config.common_lb_config.subset_size;
    match size.filter(|_| class == ClientClass::Rust) {
        Some(size) => in_subsets(size, config, balance),
        None => balance,
    }
}

/// Of many endpoints some (gRFC A68, or by the client's place). The policy inside has to be an extension.
fn in_subsets(size: u32, config: &Cluster, balance: Balance) -> Balance {
    let slow_start = config.common_lb_config.slow_start.as_ref();
    let child = balance.load_balancing_policy.clone();
    let child = child.or_else(|| extension::encode(&config.lb_policy, slow_start));
    let Some(child) = child else {
        return balance;
    };
    let child = match config.common_lb_config.locality_weighted {
        true if balance.load_balancing_policy.is_none() => by_locality(child),
        _ => child,
    };
    Balance {
        load_balancing_policy: Some(match config.common_lb_config.subsetting {
            Subsetting::Random => any_policy(&RandomSubsetting {
                subset_size: Some(uint32(size)),
                child_policy: Some(child),
            }),
            Subsetting::Deterministic => any_policy(&DeterministicSubsetting {
                subset_size: Some(uint32(size)),
                child_policy: Some(child),
            }),
        }),
        ..Balance::default()
    }
}

/// All endpoints.
fn whole(config: &Cluster, class: ClientClass) -> Balance {
    let slow_start = config
        .common_lb_config
        .slow_start
        .filter(|_| !class.is_grpc());
    match &config.lb_policy {
        LbPolicy::LeastRequest(least) if has_least_request(class) => Balance {
            lb_policy: cluster::LbPolicy::LeastRequest,
            lb_config: Some(least_request(least, slow_start.as_ref())),
            ..Balance::default()
        },
        LbPolicy::Random if !class.is_grpc() => Balance {
            lb_policy: cluster::LbPolicy::Random,
            ..Balance::default()
        },
        LbPolicy::RingHash(ring) => Balance {
            lb_policy: cluster::LbPolicy::RingHash,
            lb_config: Some(ring_hash(*ring)),
            ..Balance::default()
        },
        LbPolicy::Maglev { table_size } if !class.is_grpc() => Balance {
            lb_policy: cluster::LbPolicy::Maglev,
            lb_config: Some(cluster::LbConfig::MaglevLbConfig(cluster::MaglevLbConfig {
                table_size: Some(uint64((*table_size).into())),
            })),
            ..Balance::default()
        },
        // The same key goes to the same endpoint; only the tables differ.
        LbPolicy::Maglev { .. } => Balance {
            lb_policy: cluster::LbPolicy::RingHash,
            ..Balance::default()
        },
        LbPolicy::ClientSideWeightedRoundRobin(wrr) => Balance {
            load_balancing_policy: Some(by_locality(any_policy(&client_side_wrr(wrr)))),
            ..Balance::default()
        },
        LbPolicy::PickFirst {
            shuffle_address_list,
        } => Balance {
            load_balancing_policy: Some(any_policy(&PickFirst {
                shuffle_address_list: *shuffle_address_list,
            })),
            ..Balance::default()
        },
        // Only our library has ours; any client may have been given others (A52).
        LbPolicy::PeakEwma(_) | LbPolicy::Prequal(_) if class == ClientClass::Rust => Balance {
            load_balancing_policy: own_policy::encode(&config.lb_policy).map(by_locality),
            ..Balance::default()
        },
        LbPolicy::Custom { .. } if class != ClientClass::Envoy => Balance {
            load_balancing_policy: own_policy::encode(&config.lb_policy),
            ..Balance::default()
        },
        // Not had by the class.
        LbPolicy::RoundRobin
        | LbPolicy::LeastRequest(_)
        | LbPolicy::Random
        | LbPolicy::PeakEwma(_)
        | LbPolicy::Prequal(_)
        | LbPolicy::Custom { .. } => Balance {
            lb_config: slow_start.as_ref().map(|slow_start| {
                cluster::LbConfig::RoundRobinLbConfig(cluster::RoundRobinLbConfig {
                    slow_start_config: Some(slow_start_config(slow_start)),
                })
            }),
            ..Balance::default()
        },
    }
}

/// Of the gRPCs, only Java has it (A48).
fn has_least_request(class: ClientClass) -> bool {
    class.has(Feature::LeastRequest, None)
}

fn least_request(config: &LeastRequest, slow_start: Option<&SlowStart>) -> cluster::LbConfig {
    let bias = config.active_request_bias;
    cluster::LbConfig::LeastRequestLbConfig(cluster::LeastRequestLbConfig {
        choice_count: Some(uint32(config.choice_count)),
        active_request_bias: (bias != 1.0).then(|| runtime_double(bias, "bias")),
        slow_start_config: slow_start.map(slow_start_config),
    })
}

fn slow_start_config(config: &SlowStart) -> cluster::SlowStartConfig {
    let aggression = config.aggression;
    cluster::SlowStartConfig {
        slow_start_window: Some(duration(config.window)),
        aggression: (aggression != 1.0).then(|| runtime_double(aggression, "aggression")),
        min_weight_percent: Some(Percent {
            value: config.min_weight_percent,
        }),
    }
}

/// Envoy wants a key, under which nothing is set.
pub(super) fn runtime_double(value: f64, key: &str) -> RuntimeDouble {
    RuntimeDouble {
        default_value: value,
        runtime_key: format!("mesh.{key}"),
    }
}

fn ring_hash(config: RingHash) -> cluster::LbConfig {
    cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
        minimum_ring_size: Some(uint64(config.minimum_ring_size)),
        maximum_ring_size: Some(uint64(config.maximum_ring_size)),
        ..cluster::RingHashLbConfig::default()
    })
}

fn client_side_wrr(config: &ClientSideWrr) -> ClientSideWeightedRoundRobin {
    ClientSideWeightedRoundRobin {
        blackout_period: Some(duration(config.blackout_period)),
        weight_expiration_period: Some(duration(config.weight_expiration_period)),
        weight_update_period: Some(duration(config.weight_update_period)),
        error_utilization_penalty: Some(FloatValue {
            value: config.error_utilization_penalty as f32,
        }),
        metric_names_for_computing_utilization: config
            .metric_names_for_computing_utilization
            .clone(),
        ..ClientSideWeightedRoundRobin::default()
    }
}

pub(super) fn any_policy<P: prost::Message + Name>(policy: &P) -> LoadBalancingPolicy {
    LoadBalancingPolicy {
        policies: vec![Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: P::full_name(),
                typed_config: Some(any(policy)),
            }),
        }],
    }
}

fn by_locality(inner: LoadBalancingPolicy) -> LoadBalancingPolicy {
    any_policy(&WrrLocality {
        endpoint_picking_policy: Some(inner),
    })
}

pub(super) fn uint64(value: u64) -> UInt64Value {
    UInt64Value { value }
}

/// Passive health, every field by its value: what is absent means other things to other clients.
pub(super) fn outlier_detection(config: &OutlierDetection) -> ProtoOutlier {
    let percent = |value: u32| Some(uint32(value));
    let (rate, share) = (&config.success_rate, &config.failure_percentage);
    ProtoOutlier {
        interval: Some(duration(config.interval)),
        base_ejection_time: Some(duration(config.base_ejection_time)),
        max_ejection_time: Some(duration(config.max_ejection_time)),
        max_ejection_time_jitter: Some(duration(config.max_ejection_time_jitter)),
        max_ejection_percent: percent(config.max_ejection_percent),
        consecutive_5xx: percent(config.consecutive_5xx.threshold),
        enforcing_consecutive_5xx: percent(config.consecutive_5xx.enforcing),
        consecutive_gateway_failure: percent(config.consecutive_gateway_failure.threshold),
        enforcing_consecutive_gateway_failure: percent(
            config.consecutive_gateway_failure.enforcing,
        ),
        split_external_local_origin_errors: config.split_external_local_origin_errors,
        consecutive_local_origin_failure: percent(
            config.consecutive_local_origin_failure.threshold,
        ),
        enforcing_consecutive_local_origin_failure: percent(
            config.consecutive_local_origin_failure.enforcing,
        ),
        success_rate_stdev_factor: percent(rate.stdev_factor),
        success_rate_minimum_hosts: percent(rate.minimum_hosts),
        success_rate_request_volume: percent(rate.request_volume),
        enforcing_success_rate: percent(rate.enforcing),
        enforcing_local_origin_success_rate: percent(rate.enforcing_local_origin),
        failure_percentage_threshold: percent(share.threshold),
        failure_percentage_minimum_hosts: percent(share.minimum_hosts),
        failure_percentage_request_volume: percent(share.request_volume),
        enforcing_failure_percentage: percent(share.enforcing),
        enforcing_failure_percentage_local_origin: percent(share.enforcing_local_origin),
        ..ProtoOutlier::default()
    }
}
