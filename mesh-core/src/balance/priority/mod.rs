//! Which priority gets a request (gRFC A56; Envoy's priority levels).
//!
//! The first priority with a ready endpoint is used. One that is connecting is waited for, but not
//! longer than [`PRIORITY_FAILOVER_TIMEOUT`]; one whose endpoints all fail is not. With an
//! overprovisioning factor priorities share the load by their health instead, and with a panic
//! threshold a priority that has lost too many endpoints uses all of them.
//!
//! Degraded endpoints are priorities of their own, behind all others.

mod tried;

use std::{
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use self::tried::TriedPriorities;
use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker,
    sample::sample_rest,
    spill_over::{PriorityHealth, SpillOver, priority_loads},
    weighted::Weights,
};
use crate::{config::LbPolicy, observed::Observation, rng::Rng, stats::Connectivity};

/// How long a priority that is connecting keeps requests from the next one (gRFC A56).
pub const PRIORITY_FAILOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Which priority is in use, as gRFC A56 decides it from their connectivity over time.
#[derive(Debug, Default)]
pub struct Failover {
    tiers: Vec<TierTimer>,
}

#[derive(Clone, Copy, Debug)]
struct TierTimer {
    /// When waiting for it ends; `None` when it is not waited for.
    until: Option<Instant>,
    /// Whether it was ready or idle after it last failed.
    was_up: bool,
}

/// A decision of [`Failover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverChoice {
    /// The priority to use.
    pub tier: usize,
    /// When to decide again, if nothing changes before.
    pub next: Option<Instant>,
}

impl Failover {
    /// How many priorities were ever wanted: these are connected.
    pub fn activated(&self) -> usize {
        self.tiers.len()
    }

    /// Decides, where `states` are those of all priorities. With none it is the first.
    pub fn decide(&mut self, states: &[Connectivity], now: Instant) -> FailoverChoice {
        self.tiers.truncate(states.len());
        for (tier, state) in self.tiers.iter_mut().zip(states) {
            tier.follow(*state, now);
        }
        for (index, state) in states.iter().enumerate() {
            if index == self.tiers.len() {
                let mut tier = TierTimer {
                    until: Some(now + PRIORITY_FAILOVER_TIMEOUT),
                    was_up: false,
                };
                // It may have been connected before.
                tier.follow(*state, now);
                // What was not wanted yet is idle, and connects now.
                if *state == Connectivity::Idle && index > 0 {
                    tier.until = Some(now + PRIORITY_FAILOVER_TIMEOUT);
                    tier.was_up = false;
                }
                self.tiers.push(tier);
            }
            let is_up = match state {
                Connectivity::Ready => true,
                Connectivity::Idle => index == 0,
                Connectivity::Connecting | Connectivity::TransientFailure => false,
            };
            let until = self.tiers[index].until.filter(|until| *until > now);
            if is_up || until.is_some() {
                return FailoverChoice {
                    tier: index,
                    next: until.filter(|_| !is_up),
                };
            }
        }
        let is_connecting =
            |state: &Connectivity| matches!(state, Connectivity::Connecting | Connectivity::Idle);
        let last = states.len().saturating_sub(1);
        FailoverChoice {
            tier: states.iter().position(is_connecting).unwrap_or(last),
            next: None,
        }
    }
}

impl TierTimer {
    fn follow(&mut self, state: Connectivity, now: Instant) {
        match state {
            Connectivity::Ready => (self.until, self.was_up) = (None, true),
            Connectivity::TransientFailure => (self.until, self.was_up) = (None, false),
            Connectivity::Idle | Connectivity::Connecting => {
                if std::mem::take(&mut self.was_up) {
                    self.until = Some(now + PRIORITY_FAILOVER_TIMEOUT);
                }
            }
        }
    }
}

