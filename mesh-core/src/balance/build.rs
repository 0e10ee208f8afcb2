//! From a cluster's policy and endpoints to its [`Picker`].
//!
//! Stage 6. The plainest algorithm that does what is declared: localities and priorities cost nothing
//! where there is one, weights where all are equal.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    ClusterEndpoint, LbPolicyFactory, Picker, TierState,
    bound::Bound,
    by_metadata::ByMetadata,
    client_side_wrr::ClientSideWrr,
    least_request::LeastRequest,
    locality::{Localities, Locality},
    maglev::Maglev,
    peak_ewma::PeakEwma,
    pick_first::PickFirst,
    prequal::Prequal,
    priority::{Connecting, Tier, TierParts, Tiers},
    probing::Probing,
    ring_hash::RingHash,
    round_robin::RoundRobin,
    spill_over::SpillOver,
    weighted::{WeightedLeastRequest, WeightedRoundRobin, Weights},
    zone::Zones,
};
use crate::{
    config::{
        CommonLbConfig, Endpoint, HEALTHY_PANIC_THRESHOLD_DEFAULT, LbPolicy, LocalZones, Subsets,
    },
    rng::{Rng, SplitMix64},
};

/// Policies of the application, by name.
pub(crate) type LbPolicyFactories = BTreeMap<String, Arc<dyn LbPolicyFactory>>;

/// Endpoints of one locality and priority, next to each other in a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The priority; degraded endpoints have their own.
    pub(crate) tier: usize,
    /// Share among the localities of the priority.
    pub(crate) weight: u32,
    pub(crate) range: Range<usize>,
    /// How many the locality has, with those that are not usable.
    pub(crate) total: usize,
}

/// What a picker is made from.
#[derive(Debug)]
pub(crate) struct Parts<'p> {
    pub(crate) policy: &'p LbPolicy,
    pub(crate) common: &'p CommonLbConfig,
    /// Where the caller is, for clusters that want to know.
    pub(crate) local: Option<&'p Arc<LocalZones>>,
    pub(crate) overprovisioning_factor: Option<u32>,
    pub(crate) endpoints: &'p [ClusterEndpoint],
    /// As declared, one for each of `endpoints`.
    pub(crate) sources: &'p [&'p Endpoint],
    pub(crate) subsets: Option<&'p Subsets>,
    /// In the order of priorities, without empty ones.
    pub(crate) groups: Vec<Group>,
    /// What else there is to say of each [`tier`](Group::tier).
    pub(crate) tier_parts: Vec<TierParts>,
    /// Whether ejected endpoints come back by a single request.
    pub(crate) single_probe: bool,
    pub(crate) tiers: &'p Arc<TierState>,
    pub(crate) factories: &'p LbPolicyFactories,
    /// Seeds what must differ between processes.
    pub(crate) start: u64,
}

impl Picker {
    /// A picker for endpoints that all have the same priority and locality.
    ///
    /// # Errors
    /// When the policy is a [custom](LbPolicy::Custom) one.
    #[cfg(test)]
    pub(crate) fn flat(
        policy: &LbPolicy,
        endpoints: &[ClusterEndpoint],
        start: u64,
    ) -> Result<Self, String> {
        let common = CommonLbConfig::default();
        Self::build(&Parts {
            policy,
            common: &common,
            local: None,
            overprovisioning_factor: None,
            endpoints,
            sources: &[],
            subsets: None,
            groups: vec![Group {
                tier: 0,
                weight: 1,
                range: 0..endpoints.len(),
                total: endpoints.len(),
            }],
            tier_parts: vec![TierParts {
                total: endpoints.len(),
                ..TierParts::default()
            }],
            single_probe: false,
            tiers: &Arc::default(),
            factories: &LbPolicyFactories::new(),
            start,
        })
    }

    /// # Errors
    /// Why there can be none.
    pub(crate) fn build(parts: &Parts<'_>) -> Result<Self, String> {
        let mut picker = Self::build_tiers(parts)?;
        if let Some(subsets) = parts.subsets {
            picker = Self::Other(Box::new(ByMetadata::new(subsets, picker, parts)?));
        }
        Ok(match parts.single_probe {
            true => Self::Other(Box::new(Probing::new(picker))),
            false => picker,
        })
    }

