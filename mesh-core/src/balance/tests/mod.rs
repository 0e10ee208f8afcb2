//! Fairness and connectivity of the pickers.

mod hash;
mod learning;
mod priority;
mod properties;
mod weights;

use std::time::{Duration, Instant};

use super::*;
use crate::{
    config::{ClientSideWrr, CommonLbConfig, LbPolicy, PeakEwma, Prequal, RingHash},
    rng::SplitMix64,
};

fn ready(count: usize) -> Vec<ClusterEndpoint> {
    endpoints(&vec![Connectivity::Ready; count])
}

fn set(endpoint: &ClusterEndpoint, state: Connectivity) {
    endpoint.stats.set_connectivity(state);
}

fn endpoints(states: &[Connectivity]) -> Vec<ClusterEndpoint> {
    states
        .iter()
        .enumerate()
        .map(|(i, state)| {
            let stats = Arc::new(EndpointStats::default());
            stats.set_connectivity(*state);
            ClusterEndpoint {
                address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 80)),
                weight: 1,
                health: HealthStatus::Healthy,
                locality: Arc::new(LocalityId::default()),
                stats,
            }
        })
        .collect()
}

fn picker(policy: &LbPolicy, endpoints: &[ClusterEndpoint]) -> Picker {
    Picker::flat(policy, endpoints, 3).unwrap()
}

/// How often each endpoint is picked.
fn count(picker: &Picker, endpoints: &[ClusterEndpoint], picks: usize) -> Vec<usize> {
    let mut rng = SplitMix64::new(1);
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        let mut context = PickContext::new(&mut rng, &[]);
        let PickResult::Endpoint(index) = picker.pick(endpoints, &mut context) else {
            panic!()
        };
        counts[index] += 1;
    }
    counts
}

/// Those that share requests evenly.
fn even() -> Vec<LbPolicy> {
    vec![
        LbPolicy::RoundRobin,
        LbPolicy::least_request(2),
        LbPolicy::Random,
        LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr::default()),
        LbPolicy::PeakEwma(PeakEwma::default()),
        LbPolicy::Prequal(Prequal::default()),
    ]
}

fn all() -> Vec<LbPolicy> {
    let more = [
        LbPolicy::RingHash(RingHash::default()),
        LbPolicy::Maglev { table_size: 251 },
        LbPolicy::PickFirst {
            shuffle_address_list: true,
        },
    ];
    even().into_iter().chain(more).collect()
}

