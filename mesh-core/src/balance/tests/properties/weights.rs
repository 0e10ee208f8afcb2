//! Shares by weight, within a hundredth.

use std::time::Instant;

use super::*;
use crate::{
    config::SlowStart,
    observed::{LoadReport, Observation},
};

/// Enough that a sequence which spreads evenly gives the lightest one its share within 1 %.
fn picks(weights: &[f64]) -> usize {
    let least = weights.iter().copied().fold(f64::INFINITY, f64::min);
    (weights.iter().sum::<f64>() / least * 400.0) as usize
}

#[track_caller]
fn within_one_percent(counts: &[usize], weights: &[f64]) {
    let (picks, total) = (counts.iter().sum::<usize>(), weights.iter().sum::<f64>());
    for (count, weight) in counts.iter().zip(weights) {
        let expected = picks as f64 * weight / total;
        let off = (*count as f64 - expected).abs() / expected;
        assert!(
            off <= 0.01,
            "{count}, not {expected:.0}: {counts:?} {weights:?}"
        );
    }
}

/// gRFC A58's weight, as its text has it.
fn weight_of(report: &LoadReport, penalty: f64) -> f64 {
    let errors = report.errors_per_second / report.requests_per_second;
    report.requests_per_second / (report.application_utilization + errors * penalty)
}

#[test]
fn client_side_weights_are_those_of_the_reports() {
    cases(|rng| {
        let size = between(rng, 2, 8) as usize;
        let endpoints = ready(size);
        let config = ClientSideWrr {
            blackout_period: Duration::ZERO,
            error_utilization_penalty: rng.below(3) as f64,
            ..ClientSideWrr::default()
        };
        let penalty = config.error_utilization_penalty;
        let picker = picker(&LbPolicy::ClientSideWeightedRoundRobin(config), &endpoints);
        let now = Instant::now();
        let mut weights = Vec::new();
        for index in 0..size {
            let requests = between(rng, 50, 200) as f64;
            let report = LoadReport {
                application_utilization: between(rng, 10, 90) as f64 / 100.0,
                requests_per_second: requests,
                errors_per_second: rng.below(50) as f64,
                ..LoadReport::default()
            };
            // One of them says nothing, and counts as the mean.
            if index == 0 && size > 2 {
                weights.push(None);
                continue;
            }
            weights.push(Some(weight_of(&report, penalty)));
            let observation = Observation {
                now,
                latency: Duration::from_millis(1),
                is_success: true,
                report: Some(&report),
            };
            picker.observe(&endpoints, index, &observation);
        }
        let known: Vec<_> = weights.iter().flatten().copied().collect();
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let weights: Vec<_> = weights
            .iter()
            .map(|weight| weight.unwrap_or(mean))
            .collect();
        picker.refresh(&endpoints, now);
        let counts = count(&picker, &endpoints, picks(&weights));
        within_one_percent(&counts, &weights);
    });
}

#[test]
fn endpoint_weights_hold_among_those_that_are_ready() {
    cases(|rng| {
        let mut endpoints = ready(between(rng, 2, 10) as usize);
        for endpoint in &mut endpoints {
            endpoint.weight = between(rng, 1, 20) as u32;
        }
        let gone = rng.below(endpoints.len() as u64) as usize;
        let is_gone = endpoints.len() > 2 && rng.below(2) == 0;
        if is_gone {
            set(&endpoints[gone], Connectivity::TransientFailure);
        }
        let weights: Vec<_> = endpoints
            .iter()
            .map(|endpoint| match endpoint.stats.is_ready() {
                true => f64::from(endpoint.weight),
                false => 0.0,
            })
            .collect();
        let total: f64 = weights.iter().sum();
        let chances: Vec<_> = weights.iter().map(|weight| weight / total).collect();
        for policy in [
            LbPolicy::RoundRobin,
            LbPolicy::least_request(2),
            LbPolicy::Random,
        ] {
            let counts = count(&picker(&policy, &endpoints), &endpoints, 30_000);
            are_likely(&counts, &chances);
        }
    });
}

#[test]
fn slow_start_multiplies_each_weight_by_envoys_factor() {
    cases(|rng| {
        let window = Duration::from_secs(between(rng, 10, 300));
        let slow_start = SlowStart {
            aggression: between(rng, 5, 30) as f64 / 10.0,
            min_weight_percent: between(rng, 5, 50) as f64,
            ..SlowStart::new(window)
        };
        let common = CommonLbConfig {
            slow_start: Some(slow_start),
            ..CommonLbConfig::default()
        };
        let mut endpoints = ready(between(rng, 2, 6) as usize);
        let start = Instant::now();
        let now = start + window * 2;
        let mut weights = Vec::new();
        for endpoint in &mut endpoints {
            endpoint.weight = between(rng, 1, 4) as u32;
            let age = Duration::from_secs(rng.below(2 * window.as_secs()));
            endpoint.stats.observe(now - age);
            let part = age.as_secs_f64().max(1.0) / window.as_secs_f64();
            let factor = part.powf(1.0 / slow_start.aggression);
            let factor = factor.max(slow_start.min_weight_percent / 100.0).min(1.0);
            weights.push(f64::from(endpoint.weight) * factor);
        }
        let picker = one_list(&LbPolicy::RoundRobin, &common, &endpoints);
        picker.refresh(&endpoints, now);
        let counts = count(&picker, &endpoints, picks(&weights));
        within_one_percent(&counts, &weights);
    });
}

