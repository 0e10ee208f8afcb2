//! Weights: endpoints' own, of localities, and those that grow.

use std::time::Instant;

use super::*;
use crate::config::{LeastRequest, SlowStart};

fn weighted(weights: &[u32]) -> Vec<ClusterEndpoint> {
    let mut endpoints = ready(weights.len());
    for (endpoint, weight) in endpoints.iter_mut().zip(weights) {
        endpoint.weight = *weight;
    }
    endpoints
}

/// Whether counts are in proportion to weights, within `percent` of each.
#[track_caller]
fn in_proportion(counts: &[usize], weights: &[u32], percent: f64) {
    let picks: usize = counts.iter().sum();
    let total: u32 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        let expected = picks as f64 * f64::from(*weight) / f64::from(total);
        let off = (*count as f64 - expected).abs() / expected * 100.0;
        assert!(
            off <= percent,
            "{count} for {weight}: {off:.1} % off, {counts:?}"
        );
    }
}

fn random_weights(rng: &mut SplitMix64, count: u64, most: u64) -> Vec<u32> {
    (0..count).map(|_| 1 + rng.below(most) as u32).collect()
}

#[test]
fn weighted_round_robin_is_within_one_percent_of_any_weights() {
    let mut rng = SplitMix64::new(9);
    for round in 0..30 {
        let count = 2 + rng.below(30);
        let weights = random_weights(&mut rng, count, 1 + round * 30);
        let endpoints = weighted(&weights);
        let total: u32 = weights.iter().sum();
        let picker = picker(&LbPolicy::RoundRobin, &endpoints);
        // Enough that the lightest one comes some hundred times.
        let counts = count_many(&picker, &endpoints, total as usize * 400);
        in_proportion(&counts, &weights, 1.0);
    }
}

fn count_many(picker: &Picker, endpoints: &[ClusterEndpoint], picks: usize) -> Vec<usize> {
    count(picker, endpoints, picks.min(2_000_000))
}

#[test]
fn weighted_round_robin_spreads_each_endpoint_over_time() {
    let weights = [1, 2, 5, 8];
    let endpoints = weighted(&weights);
    let picker = picker(&LbPolicy::RoundRobin, &endpoints);
    let mut rng = SplitMix64::new(1);
    let mut last = [None; 4];
    for at in 0..10_000 {
        let mut context = PickContext::new(&mut rng, &[]);
        let PickResult::Endpoint(index) = picker.pick(&endpoints, &mut context) else {
            panic!()
        };
        if let Some(last) = last[index].replace(at) {
            let even = 16 / weights[index];
            // Three distances: none is more than about three times another.
            assert!(at - last <= even as i32 * 3, "{index} after {}", at - last);
        }
    }
}

#[test]
fn least_request_and_random_follow_weights_without_load() {
    let weights = [1, 3, 6];
    let endpoints = weighted(&weights);
    let no_bias = LbPolicy::LeastRequest(LeastRequest {
        choice_count: 2,
        active_request_bias: 0.0,
    });
    for policy in [LbPolicy::least_request(2), no_bias, LbPolicy::Random] {
        let counts = count(&picker(&policy, &endpoints), &endpoints, 1_000_000);
        in_proportion(&counts, &weights, 1.0);
    }
}

#[test]
fn least_request_keeps_load_in_proportion_to_weights() {
    let weights = [1, 4];
    let endpoints = weighted(&weights);
    let picker = picker(&LbPolicy::least_request(2), &endpoints);
    // Nothing ends: what is in flight is what was picked.
    let mut rng = SplitMix64::new(5);
    for _ in 0..10_000 {
        let mut context = PickContext::new(&mut rng, &[]);
        if let PickResult::Endpoint(index) = picker.pick(&endpoints, &mut context) {
            endpoints[index].stats.begin();
        }
    }
    let loads: Vec<_> = endpoints
        .iter()
        .map(|e| e.stats.in_flight() as usize)
        .collect();
    in_proportion(&loads, &weights, 1.0);
}

#[test]
fn an_endpoint_that_is_not_ready_gives_its_share_to_all_by_weight() {
    let weights = [50, 1, 2, 3];
    let endpoints = weighted(&weights);
    set(&endpoints[0], Connectivity::TransientFailure);
    for policy in [
        LbPolicy::RoundRobin,
        LbPolicy::least_request(2),
        LbPolicy::Random,
    ] {
        let counts = count(&picker(&policy, &endpoints), &endpoints, 300_000);
        assert_eq!(counts[0], 0);
        in_proportion(&counts[1..], &weights[1..], 3.0);
    }
}