#[test]
fn every_policy_spreads_evenly_over_the_ready_endpoints_alone() {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    let endpoints = endpoints(&[Ready, Connecting, TransientFailure, Idle, Ready, Ready]);
    for policy in even() {
        let counts = count(&picker(&policy, &endpoints), &endpoints, 30_000);
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
    let picker = picker(&LbPolicy::least_request(2), &endpoints);
    let counts = count(&picker, &endpoints, 10_000);
    assert!(
        (2_200..2_800).contains(&counts[0]),
        "only picked when sampled twice: {counts:?}"
    );
}

#[test]
fn a_retry_goes_elsewhere_while_it_can() {
    let endpoints = endpoints(&[Connectivity::Ready; 3]);
    for policy in all() {
        let picker = picker(&policy, &endpoints);
        let mut rng = SplitMix64::new(1);
        for _ in 0..100 {
            let previous = [endpoints[0].address, endpoints[1].address];
            let mut context = PickContext::new(&mut rng, &previous);
            assert_eq!(
                picker.pick(&endpoints, &mut context),
                PickResult::Endpoint(2)
            );
        }
        let previous: Vec<_> = endpoints.iter().map(|e| e.address).collect();
        let mut context = PickContext::new(&mut rng, &previous);
        assert!(matches!(
            picker.pick(&endpoints, &mut context),
            PickResult::Endpoint(_)
        ));
    }
}

#[test]
fn a_retry_waits_for_the_endpoint_it_came_from_when_that_connects_and_no_other_is_ready() {
    use Connectivity::{Connecting, TransientFailure};
    let endpoints = endpoints(&[Connecting, TransientFailure]);
    let previous = [endpoints[0].address];
    for policy in all() {
        let picker = picker(&policy, &endpoints);
        let mut rng = SplitMix64::new(1);
        let mut context = PickContext::new(&mut rng, &previous);
        let picked = picker.pick(&endpoints, &mut context);
        assert_eq!(picked, PickResult::Queue, "{policy:?}");
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
        for policy in all() {
            let picker = picker(&policy, &endpoints);
            let mut rng = SplitMix64::new(1);
            let mut context = PickContext::new(&mut rng, &[]);
            assert_eq!(
                picker.pick(&endpoints, &mut context),
                expected,
                "{policy:?} {states:?}"
            );
        }
    }
}

#[test]
fn an_ejected_endpoint_is_not_picked_and_keeps_its_connection() {
    let endpoints = ready(4);
    endpoints[1].stats.set_ejected(true);
    for policy in all() {
        let counts = count(&picker(&policy, &endpoints), &endpoints, 1_000);
        assert_eq!(counts[1], 0, "{policy:?}");
    }
    set(&endpoints[1], Connectivity::Connecting);
    set(&endpoints[1], Connectivity::Ready);
    assert!(endpoints[1].stats.is_ejected() && !endpoints[1].stats.is_ready());
    assert_eq!(endpoints[1].stats.connectivity(), Connectivity::Ready);
    endpoints[1].stats.set_ejected(false);
    assert!(endpoints[1].stats.is_ready());
}

#[test]
fn pick_first_stays_until_its_endpoint_is_lost() {
    let endpoints = ready(5);
    let policy = LbPolicy::PickFirst {
        shuffle_address_list: false,
    };
    let first = picker(&policy, &endpoints);
    assert_eq!(count(&first, &endpoints, 10), [10, 0, 0, 0, 0]);
    set(&endpoints[0], Connectivity::TransientFailure);
    assert_eq!(count(&first, &endpoints, 10), [0, 10, 0, 0, 0]);
    set(&endpoints[0], Connectivity::Ready);
    assert_eq!(
        count(&first, &endpoints, 10),
        [0, 10, 0, 0, 0],
        "no way back"
    );
}

#[test]
fn pick_first_connects_one_after_the_other_until_one_is_there() {
    let endpoints = endpoints(&[Connectivity::Idle; 3]);
    let policy = LbPolicy::PickFirst {
        shuffle_address_list: false,
    };
    let picker = picker(&policy, &endpoints);
    let mut rng = SplitMix64::new(1);
    let mut pick = || picker.pick(&endpoints, &mut PickContext::new(&mut rng, &[]));
    let wanted = || {
        let is_wanted = |index: &usize| endpoints[*index].stats.take_wanted();
        (0..3).filter(is_wanted).collect::<Vec<_>>()
    };
    let start = Instant::now();
    assert_eq!(picker.refresh(&endpoints, start), None);
    assert_eq!(wanted(), [0; 0], "nobody asks");
    assert_eq!((pick(), wanted()), (PickResult::Queue, vec![0]));
    set(&endpoints[0], Connectivity::Connecting);
    let second = start + ATTEMPT_DELAY;
    assert_eq!(picker.refresh(&endpoints, start), Some(second));
    assert_eq!((pick(), wanted()), (PickResult::Queue, vec![]));
    let third = second + ATTEMPT_DELAY;
    assert_eq!(picker.refresh(&endpoints, second), Some(third));
    assert_eq!(wanted(), [1], "the first takes too long");
    set(&endpoints[1], Connectivity::Connecting);
    // Both fail: the last one does not wait for its time.
    set(&endpoints[0], Connectivity::TransientFailure);
    set(&endpoints[1], Connectivity::TransientFailure);
    assert_eq!(picker.refresh(&endpoints, second), None);
    assert_eq!((pick(), wanted()), (PickResult::Queue, vec![2]));
    set(&endpoints[2], Connectivity::Ready);
    assert_eq!(pick(), PickResult::Endpoint(2));
    set(&endpoints[2], Connectivity::Idle);
    assert_eq!((pick(), wanted()), (PickResult::Queue, vec![2]), "lost");
    set(&endpoints[2], Connectivity::TransientFailure);
    assert_eq!(pick(), PickResult::Fail);
}

#[test]
fn pick_first_tries_kinds_of_addresses_in_turn() {
    let mut endpoints = endpoints(&[Connectivity::Idle; 5]);
    for endpoint in &mut endpoints[..3] {
        let port = endpoint.address.ip().to_string().len() as u16;
        endpoint.address = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    }
    let policy = LbPolicy::PickFirst {
        shuffle_address_list: false,
    };
    let picker = picker(&policy, &endpoints);
    let mut rng = SplitMix64::new(1);
    let mut order = Vec::new();
    for _ in 0..5 {
        _ = picker.pick(&endpoints, &mut PickContext::new(&mut rng, &[]));
        let wanted = (0..5).find(|index| endpoints[*index].stats.take_wanted());
        let wanted = wanted.unwrap();
        set(&endpoints[wanted], Connectivity::TransientFailure);
        order.push(wanted);
    }
    assert_eq!(order, [0, 3, 1, 4, 2]);
}

#[test]
fn pick_first_shuffles_by_weight() {
    let mut endpoints = ready(2);
    endpoints[1].weight = 3;
    let policy = LbPolicy::PickFirst {
        shuffle_address_list: true,
    };
    let firsts = (0..4_000).filter(|seed| {
        let picker = Picker::flat(&policy, &endpoints, *seed).unwrap();
        count(&picker, &endpoints, 1)[1] == 1
    });
    let share = firsts.count();
    assert!((2_900..3_100).contains(&share), "{share} of 4000");
}

#[test]
fn a_policy_of_the_application_is_used_and_told_its_config() {
    #[derive(Debug)]
    struct Nth(usize);

    impl LoadBalancer for Nth {
        fn pick(&self, _: &[ClusterEndpoint], _: &mut PickContext<'_, dyn Rng + '_>) -> PickResult {
            PickResult::Endpoint(self.0)
        }
    }

    #[derive(Debug)]
    struct Factory;

    impl LbPolicyFactory for Factory {
        fn build(
            &self,
            config: &str,
            _: &[ClusterEndpoint],
        ) -> Result<Box<dyn LoadBalancer>, String> {
            let nth = config
                .parse()
                .map_err(|_| format!("{config:?} is no number"))?;
            Ok(Box::new(Nth(nth)))
        }
    }

    let endpoints = ready(3);
    let common = CommonLbConfig::default();
    let build = |name: &str, config: &str| {
        let policy = LbPolicy::Custom {
            name: name.into(),
            config: config.into(),
        };
        Picker::build(&Parts {
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
                range: 0..3,
                total: 3,
            }],
            tier_parts: vec![TierParts::default()],
            single_probe: false,
            tiers: &Arc::default(),
            factories: &[("nth".to_owned(), Arc::new(Factory) as _)].into(),
            start: 0,
        })
    };
    assert_eq!(count(&build("nth", "2").unwrap(), &endpoints, 5), [0, 0, 5]);
    assert_eq!(
        build("nth", "x").unwrap_err(),
        "policy \"nth\": \"x\" is no number"
    );
    assert!(
        build("other", "")
            .unwrap_err()
            .contains("no policy \"other\"")
    );
}

