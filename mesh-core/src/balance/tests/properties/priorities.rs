//! Envoy's priorities by health, transcribed as they stand in its documentation and source.

use super::*;
use crate::balance::spill_over::{PriorityHealth, priority_loads};

fn health(healthy: u32, degraded: u32, total: u32) -> PriorityHealth {
    PriorityHealth {
        healthy,
        degraded,
        total,
    }
}

/// For each of 100 tickets: the priority that it is for, and whether for its degraded endpoints.
type Tickets = Vec<(usize, bool)>;

/// Gives out one ticket after the other. None is left without an owner.
fn model(priorities: &[PriorityHealth], factor: u32, threshold: u32) -> (Tickets, Vec<bool>) {
    let percent = |part: u32, total: u32| match total {
        0 => 0,
        _ => (u64::from(factor) * u64::from(part) / u64::from(total)).min(100),
    };
    // What each can take: first all healthy ones, then all degraded ones.
    let mut takers = Vec::new();
    for is_degraded in [false, true] {
        for (index, priority) in priorities.iter().enumerate() {
            let part = if is_degraded {
                priority.degraded
            } else {
                priority.healthy
            };
            takers.push(((index, is_degraded), percent(part, priority.total)));
        }
    }
    let sum: u64 = takers.iter().map(|(_, percent)| percent).sum();
    let available = sum.min(100);
    let panics = priorities.iter().map(|priority| {
        let usable = f64::from(priority.healthy + priority.degraded);
        let percent = match priority.total {
            0 => 0.0,
            total => usable * 100.0 / f64::from(total),
        };
        available < 100 && percent < f64::from(threshold)
    });
    let panics: Vec<_> = panics.collect();
    let mut tickets = Vec::new();
    if panics.iter().all(|panics| *panics) {
        let all: u32 = priorities.iter().map(|priority| priority.total).sum();
        for (index, priority) in priorities.iter().enumerate() {
            let share = (priority.total * 100).checked_div(all).unwrap_or(0);
            tickets.extend((0..share).map(|_| (index, false)));
        }
        let first = priorities.iter().position(|priority| priority.total > 0);
        tickets.resize(100, (first.unwrap_or(0), false));
        return (tickets, panics);
    }
    for (taker, percent) in &takers {
        for _ in 0..(percent * 100).checked_div(available).unwrap_or(0) {
            if tickets.len() < 100 {
                tickets.push(*taker);
            }
        }
    }
    let first = takers.iter().find(|(_, percent)| *percent > 0);
    tickets.resize(100, first.map_or((0, false), |(taker, _)| *taker));
    (tickets, panics)
}

#[test]
fn loads_by_health_are_those_of_a_naive_transcription() {
    cases(|rng| {
        for _ in 0..200 {
            let priorities: Vec<_> = (0..between(rng, 1, 5))
                .map(|_| {
                    let total = rng.below(30) as u32;
                    let healthy = rng.below(u64::from(total) + 1) as u32;
                    let degraded = rng.below(u64::from(total - healthy) + 1) as u32;
                    health(healthy, degraded, total)
                })
                .collect();
            let factor = [100, 140, 200][rng.below(3) as usize];
            let threshold = [0, 30, 50, 100][rng.below(4) as usize];
            let loads = priority_loads(&priorities, factor, threshold);
            let (tickets, panics) = model(&priorities, factor, threshold);
            let count = |index, is_degraded| {
                let of = tickets
                    .iter()
                    .filter(|ticket| **ticket == (index, is_degraded));
                of.count() as u32
            };
            for index in 0..priorities.len() {
                let got = (loads.healthy[index], loads.degraded[index]);
                let expected = (count(index, false), count(index, true));
                assert_eq!(got, expected, "{priorities:?} {factor} {threshold}");
            }
            assert_eq!(loads.panics, panics, "{priorities:?} {factor} {threshold}");
        }
    });
}

#[test]
fn loads_by_health_are_those_of_envoys_examples() {
    let of = |percent: &[u32]| {
        let priorities: Vec<_> = percent.iter().map(|part| health(*part, 0, 100)).collect();
        priority_loads(&priorities, 140, 50)
    };
    for (first, expected) in [
        (100, [100, 0]),
        (72, [100, 0]),
        (71, [99, 1]),
        (50, [70, 30]),
        (25, [35, 65]),
        (0, [0, 100]),
    ] {
        let loads = of(&[first, 100]);
        assert_eq!(
            (&loads.healthy[..], &loads.panics[..]),
            (&expected[..], &[false; 2][..])
        );
    }
    let loads = of(&[25, 25]);
    assert_eq!(
        (&loads.healthy[..], &loads.panics[..]),
        (&[50, 50][..], &[true; 2][..])
    );
    // 7.14 % and 92.86 %; what rounding leaves is for the first.
    let loads = of(&[5, 65]);
    assert_eq!(
        (&loads.healthy[..], &loads.panics[..]),
        (&[8, 92][..], &[true, false][..])
    );
    assert_eq!(of(&[0, 0, 100]).healthy, [0, 0, 100]);
    // The example of its source: 10, 20, 10 % healthy, 20, 10, 0 % degraded, without overprovisioning.
    let priorities = [health(10, 20, 100), health(20, 10, 100), health(10, 0, 100)];
    let loads = priority_loads(&priorities, 100, 0);
    assert_eq!(loads.healthy, [16, 28, 14]);
    assert_eq!(loads.degraded, [28, 14, 0]);
}

#[test]
fn degraded_endpoints_keep_a_priority_from_panic() {
    let loads = priority_loads(&[health(3, 4, 10)], 140, 50);
    assert_eq!(loads.panics, [false]);
    assert_eq!((loads.healthy[0], loads.degraded[0]), (43, 57));
    assert_eq!(priority_loads(&[health(3, 1, 10)], 140, 50).panics, [true]);
}

#[test]
fn in_a_panic_of_all_priorities_each_has_its_part_of_the_endpoints() {
    let loads = priority_loads(&[health(1, 0, 30), health(1, 0, 10)], 140, 50);
    assert_eq!(loads.healthy, [75, 25]);
    assert_eq!(loads.panics, [true, true]);
}