    pub(super) fn build_tiers(parts: &Parts<'_>) -> Result<Self, String> {
        let spill_over = SpillOver {
            overprovisioning_factor: parts.overprovisioning_factor,
            panic_threshold: parts.common.panic_threshold(),
            fails_on_panic: parts.common.fails_on_panic(),
        };
        let can_panic = spill_over.panic_threshold.is_some();
        let mut rng = SplitMix64::new(parts.start);
        let mut tiers: Vec<Tier> = Vec::new();
        for (index, tier_parts) in parts.tier_parts.iter().enumerate() {
            let groups: Vec<_> = parts.groups.iter().filter(|g| g.tier == index).collect();
            let start = groups.first().map_or(0, |group| group.range.start);
            let end = groups.last().map_or(0, |group| group.range.end);
            if tier_parts.is_degraded {
                // A panic of the priority uses these too.
                let is_same = |tier: &&mut Tier| tier.parts.priority == tier_parts.priority;
                if let Some(healthy) = tiers.iter_mut().find(is_same) {
                    healthy.degraded = start..end;
                }
            }
            tiers.push(Tier {
                parts: tier_parts.clone(),
                range: start..end,
                degraded: 0..0,
                picker: tier(parts, tier_parts, &groups, start..end, &mut rng)?,
                is_panicking: AtomicBool::new(false),
            });
        }
        let is_all = |tier: &Tier| tier.range.len() == parts.endpoints.len();
        if tiers.len() == 1 && !can_panic && is_all(&tiers[0]) {
            return Ok(tiers.swap_remove(0).picker);
        }
        if tiers.is_empty() {
            return leaf(parts, 0..0, &[], rng.next_u64());
        }
        let connecting = Connecting::of(parts.policy);
        let state = Arc::clone(parts.tiers);
        let tiers = Tiers::new(tiers, spill_over, connecting, state, parts.endpoints);
        Ok(Self::Other(Box::new(tiers)))
    }
}

/// The picker of one priority.
fn tier(
    parts: &Parts<'_>,
    of_tier: &TierParts,
    groups: &[&Group],
    range: Range<usize>,
    rng: &mut SplitMix64,
) -> Result<Picker, String> {
    if groups.len() < 2 || parts.policy.is_one_list() {
        return one_list(parts, groups, range, rng);
    }
    if parts.common.locality_weighted {
        let children = localities(parts, groups, &range, rng)?;
        let factor = parts.overprovisioning_factor;
        let localities = Localities::new(children, factor, &parts.endpoints[range]);
        return Ok(Picker::Other(Box::new(localities)));
    }
    // As in Envoy, zones count in the first priority alone.
    let is_first = of_tier.priority == 0 && !of_tier.is_degraded;
    let all = one_list(parts, groups, range.clone(), rng)?;
    match (parts.common.zone_aware, parts.local) {
        (Some(config), Some(local)) if is_first => {
            let threshold = parts.common.healthy_panic_threshold;
            let threshold = threshold.unwrap_or(HEALTHY_PANIC_THRESHOLD_DEFAULT);
            let zones = localities(parts, groups, &range, rng)?;
            let endpoints = &parts.endpoints[range];
            let zones = Zones::new(config, local, threshold, zones, all, endpoints);
            Ok(Picker::Other(Box::new(zones)))
        }
        _ => Ok(all),
    }
}

/// One list of endpoints, where the weight of a locality is a part of their own.
fn one_list(
    parts: &Parts<'_>,
    groups: &[&Group],
    range: Range<usize>,
    rng: &mut SplitMix64,
) -> Result<Picker, String> {
    let mut weights = Vec::new();
    for group in groups {
        let own = weights_of(parts, group);
        let sum: f64 = own.iter().sum();
        let scale = if parts.common.locality_weighted && parts.policy.is_one_list() {
            // gRFC A113: the product of the shares, or a locality of many endpoints would count
            // as often as it has them.
            f64::from(group.weight) / sum
        } else {
            1.0
        };
        weights.extend(own.iter().map(|weight| weight * scale));
    }
    leaf(parts, range, &weights, rng.next_u64())
}

