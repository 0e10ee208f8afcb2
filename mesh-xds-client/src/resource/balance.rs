//! Load balancing of a cluster: `load_balancing_policy` (gRFC A52), `lb_policy`, `common_lb_config`.
//!
//! Stage 3. `load_balancing_policy` wins over `lb_policy`, which is not even looked at then. The
//! first policy of a list that is supported is taken; if it is wrong, the cluster is refused. By
//! `lb_policy`, localities share by weight, as gRPC has it (A27); in a `load_balancing_policy` they do
//! where it says so. Deviation: a policy that is not supported refuses the cluster, never falls back.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster as ClusterProto, LoadBalancingPolicy,
                cluster::{
                    ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy as LbPolicyProto,
                    SlowStartConfig as OldSlowStart,
                    ring_hash_lb_config::HashFunction as OldHashFunction,
                },
            },
            core::v3::RuntimeDouble,
        },
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            common::v3::{ConsistentHashingLbConfig, SlowStartConfig},
            least_request::v3::LeastRequest as LeastRequestProto,
            maglev::v3::Maglev,
            pick_first::v3::PickFirst,
            random::v3::Random,
            random_subsetting::v3::RandomSubsetting,
            ring_hash::v3::{RingHash as RingHashProto, ring_hash::HashFunction},
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Any, Duration as DurationProto, UInt64Value},
};
use mesh_core::config::{
    ClientSideWrr, CommonLbConfig, LbPolicy, LeastRequest, MAGLEV_TABLE_SIZE_DEFAULT,
    MAGLEV_TABLE_SIZE_MAX, OOB_REPORTING_PERIOD_DEFAULT, RING_SIZE_MAX, RingHash, SlowStart,
    Subsetting, WEIGHT_UPDATE_PERIOD_MIN,
};

use super::{
    own_policy::{self, DeterministicSubsetting, TypedStruct},
    path::Sink,
    report::report,
    value::{duration, health_status, is, parse, uint32},
    zone_aware,
};

/// Most random endpoints that least request looks at (gRFC A48).
const CHOICE_COUNT_MAX: u32 = 10;

/// Deepest nesting of load balancing policies (gRFC A52).
const LB_POLICY_DEPTH_MAX: usize = 16;

/// The policies that are understood, for people.
const SUPPORTED: &str = "round_robin, least_request, random, ring_hash, maglev, pick_first, \
                         client_side_weighted_round_robin, mesh.v1.PeakEwma, \
                         mesh.v1.Prequal, and wrr_locality, random_subsetting or \
                         mesh.v1.DeterministicSubsetting around them";

/// The policy of a cluster, with what is common to all policies.
pub(super) fn decode(sink: &mut Sink, proto: &ClusterProto) -> Option<(LbPolicy, CommonLbConfig)> {
    let mut common = CommonLbConfig::default();
    let policy = match &proto.load_balancing_policy {
        Some(policy) => sink.field("load_balancing_policy", |sink| {
            walk(sink, policy, &mut common, 1)
        }),
        None => {
            common.locality_weighted = true;
            legacy(sink, proto, &mut common)
        }
    };
    decode_common(sink, proto, policy.as_ref(), &mut common);
    Some((policy?, common))
}