/// A picker of localities, each with its weight and its endpoints.
fn localities(policy: &LbPolicy, of: &[(u32, usize)], endpoints: &[ClusterEndpoint]) -> Picker {
    let mut groups = Vec::new();
    let mut start = 0;
    for (weight, count) in of {
        groups.push(Group {
            tier: 0,
            weight: *weight,
            range: start..start + count,
            total: *count,
        });
        start += count;
    }
    let common = CommonLbConfig {
        locality_weighted: true,
        ..CommonLbConfig::default()
    };
    Picker::build(&Parts {
        policy,
        common: &common,
        local: None,
        overprovisioning_factor: None,
        endpoints,
        sources: &[],
        subsets: None,
        groups,
        tier_parts: vec![TierParts::default()],
        single_probe: false,
        tiers: &Arc::default(),
        factories: &LbPolicyFactories::new(),
        start: 7,
    })
    .unwrap()
}

#[test]
fn localities_share_by_weight_whatever_they_hold() {
    let endpoints = ready(5);
    for policy in even() {
        let picker = localities(&policy, &[(90, 1), (10, 4)], &endpoints);
        let counts = count(&picker, &endpoints, 400_000);
        in_proportion(&[counts[0], counts[1..].iter().sum()], &[90, 10], 2.0);
        in_proportion(&counts[1..], &[1; 4], 5.0);
    }
}

#[test]
fn a_locality_without_a_ready_endpoint_gives_its_share_to_the_others() {
    let endpoints = ready(4);
    set(&endpoints[0], Connectivity::Connecting);
    let picker = localities(
        &LbPolicy::RoundRobin,
        &[(70, 1), (10, 2), (20, 1)],
        &endpoints,
    );
    let counts = count(&picker, &endpoints, 100_000);
    assert_eq!(counts[0], 0);
    in_proportion(&[counts[1] + counts[2], counts[3]], &[10, 20], 3.0);
    // A retry leaves its locality rather than use an endpoint again.
    let mut rng = SplitMix64::new(2);
    let previous = [endpoints[3].address, endpoints[1].address];
    for _ in 0..100 {
        let mut context = PickContext::new(&mut rng, &previous);
        assert_eq!(
            picker.pick(&endpoints, &mut context),
            PickResult::Endpoint(2)
        );
    }
}

#[test]
fn a_new_endpoint_gets_a_growing_share() {
    let window = Duration::from_secs(100);
    let endpoints = ready(4);
    let common = CommonLbConfig {
        slow_start: Some(SlowStart::new(window)),
        ..CommonLbConfig::default()
    };
    let tiers = Arc::default();
    for policy in [LbPolicy::RoundRobin, LbPolicy::least_request(2)] {
        let picker = Picker::build(&Parts {
            policy: &policy,
            common: &common,
            local: None,
            overprovisioning_factor: None,
            endpoints: &endpoints,
            sources: &[],
            subsets: None,
            groups: vec![Group {
                tier: 0,
                weight: 1,
                range: 0..4,
                total: 4,
            }],
            tier_parts: vec![TierParts::default()],
            single_probe: false,
            tiers: &tiers,
            factories: &LbPolicyFactories::new(),
            start: 7,
        })
        .unwrap();
        let start = Instant::now();
        for (index, endpoint) in endpoints.iter().enumerate() {
            // The last one comes later.
            endpoint
                .stats
                .observe(start + window * 2 * u32::from(index == 3));
        }
        let share = |age: u32| {
            let next = picker.refresh(&endpoints, start + window * 2 + window * age / 100);
            assert_eq!(next.is_some(), age < 100, "while it grows");
            let counts = count(&picker, &endpoints, 200_000);
            counts[3] as f64 / (200_000 - counts[3]) as f64 * 3.0
        };
        for (age, expected) in [(0, 0.1), (5, 0.1), (25, 0.25), (50, 0.5), (100, 1.0)] {
            let got = share(age);
            assert!(
                (got - expected).abs() < 0.02,
                "{got} at {age} %, {policy:?}"
            );
        }
    }
    let fast = SlowStart {
        aggression: 2.0,
        ..SlowStart::new(window)
    };
    assert!(
        (fast.factor(window / 4) - 0.5).abs() < 1e-9,
        "a square root"
    );
}