/// What outlives snapshots of a cluster's priorities.
#[derive(Debug, Default)]
pub(crate) struct TierState {
    failover: Mutex<Failover>,
    /// How many priorities retries wanted: these are connected, too.
    wanted: AtomicUsize,
}

impl TierState {
    /// How many priorities are connected.
    fn activated(&self, failover: &Failover) -> usize {
        failover.activated().max(self.wanted.load(Relaxed)).max(1)
    }
}

/// What a tier is, but for its usable endpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct TierParts {
    /// The priority, without gaps.
    pub(crate) priority: usize,
    /// Whether these are its degraded endpoints.
    pub(crate) is_degraded: bool,
    /// Its endpoints that are not usable, as far as they are kept for a panic.
    pub(crate) rest: Range<usize>,
    /// All endpoints of the priority, with those that are not kept.
    pub(crate) total: usize,
}

/// One priority, or the degraded endpoints of one.
#[derive(Debug)]
pub(super) struct Tier {
    /// Which one.
    pub(super) parts: TierParts,
    /// Its usable endpoints.
    pub(super) range: Range<usize>,
    /// The degraded endpoints of the same priority.
    pub(super) degraded: Range<usize>,
    pub(super) picker: Picker,
    /// Whether all of its endpoints are used, whatever is known of their health.
    pub(super) is_panicking: AtomicBool,
}

/// Which endpoints of a priority in use are connected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Connecting {
    All,
    /// Those that are picked. With more failing ones than this, and none ready, it fails.
    OnDemand {
        failing_max: usize,
    },
}

impl Connecting {
    pub(super) fn of(policy: &LbPolicy) -> Self {
        match policy {
            // gRFC A42: two that fail.
            LbPolicy::RingHash(_) => Self::OnDemand { failing_max: 1 },
            policy if policy.connects_on_demand() => Self::OnDemand {
                failing_max: usize::MAX,
            },
            _ => Self::All,
        }
    }
}

/// Several priorities.
#[derive(Debug)]
pub(super) struct Tiers {
    tiers: Box<[Tier]>,
    spill_over: SpillOver,
    connecting: Connecting,
    state: Arc<TierState>,
    /// The priority in use, where it is one.
    chosen: AtomicUsize,
    /// Priorities that are connected.
    activated: AtomicUsize,
    /// Shares of the priorities, where they share.
    loads: Weights,
}

impl Tiers {
    pub(super) fn new(
        tiers: Vec<Tier>,
        spill_over: SpillOver,
        connecting: Connecting,
        state: Arc<TierState>,
        endpoints: &[ClusterEndpoint],
    ) -> Self {
        let mut loads = vec![0.0; tiers.len()];
        loads[0] = 1.0;
        let activated = state.activated(&lock(&state.failover));
        let this = Self {
            loads: Weights::new(loads, None),
            tiers: tiers.into(),
            spill_over,
            connecting,
            state,
            chosen: AtomicUsize::new(0),
            activated: AtomicUsize::new(activated),
        };
        this.share(endpoints);
        this
    }

    /// Computes loads and panic.
    fn share(&self, endpoints: &[ClusterEndpoint]) {
        let factor = self.spill_over.overprovisioning_factor;
        let threshold = self.spill_over.panic_threshold.unwrap_or(0);
        let health = self.health(endpoints);
        let loads = priority_loads(&health, factor.unwrap_or(100), threshold);
        for tier in &self.tiers {
            tier.is_panicking
                .store(loads.panics[tier.parts.priority], Relaxed);
        }
        if factor.is_some() {
            let percent = self.tiers.iter().map(|tier| {
                let of = match tier.parts.is_degraded {
                    false => &loads.healthy,
                    true => &loads.degraded,
                };
                f64::from(of[tier.parts.priority])
            });
            self.loads.set(&percent.collect::<Vec<_>>());
        }
        if factor.is_some() || threshold > 0 {
            // Who shares is connected.
            self.activated.store(self.tiers.len(), Relaxed);
        }
    }

