//! Priorities: gRFC A56 over time, Envoy's shares by health, panic.

use std::time::Instant;

use super::*;
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

fn tiers(
    common: &CommonLbConfig,
    factor: Option<u32>,
    sizes: &[usize],
    endpoints: &[ClusterEndpoint],
) -> Picker {
    tiers_of(&LbPolicy::RoundRobin, common, factor, sizes, endpoints)
}

fn tiers_of(
    policy: &LbPolicy,
    common: &CommonLbConfig,
    factor: Option<u32>,
    sizes: &[usize],
    endpoints: &[ClusterEndpoint],
) -> Picker {
    let (mut groups, mut tier_parts) = (Vec::new(), Vec::new());
    let mut start = 0;
    for (tier, count) in sizes.iter().enumerate() {
        groups.push(Group {
            tier,
            weight: 1,
            range: start..start + count,
            total: *count,
        });
        tier_parts.push(TierParts {
            priority: tier,
            total: *count,
            ..TierParts::default()
        });
        start += count;
    }
    Picker::build(&Parts {
        policy,
        common,
        local: None,
        overprovisioning_factor: factor,
        endpoints,
        sources: &[],
        subsets: None,
        groups,
        tier_parts,
        single_probe: false,
        tiers: &Arc::default(),
        factories: &LbPolicyFactories::new(),
        start: 1,
    })
    .unwrap()
}

#[test]
fn the_next_priority_is_used_only_when_all_of_one_fail() {
    let endpoints = ready(4);
    let picker = tiers(&CommonLbConfig::default(), None, &[2, 2], &endpoints);
    let now = Instant::now();
    let shares = || {
        picker.refresh(&endpoints, now);
        let counts = count(&picker, &endpoints, 1_000);
        (counts[0] + counts[1], counts[2] + counts[3])
    };
    assert_eq!(shares(), (1_000, 0));
    set(&endpoints[0], TransientFailure);
    assert_eq!(shares(), (1_000, 0), "one is left");
    endpoints[1].stats.set_ejected(true);
    assert_eq!(shares(), (0, 1_000), "none is left: one is ejected");
    set(&endpoints[0], Ready);
    assert_eq!(shares(), (1_000, 0), "and back at once");
}

#[test]
fn a_priority_that_connects_is_waited_for_but_not_for_ever() {
    let endpoints = endpoints(&[Connecting, Idle]);
    let picker = tiers(&CommonLbConfig::default(), None, &[1, 1], &endpoints);
    let start = Instant::now();
    let pick = || {
        let mut rng = SplitMix64::new(1);
        picker.pick(&endpoints, &mut PickContext::new(&mut rng, &[]))
    };
    let end = start + PRIORITY_FAILOVER_TIMEOUT;
    assert_eq!(picker.refresh(&endpoints, start), Some(end));
    assert_eq!(pick(), PickResult::Queue);
    assert!(picker.connects(0) && !picker.connects(1), "not wanted yet");
    picker.refresh(&endpoints, end);
    assert!(picker.connects(1));
    set(&endpoints[1], Ready);
    picker.refresh(&endpoints, end);
    assert_eq!(pick(), PickResult::Endpoint(1));
    set(&endpoints[0], Ready);
    picker.refresh(&endpoints, end);
    assert_eq!(pick(), PickResult::Endpoint(0));
}

/// A model of gRFC A56 that remembers everything that happened.
struct Model {
    history: Vec<Vec<(Instant, Connectivity)>>,
    created: Vec<Option<Instant>>,
}

impl Model {
    fn timer(&self, tier: usize, now: Instant) -> bool {
        // Walks the whole history each time.
        let Some(created) = self.created[tier] else {
            return false;
        };
        let mut until = Some(created + PRIORITY_FAILOVER_TIMEOUT);
        let mut was_up = false;
        for (at, state) in self.history[tier].iter().filter(|(at, _)| *at >= created) {
            match state {
                Ready => (until, was_up) = (None, true),
                TransientFailure => (until, was_up) = (None, false),
                Connecting | Idle if was_up => {
                    (until, was_up) = (Some(*at + PRIORITY_FAILOVER_TIMEOUT), false);
                }
                Connecting | Idle => {}
            }
        }
        until.is_some_and(|until| until > now)
    }