/// A picker of one priority and locality.
pub(super) fn one_list(
    policy: &LbPolicy,
    common: &CommonLbConfig,
    endpoints: &[ClusterEndpoint],
) -> Picker {
    let all = Group {
        tier: 0,
        weight: 1,
        range: 0..endpoints.len(),
        total: endpoints.len(),
    };
    with_groups(policy, common, None, vec![all], endpoints)
}

fn with_groups(
    policy: &LbPolicy,
    common: &CommonLbConfig,
    overprovisioning_factor: Option<u32>,
    groups: Vec<Group>,
    endpoints: &[ClusterEndpoint],
) -> Picker {
    let total = groups.iter().map(|group| group.total).sum();
    Picker::build(&Parts {
        policy,
        common,
        local: None,
        overprovisioning_factor,
        endpoints,
        sources: &[],
        subsets: None,
        groups,
        tier_parts: vec![TierParts {
            total,
            ..TierParts::default()
        }],
        single_probe: false,
        tiers: &Arc::default(),
        factories: &LbPolicyFactories::new(),
        start: 3,
    })
    .unwrap()
}

#[test]
fn localities_have_their_weights_and_with_a_factor_less_by_what_they_lost() {
    cases(|rng| {
        let common = CommonLbConfig {
            locality_weighted: true,
            ..CommonLbConfig::default()
        };
        let factor = [None, Some(100), Some(140), Some(200)][rng.below(4) as usize];
        let (mut groups, mut shares, mut start) = (Vec::new(), Vec::new(), 0);
        for _ in 0..between(rng, 2, 5) {
            let usable = between(rng, 1, 10) as usize;
            // Some are declared unhealthy, and not in the list.
            let total = usable + rng.below(4) as usize;
            groups.push(Group {
                tier: 0,
                weight: between(rng, 1, 9) as u32,
                range: start..start + usable,
                total,
            });
            start += usable;
        }
        let endpoints = ready(start);
        for group in &groups {
            let lost = rng.below(group.range.len() as u64 + 1) as usize;
            for endpoint in &endpoints[group.range.clone()][..lost] {
                endpoint.stats.set_ejected(true);
            }
            let left = (group.range.len() - lost) as f64;
            let share = match factor {
                _ if left == 0.0 => 0.0,
                None => 1.0,
                Some(factor) => {
                    f64::min(1.0, f64::from(factor) / 100.0 * left / group.total as f64)
                }
            };
            shares.push(share * f64::from(group.weight));
        }
        let sum: f64 = shares.iter().sum();
        if sum == 0.0 {
            return;
        }
        let ranges: Vec<_> = groups.iter().map(|group| group.range.clone()).collect();
        let picker = with_groups(&LbPolicy::Random, &common, factor, groups, &endpoints);
        picker.refresh(&endpoints, Instant::now());
        let counts = count(&picker, &endpoints, 40_000);
        let counts: Vec<usize> = ranges
            .into_iter()
            .map(|range| counts[range].iter().sum())
            .collect();
        let chances: Vec<_> = shares.iter().map(|share| share / sum).collect();
        are_likely(&counts, &chances);
    });
}

/// The table of Envoy's documentation: X and Y at weights 1 and 2, Y whole.
#[test]
fn a_locality_that_loses_endpoints_has_the_share_that_envoy_documents() {
    for (left, expected) in [(70, 0.33), (69, 0.32), (50, 0.26), (25, 0.15), (0, 0.0)] {
        let endpoints = ready(200);
        for endpoint in &endpoints[left..100] {
            endpoint.stats.set_ejected(true);
        }
        let group = |weight, range| Group {
            tier: 0,
            weight,
            range,
            total: 100,
        };
        let common = CommonLbConfig {
            locality_weighted: true,
            ..CommonLbConfig::default()
        };
        let groups = vec![group(1, 0..100), group(2, 100..200)];
        let picker = with_groups(&LbPolicy::Random, &common, Some(140), groups, &endpoints);
        let counts = count(&picker, &endpoints, 50_000);
        let share = counts[..100].iter().sum::<usize>() as f64 / 50_000.0;
        assert!((share - expected).abs() < 0.012, "{left} left: {share}");
    }
}