    fn health(&self, endpoints: &[ClusterEndpoint]) -> Vec<PriorityHealth> {
        let mut health: Vec<PriorityHealth> = Vec::new();
        for tier in &self.tiers {
            let place = tier.parts.priority;
            if health.len() <= place {
                health.resize(place + 1, PriorityHealth::default());
            }
            let usable = endpoints[tier.range.clone()]
                .iter()
                .filter(|endpoint| endpoint.stats.availability() != Connectivity::TransientFailure)
                .count() as u32;
            health[place].total = health[place].total.max(tier.parts.total as u32);
            match tier.parts.is_degraded {
                false => health[place].healthy = usable,
                true => health[place].degraded = usable,
            }
        }
        health
    }

    /// Picks from a tier, and from any other one when all of its endpoints fail, which has not been
    /// decided upon yet.
    fn pick_from(
        &self,
        first: usize,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let chosen = &self.tiers[first];
        let mut result = self.pick_in(chosen, endpoints, context);
        let is_meant = self.spill_over.fails_on_panic && chosen.is_panicking.load(Relaxed);
        if result != PickResult::Fail || is_meant {
            return result;
        }
        for (index, tier) in self.tiers.iter().enumerate() {
            if index == first {
                continue;
            }
            match self.pick_in(tier, endpoints, context) {
                PickResult::Fail => {}
                PickResult::Queue => result = PickResult::Queue,
                found @ PickResult::Endpoint(_) => return found,
            }
        }
        result
    }

    /// Has a tier connected that no request wanted before, and all before it.
    fn activate(&self, tier: usize) {
        self.state.wanted.fetch_max(tier + 1, Relaxed);
        self.activated.fetch_max(tier + 1, Relaxed);
    }

    fn pick_in(
        &self,
        tier: &Tier,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        if tier.is_panicking.load(Relaxed) {
            return match self.spill_over.fails_on_panic {
                true => PickResult::Fail,
                false => panic_pick(tier, endpoints, context),
            };
        }
        let range = tier.range.clone();
        tier.picker
            .pick_dyn(&endpoints[range], context)
            .after(tier.range.start)
    }
}

/// A random one of all endpoints that are connected, whatever is known of their health.
fn panic_pick(
    tier: &Tier,
    endpoints: &[ClusterEndpoint],
    context: &mut PickContext<'_, dyn Rng + '_>,
) -> PickResult {
    let usable = |previous: &[SocketAddr], endpoint: &ClusterEndpoint| {
        endpoint.stats.connectivity() == Connectivity::Ready
            && !previous.contains(&endpoint.address)
    };
    let rest = &tier.parts.rest;
    let mut order = [tier.range.clone(), tier.degraded.clone(), rest.clone()];
    // Each endpoint is as likely as any other.
    let all: usize = order.iter().map(|range| range.len()).sum();
    let drawn = context.rng.below(all.max(1) as u64) as usize;
    if drawn >= tier.range.len() {
        let is_degraded = drawn < tier.range.len() + tier.degraded.len();
        order.swap(0, if is_degraded { 1 } else { 2 });
    }
    for previous in [context.previous, &[]] {
        for range in &order {
            let part = &endpoints[range.clone()];
            let found = sample_rest(part, &mut *context.rng, |endpoint| {
                usable(previous, endpoint)
            });
            if let Some(index) = found {
                return PickResult::Endpoint(index + range.start);
            }
        }
    }
    super::unready(&endpoints[tier.range.clone()]).after(tier.range.start)
}

