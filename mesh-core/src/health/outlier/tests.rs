//! Ejections over time, with counts that tests make.

use super::*;
use crate::{outcome::Verdict, rng::SplitMix64};

struct World {
    config: OutlierDetection,
    stats: Vec<EndpointStats>,
    detector: OutlierDetector,
    start: Instant,
    rng: SplitMix64,
}

impl World {
    fn new(hosts: usize, config: OutlierDetection) -> Self {
        let mut world = Self {
            config,
            stats: (0..hosts).map(|_| EndpointStats::default()).collect(),
            detector: OutlierDetector::default(),
            start: Instant::now(),
            rng: SplitMix64::new(1),
        };
        world.advance(0);
        world
    }

    fn end(&self, host: usize, verdicts: &[(Verdict, usize)]) {
        for (verdict, count) in verdicts {
            for _ in 0..*count {
                self.stats[host].begin();
                self.stats[host].end_as(*verdict);
            }
        }
    }

    /// Advances to a second; returns in how many more it wants to be called.
    fn advance(&mut self, second: u64) -> u64 {
        let now = self.start + Duration::from_secs(second);
        let endpoints: Vec<_> = self
            .stats
            .iter()
            .enumerate()
            .map(|(index, stats)| (SocketAddr::from(([10, 0, 0, 1], index as u16)), stats))
            .collect();
        let next = self
            .detector
            .advance(Some(&self.config), &endpoints, now, &mut self.rng);
        next.map_or(0, |next| next.saturating_duration_since(now).as_secs())
    }

    fn ejected(&self) -> Vec<usize> {
        let hosts = self.stats.iter().enumerate();
        hosts
            .filter_map(|(index, stats)| stats.is_ejected().then_some(index))
            .collect()
    }
}

use Verdict::{GatewayFailure, LocalFailure, ServerFailure, Success};

/// Only what the test is about.
fn none() -> OutlierDetection {
    let mut config = OutlierDetection::default();
    config.consecutive_5xx.enforcing = 0;
    config.consecutive_local_origin_failure.enforcing = 0;
    config.success_rate.enforcing = 0;
    config.success_rate.enforcing_local_origin = 0;
    config
}

#[test]
fn failures_in_a_row_eject_at_once_for_a_growing_time() {
    let mut world = World::new(10, OutlierDetection::default());
    world.end(3, &[(ServerFailure, 4), (Success, 1), (GatewayFailure, 4)]);
    assert!(!is_suspicious(&world.config, &world.stats[3]));
    world.advance(1);
    assert!(world.ejected().is_empty(), "not in a row");
    world.end(3, &[(LocalFailure, 1)]);
    assert!(is_suspicious(&world.config, &world.stats[3]));
    assert_eq!(world.advance(1), 9, "the next sweep");
    assert_eq!(world.ejected(), [3]);
    for second in [10, 20, 30] {
        world.advance(second);
        assert_eq!(world.ejected(), [3]);
    }
    world.advance(31);
    assert!(
        world.ejected().is_empty(),
        "after 30 s, although no sweep is due"
    );
    world.end(3, &[(ServerFailure, 5)]);
    world.advance(32);
    world.advance(32 + 59);
    assert_eq!(world.ejected(), [3], "the second time for 60 s");
    world.advance(32 + 60);
    assert!(world.ejected().is_empty());
    // Each sweep without an ejection takes one time off.
    world.advance(102);
    world.advance(112);
    world.end(3, &[(ServerFailure, 5)]);
    world.advance(113);
    world.advance(113 + 30);
    assert!(world.ejected().is_empty());
}

