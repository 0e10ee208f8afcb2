//! Which priority gets a request (gRFC A56; Envoy's priority levels).
//!
//! The first priority with a ready endpoint is used. One that is connecting is waited for, but not
//! longer than [`PRIORITY_FAILOVER_TIMEOUT`]; one whose endpoints all fail is not. With an
//! overprovisioning factor priorities share the load by their health instead, and with a panic
//! threshold a priority that has lost too many endpoints uses all of them.
//!
//! Degraded endpoints are priorities of their own, behind all others.

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

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, sample::sample_rest,
    weighted::Weights,
};
use crate::{observed::Observation, rng::Rng, stats::Connectivity};

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
}

/// One priority.
#[derive(Debug)]
pub(super) struct Tier {
    /// Its usable endpoints.
    pub(super) range: Range<usize>,
    /// Its endpoints that are not usable, as far as they are kept for a panic.
    pub(super) rest: Range<usize>,
    /// All of its endpoints, with those that are not kept.
    pub(super) total: usize,
    pub(super) picker: Picker,
    /// Whether all of its endpoints are used, whatever is known of their health.
    pub(super) is_panicking: AtomicBool,
}

/// How the load is shared by health.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpillOver {
    /// Percentage; none: it is not shared, the first priority that can be used is.
    pub(super) overprovisioning_factor: Option<u32>,
    /// Percentage; none or 0: there is no panic.
    pub(super) panic_threshold: Option<u32>,
}

/// Several priorities.
#[derive(Debug)]
pub(super) struct Tiers {
    tiers: Box<[Tier]>,
    spill_over: SpillOver,
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
        state: Arc<TierState>,
        endpoints: &[ClusterEndpoint],
    ) -> Self {
        let mut loads = vec![0.0; tiers.len()];
        loads[0] = 1.0;
        let activated = lock(&state.failover).activated().max(1);
        let this = Self {
            loads: Weights::new(loads, None),
            tiers: tiers.into(),
            spill_over,
            state,
            chosen: AtomicUsize::new(0),
            activated: AtomicUsize::new(activated),
        };
        this.share(endpoints);
        this
    }

    /// Computes loads and panic.
    fn share(&self, endpoints: &[ClusterEndpoint]) {
        let shares = self.tiers.iter().map(|tier| {
            let healthy = endpoints[tier.range.clone()]
                .iter()
                .filter(|endpoint| endpoint.stats.availability() != Connectivity::TransientFailure);
            (healthy.count() as u32, tier.total as u32)
        });
        let shares: Vec<_> = shares.collect();
        let factor = self.spill_over.overprovisioning_factor;
        let loads = priority_loads(&shares, factor.unwrap_or(100));
        let threshold = self.spill_over.panic_threshold.unwrap_or(0);
        for ((tier, (healthy, total)), _) in self.tiers.iter().zip(&shares).zip(&loads.percent) {
            let available = (u64::from(*healthy) * 100).checked_div(u64::from(*total));
            let panics = loads.is_short && available.unwrap_or(0) < u64::from(threshold);
            tier.is_panicking.store(panics, Relaxed);
        }
        if factor.is_some() {
            let percent: Vec<_> = loads.percent.iter().map(|load| f64::from(*load)).collect();
            self.loads.set(&percent);
        }
        if factor.is_some() || threshold > 0 {
            // Who shares is connected.
            self.activated.store(self.tiers.len(), Relaxed);
        }
    }

    fn pick_in(
        &self,
        tier: &Tier,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        if tier.is_panicking.load(Relaxed) {
            return panic_pick(tier, endpoints, context);
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
    let lengths = [tier.range.len() as u64, tier.rest.len() as u64];
    let mut order = [tier.range.clone(), tier.rest.clone()];
    // Each endpoint is as likely as any other.
    if context.rng.below((lengths[0] + lengths[1]).max(1)) >= lengths[0] {
        order.swap(0, 1);
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
        let mut result = self.pick_in(&self.tiers[first], endpoints, context);
        if result != PickResult::Fail {
            return result;
        }
        // All of its endpoints fail, which has not been decided upon yet.
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
        let states: Vec<_> = self
            .tiers
            .iter()
            .map(|tier| aggregate(&endpoints[tier.range.clone()]))
            .collect();
        let mut failover = lock(&self.state.failover);
        let choice = failover.decide(&states, now);
        self.chosen.store(choice.tier, Relaxed);
        self.activated.store(failover.activated(), Relaxed);
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
        let is_in = |tier: &Tier| tier.range.contains(&endpoint) || tier.rest.contains(&endpoint);
        // What belongs to no priority is kept for sessions.
        self.tiers
            .iter()
            .position(is_in)
            .is_none_or(|tier| tier < activated)
    }
}

/// The connectivity of a priority, from its endpoints' (gRFC A56, as round robin has it).
fn aggregate(endpoints: &[ClusterEndpoint]) -> Connectivity {
    let mut result = Connectivity::TransientFailure;
    for endpoint in endpoints {
        match endpoint.stats.availability() {
            Connectivity::Ready => return Connectivity::Ready,
            Connectivity::Connecting => result = Connectivity::Connecting,
            Connectivity::Idle if result == Connectivity::TransientFailure => {
                result = Connectivity::Idle;
            }
            Connectivity::Idle | Connectivity::TransientFailure => {}
        }
    }
    result
}

/// Shares of the load of priorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PriorityLoads {
    /// For each, 0 to 100; the sum is 100.
    pub(super) percent: Vec<u32>,
    /// Whether all together cannot take all of the load.
    pub(super) is_short: bool,
}

/// Envoy's formula, from the usable and all endpoints of each priority and the overprovisioning factor
/// in percent.
pub(super) fn priority_loads(tiers: &[(u32, u32)], factor: u32) -> PriorityLoads {
    let health: Vec<u32> = tiers
        .iter()
        .map(|(healthy, total)| {
            let percent = u64::from(factor) * u64::from(*healthy);
            percent.checked_div(u64::from(*total)).unwrap_or(0).min(100) as u32
        })
        .collect();
    let sum: u32 = health.iter().sum::<u32>().min(100);
    let mut percent = vec![0; tiers.len()];
    let mut left: u32 = 100;
    if sum > 0 {
        for (load, health) in percent.iter_mut().zip(&health) {
            *load = left.min((f64::from(*health) * 100.0 / f64::from(sum)).round() as u32);
            left -= *load;
        }
    }
    // What rounding leaves over goes to the first that takes anything.
    let first = health.iter().position(|health| *health > 0).unwrap_or(0);
    if let Some(load) = percent.get_mut(first) {
        *load += left;
    }
    PriorityLoads {
        percent,
        is_short: sum < 100,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