#[test]
fn a_session_cookie_is_read_in_each_spelling_and_survives_a_round_trip() {
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let cookie = |cluster: Option<&str>| SessionCookie {
        addresses: vec![address],
        cluster: cluster.map(str::to_owned),
    };
    for (text, expected) in [
        ("MTAuMC4wLjE6ODA=", cookie(None)),
        // "10.0.0.1:80;cluster:c", without padding
        ("MTAuMC4wLjE6ODA7Y2x1c3RlcjpjCg", cookie(Some("c\n"))),
        ("\"MTAuMC4wLjE6ODA7Yw==\"", cookie(Some("c"))),
    ] {
        assert_eq!(SessionCookie::parse(text), Ok(expected), "{text}");
    }
    for cluster in [None, Some("outbound|80||a")] {
        let cookie = cookie(cluster);
        assert_eq!(SessionCookie::parse(&cookie.format()), Ok(cookie));
    }
    let v6 = SessionCookie {
        addresses: vec!["[::1]:80".parse().unwrap(), address],
        cluster: None,
    };
    assert_eq!(SessionCookie::parse(&v6.format()), Ok(v6));
    for bad in ["", "%", "MTAuMC4wLjE=", "////"] {
        assert_eq!(SessionCookie::parse(bad), Err(SessionCookieError), "{bad}");
    }
}

#[test]
fn what_every_request_writes_of_an_endpoint_is_one_cache_line() {
    assert_eq!(size_of::<EndpointStats>(), 64);
}