/// A picker for each locality of a priority, whose endpoints are at `range`.
fn localities(
    parts: &Parts<'_>,
    groups: &[&Group],
    range: &Range<usize>,
    rng: &mut SplitMix64,
) -> Result<Vec<Locality>, String> {
    let locality = |group: &&Group| {
        let weights = weights_of(parts, group);
        Ok(Locality {
            weight: group.weight,
            // Inside of the priority.
            range: group.range.start - range.start..group.range.end - range.start,
            total: group.total,
            picker: leaf(parts, group.range.clone(), &weights, rng.next_u64())?,
        })
    };
    groups.iter().map(locality).collect()
}

fn weights_of(parts: &Parts<'_>, group: &Group) -> Vec<f64> {
    let endpoints = parts.endpoints[group.range.clone()].iter();
    endpoints
        .map(|endpoint| f64::from(endpoint.weight))
        .collect()
}

/// The picker of a list of endpoints.
fn leaf(
    parts: &Parts<'_>,
    range: Range<usize>,
    weights: &[f64],
    start: u64,
) -> Result<Picker, String> {
    let endpoints = &parts.endpoints[range.clone()];
    let hashing = &parts.common.consistent_hashing;
    let bound = || Bound::new(hashing.hash_balance_factor, weights);
    // Where endpoints are on a ring or in a table.
    let keys = || {
        let key = |place: usize| match parts.sources.get(place) {
            Some(source)
                if hashing.use_hostname_for_hashing && !source.details().hostname.is_empty() =>
            {
                source.details().hostname.clone()
            }
            _ => parts.endpoints[place].address.to_string(),
        };
        range.clone().map(key).collect::<Vec<_>>()
    };
    let slow_start = parts.common.slow_start;
    let is_plain = slow_start.is_none() && weights.iter().all(|weight| *weight == weights[0]);
    let table = || Weights::new(weights.to_vec(), slow_start);
    Ok(match parts.policy {
        LbPolicy::RoundRobin if is_plain => Picker::RoundRobin(RoundRobin::new(start)),
        LbPolicy::RoundRobin => Picker::Other(Box::new(WeightedRoundRobin::new(table(), start))),
        LbPolicy::LeastRequest(config) if is_plain => {
            Picker::LeastRequest(LeastRequest::new(config.choice_count))
        }
        LbPolicy::LeastRequest(config) => {
            Picker::Other(Box::new(WeightedLeastRequest::new(*config, table())))
        }
        LbPolicy::Random if is_plain => Picker::LeastRequest(LeastRequest::new(1)),
        LbPolicy::Random => {
            let config = crate::config::LeastRequest {
                choice_count: 1,
                active_request_bias: 0.0,
            };
            Picker::Other(Box::new(WeightedLeastRequest::new(config, table())))
        }
        LbPolicy::ClientSideWeightedRoundRobin(config) => {
            let count = endpoints.len();
            Picker::Other(Box::new(ClientSideWrr::new(
                config.clone(),
                slow_start,
                count,
                start,
            )))
        }
        LbPolicy::RingHash(config) => {
            Picker::Other(Box::new(RingHash::new(*config, &keys(), weights, bound())))
        }
        LbPolicy::Maglev { table_size } => Picker::Other(Box::new(Maglev::new(
            *table_size,
            &keys(),
            weights,
            bound(),
        ))),
        LbPolicy::PickFirst {
            shuffle_address_list,
        } => Picker::Other(Box::new(PickFirst::new(
            endpoints,
            weights,
            *shuffle_address_list,
            start,
        ))),
        LbPolicy::PeakEwma(config) => Picker::Other(Box::new(PeakEwma::new(*config))),
        LbPolicy::Prequal(config) => Picker::Other(Box::new(Prequal::new(*config))),
        LbPolicy::Custom { name, config } => {
            let Some(factory) = parts.factories.get(name) else {
                return Err(format!(
                    "no policy {name:?} was given to this process (Compiler::with_policy)"
                ));
            };
            Picker::Other(
                factory
                    .build(config, endpoints)
                    .map_err(|reason| format!("policy {name:?}: {reason}"))?,
            )
        }
    })
}