    fn choose(&mut self, now: Instant) -> usize {
        for tier in 0..self.history.len() {
            let state = self.history[tier].last().unwrap().1;
            if self.created[tier].is_none() {
                self.created[tier] = Some(now);
            }
            if state == Ready || self.timer(tier, now) {
                return tier;
            }
        }
        let mut states = self.history.iter().map(|history| history.last().unwrap().1);
        let connecting = states.position(|state| state == Connecting);
        connecting.unwrap_or(self.history.len() - 1)
    }
}

#[test]
fn failover_decides_as_the_model_does() {
    for seed in 0..300 {
        let mut rng = SplitMix64::new(seed);
        let count = 1 + rng.below(4) as usize;
        let mut failover = Failover::default();
        let mut model = Model {
            history: vec![Vec::new(); count],
            created: vec![None; count],
        };
        let mut states = vec![Connecting; count];
        let mut now = Instant::now();
        for step in 0..200 {
            now += Duration::from_secs(1 + rng.below(5));
            if step > 0 {
                let changed = rng.below(count as u64) as usize;
                states[changed] = [Connecting, Ready, TransientFailure][rng.below(3) as usize];
            }
            for (history, state) in model.history.iter_mut().zip(&states) {
                history.push((now, *state));
            }
            let choice = failover.decide(&states, now);
            assert_eq!(
                choice.tier,
                model.choose(now),
                "seed {seed}, step {step}: {states:?}"
            );
            assert!(choice.next.is_none_or(|next| next > now));
        }
    }
}

#[test]
fn priorities_share_by_health_when_asked() {
    let endpoints = ready(20);
    let picker = tiers(&CommonLbConfig::default(), Some(140), &[10, 10], &endpoints);
    let share = || {
        picker.refresh(&endpoints, Instant::now());
        let counts = count(&picker, &endpoints, 100_000);
        counts[..10].iter().sum::<usize>() / 1_000
    };
    assert_eq!(share(), 100);
    for endpoint in &endpoints[..5] {
        endpoint.stats.set_ejected(true);
    }
    assert!((69..=70).contains(&share()), "half are left: 70 %");
    for endpoint in &endpoints[5..10] {
        endpoint.stats.set_ejected(true);
    }
    assert_eq!(share(), 0);
}

#[test]
fn below_the_panic_threshold_all_are_used() {
    let endpoints = ready(10);
    let common = CommonLbConfig {
        healthy_panic_threshold: Some(50),
        ..CommonLbConfig::default()
    };
    let picker = tiers(&common, None, &[10], &endpoints);
    let used = || {
        picker.refresh(&endpoints, Instant::now());
        let counts = count(&picker, &endpoints, 10_000);
        counts.iter().filter(|count| **count > 0).count()
    };
    for endpoint in &endpoints[..5] {
        endpoint.stats.set_ejected(true);
    }
    assert_eq!(used(), 5, "half are left");
    endpoints[5].stats.set_ejected(true);
    assert_eq!(used(), 10);
    set(&endpoints[0], TransientFailure);
    assert_eq!(used(), 9, "what is not connected cannot be used");
}

/// Two priorities of a ring, three endpoints each.
#[test]
fn a_priority_that_connects_on_demand_is_used_while_idle_and_left_when_two_fail() {
    let endpoints = endpoints(&[Idle; 6]);
    let ring = LbPolicy::RingHash(RingHash::default());
    let picker = tiers_of(&ring, &CommonLbConfig::default(), None, &[3, 3], &endpoints);
    let now = Instant::now();
    let mut rng = SplitMix64::new(1);
    let mut wanted = || {
        picker.refresh(&endpoints, now);
        let mut context = PickContext::new(&mut rng, &[]);
        context.hash = Some(7);
        assert_eq!(picker.pick(&endpoints, &mut context), PickResult::Queue);
        let wanted = (0..6).find(|index| endpoints[*index].stats.take_wanted());
        wanted.unwrap()
    };
    let first = wanted();
    assert!(first < 3);
    set(&endpoints[first], TransientFailure);
    let second = wanted();
    assert!(second < 3);
    set(&endpoints[second], TransientFailure);
    // At once, not after a time: the next priority is idle, not absent.
    assert!(wanted() >= 3);
}