#[test]
fn an_ejection_is_never_longer_than_allowed() {
    let config = OutlierDetection {
        max_ejection_time: Duration::from_secs(45),
        max_ejection_time_jitter: Duration::from_secs(10),
        ..OutlierDetection::default()
    };
    let mut world = World::new(10, config);
    let mut second = 0;
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..20 {
        world.end(0, &[(ServerFailure, 5)]);
        world.advance(second);
        let began = second;
        while !world.ejected().is_empty() {
            second += 1;
            world.advance(second);
        }
        lengths.insert(second - began);
    }
    assert!(lengths.len() > 3, "jitter: {lengths:?}");
    assert!(*lengths.last().unwrap() <= 56, "{lengths:?}");
    // A maximum below the base does not count.
    let config = OutlierDetection {
        max_ejection_time: Duration::from_secs(1),
        ..OutlierDetection::default()
    };
    let mut world = World::new(10, config);
    world.end(0, &[(ServerFailure, 5)]);
    world.advance(0);
    world.advance(29);
    assert_eq!(world.ejected(), [0]);
}

#[test]
fn no_more_than_the_limit_are_ejected_but_one_always_may_be() {
    for (hosts, percent, expected) in [
        (10, 10, 1),
        (10, 30, 3),
        (3, 10, 1),
        (10, 0, 0),
        (4, 100, 4),
    ] {
        let config = OutlierDetection {
            max_ejection_percent: percent,
            ..OutlierDetection::default()
        };
        let mut world = World::new(hosts, config);
        for host in 0..hosts {
            world.end(host, &[(ServerFailure, 5)]);
        }
        world.advance(1);
        assert_eq!(world.ejected().len(), expected, "{percent} % of {hosts}");
    }
}

#[test]
fn kinds_of_failures_are_told_apart_when_asked() {
    let mut config = none();
    config.consecutive_gateway_failure.enforcing = 100;
    let eject = |config: &OutlierDetection, verdicts: &[(Verdict, usize)]| {
        let mut world = World::new(10, config.clone());
        world.end(0, verdicts);
        world.advance(1);
        !world.ejected().is_empty()
    };
    assert!(eject(&config, &[(GatewayFailure, 3), (LocalFailure, 2)]));
    assert!(!eject(
        &config,
        &[(GatewayFailure, 4), (ServerFailure, 1), (GatewayFailure, 4)]
    ));
    config.split_external_local_origin_errors = true;
    assert!(!eject(&config, &[(GatewayFailure, 3), (LocalFailure, 9)]));
    assert!(eject(
        &config,
        &[(GatewayFailure, 3), (LocalFailure, 9), (GatewayFailure, 2)]
    ));
    config.consecutive_local_origin_failure.enforcing = 100;
    assert!(eject(&config, &[(LocalFailure, 5)]));
    assert!(!eject(
        &config,
        &[(LocalFailure, 4), (ServerFailure, 1), (LocalFailure, 4)]
    ));
    config.consecutive_5xx.enforcing = 100;
    config.consecutive_5xx.threshold = 7;
    assert!(eject(&config, &[(ServerFailure, 3), (GatewayFailure, 4)]));
}

#[test]
fn success_rates_far_below_the_mean_eject() {
    let mut config = none();
    config.success_rate.enforcing = 100;
    let sweep = |config: &OutlierDetection, bad: usize, volume: usize| {
        let mut world = World::new(10, config.clone());
        for host in 0..10 {
            let failed = if host == 4 { bad } else { 1 };
            world.end(host, &[(Success, volume - failed), (ServerFailure, failed)]);
        }
        world.advance(9);
        assert!(
            world.ejected().is_empty(),
            "not before the interval is over"
        );
        world.advance(10);
        world.ejected()
    };
    assert_eq!(sweep(&config, 30, 100), [4]);
    assert!(sweep(&config, 1, 100).is_empty(), "all alike");
    assert!(sweep(&config, 30, 99).is_empty(), "too few requests");
    config.success_rate.minimum_hosts = 11;
    assert!(sweep(&config, 30, 100).is_empty(), "too few hosts");
}