impl LoadBalancer for Tiers {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let shares = self.spill_over.overprovisioning_factor.is_some();
        let first = if shares {
            self.loads.at((context.rng.next_u64() >> 32) as u32)
        } else {
            self.chosen.load(Relaxed)
        };
        self.pick_from(first, endpoints, context)
    }

    fn pick_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        match self.choose_untried(endpoints, &mut *context.rng, tried) {
            Some(first) => {
                self.activate(first);
                self.pick_from(first, endpoints, context)
            }
            None => self.pick(endpoints, context),
        }
    }

    fn observes(&self) -> bool {
        self.tiers.iter().any(|tier| tier.picker.observes())
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut tiers = self.tiers.iter();
        if let Some(tier) = tiers.find(|tier| tier.range.contains(&index)) {
            let range = tier.range.clone();
            tier.picker
                .observe(&endpoints[range.clone()], index - range.start, observation);
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let states = self.tiers.iter().map(|tier| {
            let endpoints = &endpoints[tier.range.clone()];
            match self.connecting {
                Connecting::All => aggregate(endpoints),
                Connecting::OnDemand { failing_max } => aggregate_on_demand(endpoints, failing_max),
            }
        });
        let states: Vec<_> = states.collect();
        let mut failover = lock(&self.state.failover);
        let choice = failover.decide(&states, now);
        self.chosen.store(choice.tier, Relaxed);
        self.activated
            .store(self.state.activated(&failover), Relaxed);
        drop(failover);
        self.share(endpoints);
        let children = self.tiers.iter();
        children
            .filter_map(|tier| tier.picker.refresh(&endpoints[tier.range.clone()], now))
            .chain(choice.next)
            .min()
    }

    fn connects(&self, endpoint: usize) -> bool {
        let activated = self.activated.load(Relaxed);
        let mut tiers = self.tiers.iter().enumerate();
        let is_in =
            |tier: &Tier| tier.range.contains(&endpoint) || tier.parts.rest.contains(&endpoint);
        // What belongs to no priority is kept for sessions.
        let Some((place, tier)) = tiers.find(|(_, tier)| is_in(tier)) else {
            return true;
        };
        let is_wanted = match tier.range.contains(&endpoint) {
            true => tier.picker.connects(endpoint - tier.range.start),
            false => true,
        };
        place < activated && is_wanted
    }
}

/// The connectivity of a priority, from its endpoints' (gRFC A56, as round robin has it).
fn aggregate(endpoints: &[ClusterEndpoint]) -> Connectivity {
    let count = Count::of(endpoints);
    match count {
        Count { ready: 1.., .. } => Connectivity::Ready,
        Count {
            connecting: 1.., ..
        } => Connectivity::Connecting,
        Count { idle: 1.., .. } => Connectivity::Idle,
        Count { .. } => Connectivity::TransientFailure,
    }
}

/// The same where endpoints connect when they are picked, as ring hash has it (gRFC A42). One that is idle
/// is as good as ready: a request shall come to it.
fn aggregate_on_demand(endpoints: &[ClusterEndpoint], failing_max: usize) -> Connectivity {
    let count = Count::of(endpoints);
    match count {
        Count { ready: 1.., .. } => Connectivity::Ready,
        Count { failing, .. } if failing > failing_max => Connectivity::TransientFailure,
        Count {
            connecting: 1.., ..
        }
        | Count {
            failing: 1..,
            idle: 1..,
            ..
        } => Connectivity::Connecting,
        Count { idle: 1.., .. } => Connectivity::Ready,
        Count { .. } => Connectivity::TransientFailure,
    }
}

/// How many endpoints there are of each connectivity.
#[derive(Clone, Copy, Default)]
struct Count {
    ready: usize,
    connecting: usize,
    idle: usize,
    failing: usize,
}

impl Count {
    fn of(endpoints: &[ClusterEndpoint]) -> Self {
        let mut count = Self::default();
        for endpoint in endpoints {
            *match endpoint.stats.availability() {
                Connectivity::Ready => &mut count.ready,
                Connectivity::Connecting => &mut count.connecting,
                Connectivity::Idle => &mut count.idle,
                Connectivity::TransientFailure => &mut count.failing,
            } += 1;
        }
        count
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