/// Picks for a retry after attempts on these endpoints, so many times.
fn retried(
    picker: &Picker,
    endpoints: &[ClusterEndpoint],
    tried: &[usize],
    picks: usize,
) -> Vec<usize> {
    let addresses: Vec<_> = tried
        .iter()
        .map(|index| endpoints[*index].address)
        .collect();
    let tried = TriedPriorities::new(&addresses, std::num::NonZeroU32::MIN);
    let mut rng = SplitMix64::new(1);
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        let mut context = PickContext::<dyn Rng>::new(&mut rng, &[]);
        let picked = picker.pick_untried(endpoints, &mut context, &tried);
        let PickResult::Endpoint(index) = picked else {
            panic!("{picked:?}")
        };
        counts[index] += 1;
    }
    counts
}

/// The example of Envoy's `PreviousPrioritiesConfig`: healths of 100, 50 and 50 percent.
#[test]
fn a_retry_shares_what_is_left_without_the_priorities_that_were_tried() {
    let endpoints = ready(5);
    for index in [2, 4] {
        set(&endpoints[index], TransientFailure);
    }
    let picker = tiers(
        &CommonLbConfig::default(),
        Some(100),
        &[1, 2, 2],
        &endpoints,
    );
    picker.refresh(&endpoints, Instant::now());
    assert_eq!(count(&picker, &endpoints, 100)[0], 100);
    let second = retried(&picker, &endpoints, &[0], 1_000);
    assert!(
        second[1].abs_diff(500) < 60 && second[1] + second[3] == 1_000,
        "{second:?}"
    );
    assert_eq!(retried(&picker, &endpoints, &[0, 3], 100)[1], 100);
    // Nothing is left: from the beginning.
    assert_eq!(retried(&picker, &endpoints, &[0, 3, 1], 100)[0], 100);
}

#[test]
fn a_retry_without_shares_takes_the_next_priority_that_can_be_used() {
    let endpoints = ready(4);
    set(&endpoints[1], TransientFailure);
    let picker = tiers(&CommonLbConfig::default(), None, &[1, 1, 2], &endpoints);
    picker.refresh(&endpoints, Instant::now());
    let second = retried(&picker, &endpoints, &[0], 100);
    assert_eq!(second[2] + second[3], 100, "{second:?}");
    assert_eq!(retried(&picker, &endpoints, &[0, 3], 100)[0], 100);
}

#[test]
fn a_retry_has_a_priority_connected_that_nobody_wanted_before_and_waits_for_it() {
    let endpoints = endpoints(&[Ready, Idle, Idle]);
    let picker = tiers(&CommonLbConfig::default(), None, &[1, 1, 1], &endpoints);
    let start = Instant::now();
    picker.refresh(&endpoints, start);
    assert!(!picker.connects(1), "not wanted yet");
    let mut rng = SplitMix64::new(1);
    let addresses = [endpoints[0].address];
    let tried = TriedPriorities::new(&addresses, std::num::NonZeroU32::MIN);
    let mut context = PickContext::<dyn Rng>::new(&mut rng, &addresses);
    let picked = picker.pick_untried(&endpoints, &mut context, &tried);
    assert_eq!(picked, PickResult::Queue);
    picker.refresh(&endpoints, start);
    assert!(picker.connects(1) && !picker.connects(2));
    assert_eq!(count(&picker, &endpoints, 10)[0], 10, "first attempts stay");
}