/// The policy by `lb_policy` and its `lb_config`.
fn legacy(sink: &mut Sink, proto: &ClusterProto, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let chosen = LbPolicyProto::try_from(proto.lb_policy);
    let config = proto.lb_config.as_ref();
    let is_own = matches!(
        (chosen, config),
        (_, None)
            | (
                Ok(LbPolicyProto::RoundRobin),
                Some(LbConfig::RoundRobinLbConfig(_))
            )
            | (
                Ok(LbPolicyProto::LeastRequest),
                Some(LbConfig::LeastRequestLbConfig(_))
            )
            | (
                Ok(LbPolicyProto::RingHash),
                Some(LbConfig::RingHashLbConfig(_))
            )
            | (Ok(LbPolicyProto::Maglev), Some(LbConfig::MaglevLbConfig(_)))
            | (
                Ok(LbPolicyProto::ClusterProvided),
                Some(LbConfig::OriginalDstLbConfig(_))
            )
    );
    sink.ignore([("lb_config (of a policy that is not chosen)", !is_own)]);
    let config = config.filter(|_| is_own);
    match (chosen, config) {
        (Ok(LbPolicyProto::RoundRobin), Some(LbConfig::RoundRobinLbConfig(config))) => {
            sink.field("round_robin_lb_config", |sink| {
                let slow_start = config.slow_start_config.as_ref().map(newer_slow_start);
                common.slow_start = decode_slow_start(sink, slow_start.as_ref())?;
                Some(LbPolicy::RoundRobin)
            })
        }
        (Ok(LbPolicyProto::RoundRobin), _) => Some(LbPolicy::RoundRobin),
        (Ok(LbPolicyProto::LeastRequest), Some(LbConfig::LeastRequestLbConfig(config))) => sink
            .field("least_request_lb_config", |sink| {
                let slow_start = config.slow_start_config.as_ref().map(newer_slow_start);
                common.slow_start = decode_slow_start(sink, slow_start.as_ref())?;
                let choice_count = uint32(config.choice_count.as_ref());
                least_request(sink, choice_count, config.active_request_bias.as_ref())
            }),
        (Ok(LbPolicyProto::LeastRequest), _) => least_request(sink, None, None),
        (Ok(LbPolicyProto::Random), _) => Some(LbPolicy::Random),
        (Ok(LbPolicyProto::RingHash), Some(LbConfig::RingHashLbConfig(config))) => {
            sink.field("ring_hash_lb_config", |sink| {
                if config.hash_function != OldHashFunction::XxHash as i32 {
                    return sink.error_at("hash_function", "must be XX_HASH");
                }
                let smallest = config.minimum_ring_size.as_ref();
                ring_hash(sink, smallest, config.maximum_ring_size.as_ref())
            })
        }
        (Ok(LbPolicyProto::RingHash), _) => Some(LbPolicy::RingHash(RingHash::default())),
        (Ok(LbPolicyProto::Maglev), Some(LbConfig::MaglevLbConfig(config))) => sink
            .field("maglev_lb_config", |sink| {
                maglev(sink, config.table_size.as_ref())
            }),
        (Ok(LbPolicyProto::Maglev), _) => maglev(sink, None),
        // Envoy demands it of an aggregate, whose members have the policies.
        (Ok(LbPolicyProto::ClusterProvided), _) if has_members(proto) => Some(LbPolicy::default()),
        // The requests choose.
        (Ok(LbPolicyProto::ClusterProvided), _) if is_original_dst(proto) => Some(LbPolicy::Random),
        (Ok(other), _) => sink.error_at(
            "lb_policy",
            format!(
                "{} is not supported; supported are ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, \
                 MAGLEV",
                other.as_str_name()
            ),
        ),
        (Err(_), _) => sink.error_at("lb_policy", format!("{} is not known", proto.lb_policy)),
    }
}

/// Whether it is an aggregate; no other type of its own is taken.
fn has_members(proto: &ClusterProto) -> bool {
    let kind = proto.cluster_discovery_type.as_ref();
    matches!(kind, Some(ClusterDiscoveryType::ClusterType(_)))
}

fn is_original_dst(proto: &ClusterProto) -> bool {
    let original_dst = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    proto.cluster_discovery_type == Some(original_dst)
}

