//! Who gets how many, where endpoints have no weights.

use std::time::Instant;

use super::*;
use crate::config::LeastRequest;

const PICKS: usize = 20_000;

#[test]
fn round_robin_takes_the_next_ready_endpoint_whatever_happens_meanwhile() {
    cases(|rng| {
        let endpoints = some_ready(rng, 12);
        let picker = picker(&LbPolicy::RoundRobin, &endpoints);
        let pick = |rng: &mut SplitMix64| {
            let mut context = PickContext::new(rng, &[]);
            match picker.pick(&endpoints, &mut context) {
                PickResult::Endpoint(index) => Some(index),
                _ => None,
            }
        };
        let Some(mut last) = pick(rng) else {
            panic!("one is ready")
        };
        for _ in 0..500 {
            if rng.below(4) == 0 {
                let changed = &endpoints[rng.below(endpoints.len() as u64) as usize];
                set(
                    changed,
                    [Connectivity::Ready, Connectivity::Idle][rng.below(2) as usize],
                );
            }
            let after = (1..=endpoints.len()).map(|step| (last + step) % endpoints.len());
            let expected = after
                .into_iter()
                .find(|index| endpoints[*index].stats.is_ready());
            let Some(expected) = expected else { continue };
            assert_eq!(pick(rng), Some(expected));
            last = expected;
        }
    });
}

/// The chance of each, by counting: of `choices` draws with replacement the least loaded wins, the first
/// drawn of equals.
fn chances_of_least(loads: &[Option<u32>], choices: u32) -> Vec<f64> {
    let eligible: Vec<u32> = loads.iter().flatten().copied().collect();
    let share = |is_so: &dyn Fn(u32) -> bool| {
        let count = eligible.iter().filter(|load| is_so(**load)).count();
        (count as f64 / eligible.len() as f64).powi(choices as i32)
    };
    let chance = |load: &Option<u32>| {
        let Some(load) = load else { return 0.0 };
        let equals = eligible.iter().filter(|other| *other == load).count();
        (share(&|other| other >= *load) - share(&|other| other > *load)) / equals as f64
    };
    loads.iter().map(chance).collect()
}

#[test]
fn least_request_and_random_have_the_chances_that_counting_gives() {
    cases(|rng| {
        let endpoints = some_ready(rng, 12);
        for endpoint in &endpoints {
            for _ in 0..rng.below(4) {
                endpoint.stats.begin();
            }
        }
        let choices = between(rng, 1, 10) as u32;
        let policy = match choices {
            1 => LbPolicy::Random,
            _ => LbPolicy::LeastRequest(LeastRequest {
                choice_count: choices,
                ..LeastRequest::default()
            }),
        };
        let loads: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                endpoint
                    .stats
                    .is_ready()
                    .then(|| endpoint.stats.in_flight())
            })
            .collect();
        let counts = count(&picker(&policy, &endpoints), &endpoints, PICKS);
        are_likely(&counts, &chances_of_least(&loads, choices));
    });
}

#[test]
fn peak_ewma_takes_the_lower_product_of_each_pair() {
    cases(|rng| {
        let endpoints = some_ready(rng, 12);
        let picker = picker(&LbPolicy::PeakEwma(PeakEwma::default()), &endpoints);
        let now = Instant::now();
        let mut costs = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let in_flight = rng.below(4);
            for _ in 0..in_flight {
                endpoint.stats.begin();
            }
            // No two products are equal.
            let latency = Duration::from_micros(between(rng, 1, 1_000) * 1_009 + index as u64);
            let decay = PeakEwma::default().decay;
            endpoint.stats.observe(now).add_latency(now, latency, decay);
            let measured = endpoint
                .stats
                .observe(now)
                .latency(Some(now), decay)
                .unwrap();
            let is_ready = endpoint.stats.is_ready();
            costs.push(is_ready.then_some(measured.as_nanos() * u128::from(in_flight + 1)));
        }
        let ready = costs.iter().flatten().count() as f64;
        let chances = costs.iter().map(|cost| {
            let Some(cost) = cost else { return 0.0 };
            if ready == 1.0 {
                return 1.0;
            }
            // How many pairs it wins.
            let wins = costs.iter().flatten().filter(|other| *other > cost).count();
            wins as f64 / (ready * (ready - 1.0) / 2.0)
        });
        let chances: Vec<_> = chances.collect();
        let mut counts = vec![0; endpoints.len()];
        for _ in 0..PICKS {
            let mut context = PickContext::new(rng, &[]);
            context.now = Some(now);
            if let PickResult::Endpoint(index) = picker.pick(&endpoints, &mut context) {
                counts[index] += 1;
            }
        }
        // The worst one of two or more never wins.
        for (count, chance) in counts.iter().zip(&chances) {
            assert!(*chance > 0.0 || *count == 0, "{counts:?} {chances:?}");
        }
        are_likely(&counts, &chances);
    });
}

#[test]
fn no_policy_picks_what_is_not_ready_or_was_tried_while_another_is() {
    cases(|rng| {
        let endpoints = some_ready(rng, 8);
        let tried: Vec<_> = endpoints
            .iter()
            .filter(|_| rng.below(3) == 0)
            .map(|endpoint| endpoint.address)
            .collect();
        let is_left = |endpoint: &&ClusterEndpoint| {
            endpoint.stats.is_ready() && !tried.contains(&endpoint.address)
        };
        let left: Vec<_> = endpoints
            .iter()
            .filter(is_left)
            .map(|e| e.address)
            .collect();
        for policy in all() {
            let picker = picker(&policy, &endpoints);
            for _ in 0..50 {
                let mut context = PickContext::new(rng, &tried);
                let index = match picker.pick(&endpoints, &mut context) {
                    PickResult::Endpoint(index) => index,
                    // On a ring a first attempt has an idle endpoint connected.
                    PickResult::Queue if policy.connects_on_demand() && tried.is_empty() => {
                        continue;
                    }
                    other => panic!("{policy:?}: {other:?}, and one is ready"),
                };
                let picked = &endpoints[index];
                assert!(picked.stats.is_ready(), "{policy:?}");
                assert!(
                    left.is_empty() || left.contains(&picked.address),
                    "{policy:?}"
                );
            }
        }
    });
}
