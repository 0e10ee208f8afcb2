//! Fairness and connectivity of the pickers.

use super::*;
use crate::rng::SplitMix64;

fn endpoints(states: &[Connectivity]) -> Vec<ClusterEndpoint> {
    states
        .iter()
        .enumerate()
        .map(|(i, state)| {
            let stats = Arc::new(EndpointStats::default());
            stats.set_connectivity(*state);
            ClusterEndpoint {
                address: SocketAddr::from(([10, 0, 0, 1], i as u16)),
                weight: 1,
                locality: Arc::new(LocalityId::default()),
                stats,
            }
        })
        .collect()
}

fn count(policy: LbPolicy, endpoints: &[ClusterEndpoint], picks: usize) -> Vec<usize> {
    let picker = Picker::new(policy, endpoints, 3);
    let mut rng = SplitMix64::new(1);
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        let mut context = PickContext {
            rng: &mut rng,
            previous: &[],
        };
        let PickResult::Endpoint(index) = picker.pick(endpoints, &mut context) else {
            panic!()
        };
        counts[index] += 1;
    }
    counts
}

const POLICIES: [LbPolicy; 3] = [
    LbPolicy::RoundRobin,
    LbPolicy::LeastRequest { choice_count: 2 },
    LbPolicy::Random,
];

#[test]
fn every_policy_spreads_evenly_over_the_ready_endpoints_alone() {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    let endpoints = endpoints(&[Ready, Connecting, TransientFailure, Idle, Ready, Ready]);
    for policy in POLICIES {
        let counts = count(policy, &endpoints, 30_000);
        assert_eq!([counts[1], counts[2], counts[3]], [0, 0, 0], "{policy:?}");
        for index in [0, 4, 5] {
            assert!(
                (9_500..=10_500).contains(&counts[index]),
                "{policy:?} {counts:?}"
            );
        }
    }
}

#[test]
fn least_request_prefers_the_less_loaded() {
    let endpoints = endpoints(&[Connectivity::Ready; 2]);
    for _ in 0..5 {
        endpoints[0].stats.begin();
    }
    let counts = count(
        LbPolicy::LeastRequest { choice_count: 2 },
        &endpoints,
        10_000,
    );
    assert!(
        (2_200..2_800).contains(&counts[0]),
        "only picked when sampled twice: {counts:?}"
    );
}

#[test]
fn a_retry_goes_elsewhere_while_it_can() {
    let endpoints = endpoints(&[Connectivity::Ready; 3]);
    for policy in POLICIES {
        let picker = Picker::new(policy, &endpoints, 0);
        let mut rng = SplitMix64::new(1);
        for _ in 0..100 {
            let previous = [endpoints[0].address, endpoints[1].address];
            let mut context = PickContext {
                rng: &mut rng,
                previous: &previous,
            };
            assert_eq!(
                picker.pick(&endpoints, &mut context),
                PickResult::Endpoint(2)
            );
        }
        let previous: Vec<_> = endpoints.iter().map(|e| e.address).collect();
        let mut context = PickContext {
            rng: &mut rng,
            previous: &previous,
        };
        assert!(matches!(
            picker.pick(&endpoints, &mut context),
            PickResult::Endpoint(_)
        ));
    }
}

#[test]
fn without_a_ready_endpoint_a_pick_queues_or_fails() {
    use Connectivity::{Connecting, Idle, TransientFailure};
    for (states, expected) in [
        (&[][..], PickResult::Fail),
        (&[TransientFailure, TransientFailure], PickResult::Fail),
        (&[TransientFailure, Connecting], PickResult::Queue),
        (&[Idle], PickResult::Queue),
    ] {
        let endpoints = endpoints(states);
        for policy in POLICIES {
            let picker = Picker::new(policy, &endpoints, 0);
            let mut context = PickContext {
                rng: &mut SplitMix64::new(1),
                previous: &[],
            };
            assert_eq!(
                picker.pick(&endpoints, &mut context),
                expected,
                "{policy:?} {states:?}"
            );
        }
    }
}