/// The first policy of the list that is supported.
fn walk(
    sink: &mut Sink,
    list: &LoadBalancingPolicy,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<LbPolicy> {
    if depth > LB_POLICY_DEPTH_MAX {
        return sink.error(format!("is nested deeper than {LB_POLICY_DEPTH_MAX}"));
    }
    let mut seen = Vec::new();
    for (i, policy) in list.policies.iter().enumerate() {
        let extension = policy.typed_extension_config.as_ref();
        let Some(any) = extension.and_then(|extension| extension.typed_config.as_ref()) else {
            continue;
        };
        let place = format!("policies[{i}].typed_extension_config.typed_config");
        if let Some(decoded) = sink.field(&place, |sink| policy_of(sink, any, common, depth)) {
            return decoded;
        }
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        seen.push(name.to_owned());
    }
    let reason = format!("none of {seen:?} is supported; supported are {SUPPORTED}");
    sink.error_at("policies", reason)
}

/// The outer `None` is a policy that is not supported, the inner one an error.
fn policy_of(
    sink: &mut Sink,
    any: &Any,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<Option<LbPolicy>> {
    Some(if is::<RoundRobin>(any) {
        round_robin(sink, any, common)
    } else if is::<LeastRequestProto>(any) {
        least_request_policy(sink, any, common)
    } else if is::<Random>(any) {
        random(sink, any, common)
    } else if is::<RingHashProto>(any) {
        ring_hash_policy(sink, any, common)
    } else if is::<Maglev>(any) {
        maglev_policy(sink, any, common)
    } else if is::<PickFirst>(any) {
        pick_first(sink, any)
    } else if is::<ClientSideWeightedRoundRobin>(any) {
        client_side_wrr(sink, any, common)
    } else if is::<WrrLocality>(any) {
        wrr_locality(sink, any, common, depth)
    } else if is::<RandomSubsetting>(any) {
        random_subsetting(sink, any, common, depth)
    } else if is::<DeterministicSubsetting>(any) {
        deterministic_subsetting(sink, any, common, depth)
    } else if is::<TypedStruct>(any) {
        return own_policy::decode(sink, any);
    } else {
        return None;
    })
}

fn round_robin(sink: &mut Sink, any: &Any, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let config: RoundRobin = parse(sink, any)?;
    common.slow_start = decode_slow_start(sink, config.slow_start_config.as_ref())?;
    zone_aware::of_policy(sink, config.locality_lb_config.as_ref(), common);
    Some(LbPolicy::RoundRobin)
}

fn least_request_policy(
    sink: &mut Sink,
    any: &Any,
    common: &mut CommonLbConfig,
) -> Option<LbPolicy> {
    let config: LeastRequestProto = parse(sink, any)?;
    report!(sink, config, [enable_full_scan, selection_method]);
    common.slow_start = decode_slow_start(sink, config.slow_start_config.as_ref())?;
    zone_aware::of_policy(sink, config.locality_lb_config.as_ref(), common);
    let choice_count = uint32(config.choice_count.as_ref());
    least_request(sink, choice_count, config.active_request_bias.as_ref())
}

fn random(sink: &mut Sink, any: &Any, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let config: Random = parse(sink, any)?;
    zone_aware::of_policy(sink, config.locality_lb_config.as_ref(), common);
    Some(LbPolicy::Random)
}

fn ring_hash_policy(sink: &mut Sink, any: &Any, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let config: RingHashProto = parse(sink, any)?;
    match HashFunction::try_from(config.hash_function) {
        Ok(HashFunction::DefaultHash | HashFunction::XxHash) => {}
        _ => return sink.error_at("hash_function", "must be XX_HASH"),
    }
    common.consistent_hashing.use_hostname_for_hashing |= config.use_hostname_for_hashing;
    let factor = uint32(config.hash_balance_factor.as_ref());
    balance_factor(sink, factor, common);
    consistent_hashing(sink, config.consistent_hashing_lb_config.as_ref(), common);
    common.locality_weighted |= config.locality_weighted_lb_config.is_some();
    let smallest = config.minimum_ring_size.as_ref();
    ring_hash(sink, smallest, config.maximum_ring_size.as_ref())
}

fn maglev_policy(sink: &mut Sink, any: &Any, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let config: Maglev = parse(sink, any)?;
    consistent_hashing(sink, config.consistent_hashing_lb_config.as_ref(), common);
    common.locality_weighted |= config.locality_weighted_lb_config.is_some();
    maglev(sink, config.table_size.as_ref())
}

fn pick_first(sink: &mut Sink, any: &Any) -> Option<LbPolicy> {
    let config: PickFirst = parse(sink, any)?;
    Some(LbPolicy::PickFirst {
        shuffle_address_list: config.shuffle_address_list,
    })
}

fn client_side_wrr(sink: &mut Sink, any: &Any, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let config: ClientSideWeightedRoundRobin = parse(sink, any)?;
    report!(sink, config, [oob_reporting_config]);
    common.slow_start = decode_slow_start(sink, config.slow_start_config.as_ref())?;
    let defaults = ClientSideWrr::default();
    let mut period = |name: &str, value: Option<&DurationProto>, default| match value {
        None => Some(default),
        Some(_) => duration(sink, name, value),
    };
    let blackout = config.blackout_period.as_ref();
    let blackout_period = period("blackout_period", blackout, defaults.blackout_period);
    let expiration_period = period(
        "weight_expiration_period",
        config.weight_expiration_period.as_ref(),
        defaults.weight_expiration_period,
    );
    let update_period = period(
        "weight_update_period",
        config.weight_update_period.as_ref(),
        defaults.weight_update_period,
    );
    let is_oob = config.enable_oob_load_report.is_some_and(|on| on.value);
    let oob_period = config.oob_reporting_period.as_ref();
    let oob_period = match oob_period.filter(|_| is_oob) {
        None => Some(OOB_REPORTING_PERIOD_DEFAULT),
        Some(_) => duration(sink, "oob_reporting_period", oob_period),
    };
    let penalty = config
        .error_utilization_penalty
        .map_or(1.0, |value| value.value);
    if penalty.is_nan() || penalty < 0.0 {
        return sink.error_at("error_utilization_penalty", "must be 0 or more");
    }
    Some(LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr {
        blackout_period: blackout_period?,
        weight_expiration_period: expiration_period?,
        weight_update_period: update_period?.max(WEIGHT_UPDATE_PERIOD_MIN),
        error_utilization_penalty: penalty.into(),
        metric_names_for_computing_utilization: config.metric_names_for_computing_utilization,
        oob_reporting_period: Some(oob_period?).filter(|_| is_oob),
    }))
}

fn wrr_locality(
    sink: &mut Sink,
    any: &Any,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<LbPolicy> {
    let config: WrrLocality = parse(sink, any)?;
    common.locality_weighted = true;
    match &config.endpoint_picking_policy {
        Some(inner) => sink.field("endpoint_picking_policy", |sink| {
            walk(sink, inner, common, depth + 1)
        }),
        None => sink.error_at("endpoint_picking_policy", "is missing"),
    }
}

fn random_subsetting(
    sink: &mut Sink,
    any: &Any,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<LbPolicy> {
    let config: RandomSubsetting = parse(sink, any)?;
    common.subsetting = Subsetting::Random;
    let size = uint32(config.subset_size.as_ref());
    subsetting(sink, size, config.child_policy.as_ref(), common, depth)
}

fn deterministic_subsetting(
    sink: &mut Sink,
    any: &Any,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<LbPolicy> {
    let config: DeterministicSubsetting = parse(sink, any)?;
    common.subsetting = Subsetting::Deterministic;
    let size = uint32(config.subset_size.as_ref());
    subsetting(sink, size, config.child_policy.as_ref(), common, depth)
}

fn subsetting(
    sink: &mut Sink,
    size: Option<u32>,
    child: Option<&LoadBalancingPolicy>,
    common: &mut CommonLbConfig,
    depth: usize,
) -> Option<LbPolicy> {
    match size {
        None | Some(0) => return sink.error_at("subset_size", "must be 1 or more"),
        size => common.subset_size = size,
    }
    match child {
        Some(inner) => sink.field("child_policy", |sink| walk(sink, inner, common, depth + 1)),
        None => sink.error_at("child_policy", "is missing"),
    }
}

fn least_request(
    sink: &mut Sink,
    choice_count: Option<u32>,
    bias: Option<&RuntimeDouble>,
) -> Option<LbPolicy> {
    let choice_count = match choice_count.unwrap_or(2) {
        0 | 1 => return sink.error_at("choice_count", "must be 2 or more"),
        count => count.min(CHOICE_COUNT_MAX),
    };
    let active_request_bias = bias.map_or(1.0, |bias| bias.default_value);
    if !active_request_bias.is_finite() || active_request_bias < 0.0 {
        return sink.error_at("active_request_bias", "must be 0 or more");
    }
    Some(LbPolicy::LeastRequest(LeastRequest {
        choice_count,
        active_request_bias,
    }))
}

fn ring_hash(
    sink: &mut Sink,
    smallest: Option<&UInt64Value>,
    largest: Option<&UInt64Value>,
) -> Option<LbPolicy> {
    let defaults = RingHash::default();
    let config = RingHash {
        minimum_ring_size: smallest.map_or(defaults.minimum_ring_size, |size| size.value),
        maximum_ring_size: largest.map_or(defaults.maximum_ring_size, |size| size.value),
    };
    for (name, size) in [
        ("minimum_ring_size", config.minimum_ring_size),
        ("maximum_ring_size", config.maximum_ring_size),
    ] {
        if !(1..=RING_SIZE_MAX).contains(&size) {
            return sink.error_at(name, format!("must be 1 to {RING_SIZE_MAX}, not {size}"));
        }
    }
    if config.minimum_ring_size > config.maximum_ring_size {
        return sink.error_at("minimum_ring_size", "is more than maximum_ring_size");
    }
    Some(LbPolicy::RingHash(config))
}

fn maglev(sink: &mut Sink, size: Option<&UInt64Value>) -> Option<LbPolicy> {
    let default = u64::from(MAGLEV_TABLE_SIZE_DEFAULT);
    let size = size.map_or(default, |size| size.value);
    let table_size = u32::try_from(size).ok();
    match table_size.filter(|size| *size <= MAGLEV_TABLE_SIZE_MAX && is_prime(*size)) {
        Some(table_size) => Some(LbPolicy::Maglev { table_size }),
        None => {
            let reason = format!("must be a prime, at most {MAGLEV_TABLE_SIZE_MAX}, not {size}");
            sink.error_at("table_size", reason)
        }
    }
}

fn is_prime(number: u32) -> bool {
    let is_divisor = |divisor: &u32| number.is_multiple_of(*divisor);
    number > 1
        && !(2..)
            .take_while(|divisor| divisor * divisor <= number)
            .any(|d| is_divisor(&d))
}

fn consistent_hashing(
    sink: &mut Sink,
    config: Option<&ConsistentHashingLbConfig>,
    common: &mut CommonLbConfig,
) {
    if let Some(config) = config {
        sink.field("consistent_hashing_lb_config", |sink| {
            report!(sink, config, [hash_policy]);
            common.consistent_hashing.use_hostname_for_hashing |= config.use_hostname_for_hashing;
            let factor = uint32(config.hash_balance_factor.as_ref());
            balance_factor(sink, factor, common);
        });
    }
}

fn balance_factor(sink: &mut Sink, factor: Option<u32>, common: &mut CommonLbConfig) {
    match factor {
        None => {}
        Some(factor) if factor >= 100 => {
            common.consistent_hashing.hash_balance_factor = Some(factor);
        }
        Some(factor) => {
            sink.error_at::<()>("hash_balance_factor", format!("{factor} is below 100"));
        }
    }
}

/// The message of a cluster as that of a policy, which has the same fields.
fn newer_slow_start(config: &OldSlowStart) -> SlowStartConfig {
    SlowStartConfig {
        slow_start_window: config.slow_start_window,
        aggression: config.aggression.clone(),
        min_weight_percent: config.min_weight_percent,
    }
}

/// The outer `None` is an error.
fn decode_slow_start(
    sink: &mut Sink,
    config: Option<&SlowStartConfig>,
) -> Option<Option<SlowStart>> {
    let Some(config) = config else {
        return Some(None);
    };
    sink.field("slow_start_config", |sink| {
        let window = duration(sink, "slow_start_window", config.slow_start_window.as_ref());
        let window = window.unwrap_or(Duration::ZERO);
        if window.is_zero() {
            // Envoy: there is none.
            return Some(None);
        }
        let defaults = SlowStart::new(window);
        let aggression = config.aggression.as_ref().map(|value| value.default_value);
        let aggression = aggression.unwrap_or(defaults.aggression);
        if !aggression.is_finite() || aggression <= 0.0 {
            return sink.error_at("aggression", "must be above 0");
        }
        let least = config.min_weight_percent.map(|percent| percent.value);
        let least = least.unwrap_or(defaults.min_weight_percent);
        if !(0.0..=100.0).contains(&least) {
            return sink.error_at("min_weight_percent", format!("{least} is not 0 to 100"));
        }
        Some(Some(SlowStart {
            window,
            aggression,
            min_weight_percent: least,
        }))
    })
}

fn decode_common(
    sink: &mut Sink,
    proto: &ClusterProto,
    policy: Option<&LbPolicy>,
    common: &mut CommonLbConfig,
) {
    let Some(config) = &proto.common_lb_config else {
        return;
    };
    sink.field("common_lb_config", |sink| {
        report!(
            sink,
            config,
            [
                close_connections_on_host_set_change,
                ignore_new_hosts_until_first_hc,
                update_merge_window,
            ]
        );
        if let Some(hashing) = &config.consistent_hashing_lb_config {
            sink.field("consistent_hashing_lb_config", |sink| {
                common.consistent_hashing.use_hostname_for_hashing |=
                    hashing.use_hostname_for_hashing;
                let factor = uint32(hashing.hash_balance_factor.as_ref());
                balance_factor(sink, factor, common);
            });
        }
        if let Some(Percent { value }) = config.healthy_panic_threshold {
            if (0.0..=100.0).contains(&value) {
                common.healthy_panic_threshold = Some(value as u32);
            } else {
                let reason = format!("{value} is not 0 to 100");
                sink.error_at::<()>("healthy_panic_threshold", reason);
            }
        }
        let localities = config.locality_config_specifier.as_ref();
        let is_legacy = proto.load_balancing_policy.is_none();
        zone_aware::of_cluster(sink, localities, is_legacy, policy, common);
        if let Some(set) = &config.override_host_status {
            common.override_host_status = sink.each(
                "override_host_status.statuses",
                &set.statuses,
                |sink, status| {
                    health_status(*status).map_or_else(|reason| sink.error(reason), Some)
                },
            );
        }
    });
}