#[test]
fn a_failure_percentage_ejects_from_its_threshold_on() {
    let mut config = none();
    config.failure_percentage.enforcing = 100;
    let sweep = |config: &OutlierDetection, failed: usize| {
        let mut world = World::new(5, config.clone());
        for host in 0..5 {
            let failed = if host == 2 { failed } else { 0 };
            world.end(host, &[(Success, 100 - failed), (ServerFailure, failed)]);
        }
        world.advance(10);
        world.ejected()
    };
    assert_eq!(sweep(&config, 85), [2], "Envoy's rule; gRPC has above");
    assert!(sweep(&config, 84).is_empty());
    assert!(sweep(&none(), 100).is_empty(), "off unless asked for");
    // Failures to connect alone, when told apart.
    config.split_external_local_origin_errors = true;
    config.failure_percentage.enforcing = 0;
    config.failure_percentage.enforcing_local_origin = 100;
    assert!(sweep(&config, 100).is_empty());
    let mut world = World::new(5, config);
    for host in 0..5 {
        let failed = if host == 2 { 90 } else { 0 };
        world.end(host, &[(Success, 100 - failed), (LocalFailure, failed)]);
    }
    world.advance(10);
    assert_eq!(world.ejected(), [2]);
}

#[test]
fn enforcing_in_part_ejects_in_part() {
    let mut config = OutlierDetection::default();
    config.consecutive_5xx.enforcing = 30;
    config.base_ejection_time = Duration::from_secs(1);
    let mut world = World::new(10, config);
    let mut ejected = 0;
    for round in 0..3_000 {
        world.end(0, &[(ServerFailure, 5)]);
        world.advance(round * 1_000);
        ejected += world.ejected().len();
        world.advance(round * 1_000 + 999);
        assert!(world.ejected().is_empty());
    }
    assert!((810..990).contains(&ejected), "{ejected} of 3000");
}

#[test]
fn without_a_config_everybody_is_back() {
    let mut world = World::new(10, OutlierDetection::default());
    world.end(0, &[(ServerFailure, 5)]);
    world.advance(1);
    assert_eq!(world.ejected(), [0]);
    let endpoints = [(SocketAddr::from(([10, 0, 0, 1], 0)), &world.stats[0])];
    let next = world
        .detector
        .advance(None, &endpoints, world.start, &mut world.rng);
    assert_eq!(next, None);
    assert!(world.ejected().is_empty());
}

#[test]
fn the_phase_of_the_timer_survives_a_new_interval() {
    let mut world = World::new(10, OutlierDetection::default());
    assert_eq!(world.advance(4), 6);
    world.config.interval = Duration::from_secs(7);
    assert_eq!(world.advance(5), 2);
}

#[test]
fn an_endpoint_that_comes_back_by_one_request_is_taken_by_it() {
    let config = OutlierDetection {
        single_probe: true,
        ..OutlierDetection::default()
    };
    let mut world = World::new(10, config);
    let ready = crate::stats::Connectivity::Ready;
    world.stats[0].set_connectivity(ready);
    let probe = |world: &mut World, second, verdict| {
        world.advance(second);
        assert!(!world.stats[0].is_ready(), "not for everybody");
        assert!(
            world.stats[0].take_probe() && !world.stats[0].take_probe(),
            "for one"
        );
        world.end(0, &[(verdict, 1)]);
        assert!(is_suspicious(&world.config, &world.stats[0]));
        world.advance(second);
    };
    world.end(0, &[(ServerFailure, 5)]);
    world.advance(0);
    probe(&mut world, 30, ServerFailure);
    world.advance(89);
    assert!(!world.stats[0].wants_probe(), "for 60 s the second time");
    probe(&mut world, 90, Success);
    assert!(world.stats[0].is_ready());
}

#[test]
fn addresses_that_leave_are_forgotten() {
    let mut world = World::new(10, OutlierDetection::default());
    world.stats.truncate(3);
    world.advance(1);
    assert_eq!(world.detector.hosts.len(), 3);
}
