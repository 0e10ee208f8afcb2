//! All requests to one endpoint as long as it can be reached (gRFC A61, A62).
//!
//! The first one that can be reached, in the order of the list or in a random order by weight (gRFC
//! A113), kinds of addresses in turn (RFC 8305). Nobody is connected before the first request; then one
//! after the other is tried, the next one when the last one failed or has not connected for
//! [`ATTEMPT_DELAY`]. The first that connects is kept until it is lost, and then it begins anew.
//! Deviation: one that connects later than another stays connected, and is next.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{ClusterEndpoint, LoadBalancer, PickContext, PickResult, is_eligible, unready};
use crate::{
    rng::{Rng, SplitMix64},
    stats::Connectivity,
};

/// How long an attempt to connect has before the next one begins beside it (RFC 8305, gRFC A61).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct PickFirst {
    order: Box<[u32]>,
    /// Where in the order the endpoint in use is.
    selected: AtomicUsize,
    /// When the next attempt begins, if none has succeeded or failed before.
    next_attempt: Mutex<Option<Instant>>,
}

impl PickFirst {
    pub(super) fn new(
        endpoints: &[ClusterEndpoint],
        weights: &[f64],
        is_shuffled: bool,
        seed: u64,
    ) -> Self {
        let mut order: Vec<_> = (0..weights.len() as u32).collect();
        if is_shuffled {
            let mut rng = SplitMix64::new(seed);
            let keys: Vec<_> = weights
                .iter()
                .map(|weight| rng.unit().powf(1.0 / weight))
                .collect();
            order.sort_by(|a, b| keys[*b as usize].total_cmp(&keys[*a as usize]));
        }
        Self {
            order: by_turns(endpoints, &order).into(),
            selected: AtomicUsize::new(0),
            next_attempt: Mutex::new(None),
        }
    }

    fn in_order<'e>(
        &'e self,
        endpoints: &'e [ClusterEndpoint],
    ) -> impl Iterator<Item = &'e ClusterEndpoint> {
        self.order.iter().map(|index| &endpoints[*index as usize])
    }

    /// Asks for a connection to the first one that has none.
    fn try_next(&self, endpoints: &[ClusterEndpoint]) -> bool {
        let mut all = self.in_order(endpoints);
        let idle = all.find(|endpoint| endpoint.stats.availability() == Connectivity::Idle);
        if let Some(endpoint) = idle {
            endpoint.stats.want();
        }
        idle.is_some()
    }
}

/// IPv6 and IPv4 in turn, beginning with the kind of the first.
fn by_turns(endpoints: &[ClusterEndpoint], order: &[u32]) -> Vec<u32> {
    let is_v6 = |index: &u32| endpoints[*index as usize].address.is_ipv6();
    let first = order.first().is_some_and(is_v6);
    let (mut turn, mut other): (VecDeque<u32>, VecDeque<u32>) =
        order.iter().partition(|index| is_v6(index) == first);
    let mut result = Vec::with_capacity(order.len());
    while let Some(index) = turn.pop_front().or_else(|| other.pop_front()) {
        result.push(index);
        std::mem::swap(&mut turn, &mut other);
    }
    result
}

impl LoadBalancer for PickFirst {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let can_use = |place: &usize| {
            let index = self.order[*place] as usize;
            is_eligible(&endpoints[index], context.previous)
        };
        if self.order.is_empty() {
            return PickResult::Fail;
        }
        let selected = self.selected.load(Relaxed);
        let place = if can_use(&selected) {
            selected
        } else {
            let Some(place) = (0..self.order.len()).find(can_use) else {
                let result = unready(endpoints);
                let is_trying = |endpoint: &ClusterEndpoint| {
                    endpoint.stats.availability() == Connectivity::Connecting
                };
                if result == PickResult::Queue && !endpoints.iter().any(is_trying) {
                    self.try_next(endpoints);
                }
                return result;
            };
            // A retry that goes elsewhere moves nobody else.
            if context.previous.is_empty() {
                self.selected.store(place, Relaxed);
            }
            place
        };
        PickResult::Endpoint(self.order[place] as usize)
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let mut next = self
            .next_attempt
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let states = || {
            endpoints
                .iter()
                .map(|endpoint| endpoint.stats.availability())
        };
        let is = |state| states().any(|other| other == state);
        if is(Connectivity::Ready) || !is(Connectivity::Connecting) {
            // Nothing is tried, or that has ended: a request asks for what comes then.
            *next = None;
            return None;
        }
        let due = *next.get_or_insert(now + ATTEMPT_DELAY);
        if due <= now {
            *next = self.try_next(endpoints).then_some(now + ATTEMPT_DELAY);
        }
        *next
    }

    fn connects(&self, _: usize) -> bool {
        false
    }
}
