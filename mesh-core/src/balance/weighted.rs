//! Shares by weight: round robin, and least request among endpoints of different weights.
//!
//! [`Weights`] is a table of cumulative shares that is changed in place while it is read. A sequence
//! of the golden ratio's multiples goes through it: each endpoint comes as often as its weight says,
//! and at nearly even distances (the three-distance theorem), as an earliest-deadline-first schedule
//! would have it, without a lock and without a limit on how far weights may be apart, which a static
//! stride has (gRFC A58).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, is_eligible, or_unready,
    sample::REJECTIONS_MAX, scan,
};
use crate::{
    config::{self, SlowStart},
    rng::{Rng, SplitMix64},
};

/// 2^32 divided by the golden ratio.
const GOLDEN_RATIO: u32 = 0x9E37_79B9;

/// How often the weights of endpoints in slow start change, at most.
const SLOW_START_STEP_MIN: Duration = Duration::from_millis(100);

/// Shares of the whole, by index.
#[derive(Debug)]
pub(super) struct Weights {
    base: Box<[f64]>,
    /// Where the share of each one ends, as a part of 2^32.
    ends: Box<[AtomicU32]>,
    is_even: AtomicBool,
    slow_start: Option<SlowStart>,
}

impl Weights {
    pub(super) fn new(base: Vec<f64>, slow_start: Option<SlowStart>) -> Self {
        let weights = Self {
            ends: base.iter().map(|_| AtomicU32::new(0)).collect(),
            base: base.into(),
            is_even: AtomicBool::new(true),
            slow_start,
        };
        weights.set(&weights.base);
        weights
    }

    /// Takes these weights, one for each index, none of them negative.
    pub(super) fn set(&self, weights: &[f64]) {
        let is_even = weights.iter().all(|weight| *weight == weights[0]);
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        for (weight, end) in weights.iter().zip(&self.ends) {
            sum += weight;
            let part = sum / total * (f64::from(u32::MAX) + 1.0);
            // Saturates at the end of the range.
            end.store(part as u32, Relaxed);
        }
        self.is_even.store(is_even, Relaxed);
    }

    pub(super) fn is_even(&self) -> bool {
        self.is_even.load(Relaxed)
    }

    /// Whose share `point` is in. Always an index, even while the weights change.
    pub(super) fn at(&self, point: u32) -> usize {
        let (mut low, mut high) = (0, self.ends.len() - 1);
        while low < high {
            let middle = (low + high) / 2;
            if point < self.ends[middle].load(Relaxed) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    fn share(&self, index: usize) -> u64 {
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1].load(Relaxed),
        };
        self.ends[index].load(Relaxed).saturating_sub(start).into()
    }

    /// Whose share the next point is in, among those that `accepts`.
    pub(super) fn draw(
        &self,
        mut point: impl FnMut() -> u32,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.ends.is_empty() {
            return None;
        }
        for _ in 0..REJECTIONS_MAX {
            let index = self.at(point());
            if accepts(index) {
                return Some(index);
            }
        }
        let accepted = || (0..self.ends.len()).filter(|index| accepts(*index));
        let total: u64 = accepted().map(|index| self.share(index)).sum();
        let mut left = (u64::from(point()) * total) >> 32;
        let mut last = None;
        for index in accepted() {
            let share = self.share(index);
            last = Some(index);
            if left < share {
                break;
            }
            left -= share;
        }
        last
    }

    /// An eligible endpoint by weight.
    fn draw_endpoint(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
        point: impl FnMut() -> u32,
    ) -> Option<usize> {
        self.draw(point, |index| is_eligible(&endpoints[index], previous))
    }

    /// Lets the weights of new endpoints grow. Returns when they are to be looked at again.
    pub(super) fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let slow_start = self.slow_start.as_ref()?;
        let mut is_growing = false;
        let weights: Vec<_> = endpoints
            .iter()
            .zip(&self.base)
            .map(|(endpoint, weight)| {
                let age = endpoint.stats.observe(now).age(now);
                is_growing |= age < slow_start.window;
                weight * slow_start.factor(age)
            })
            .collect();
        self.set(&weights);
        is_growing.then(|| now + (slow_start.window / 100).max(SLOW_START_STEP_MIN))
    }
}

/// Round robin by weight.
#[derive(Debug)]
pub(super) struct WeightedRoundRobin {
    next: AtomicU32,
    weights: Weights,
}

impl WeightedRoundRobin {
    pub(super) fn new(weights: Weights, start: u64) -> Self {
        Self {
            next: AtomicU32::new(start as u32),
            weights,
        }
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(super) fn choose(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
    ) -> Option<usize> {
        if endpoints.is_empty() {
            return None;
        }
        if !self.weights.is_even() {
            let turn = self.next.fetch_add(1, Relaxed);
            let mut draws = 0;
            let point = || {
                draws += 1;
                match draws {
                    1 => turn.wrapping_mul(GOLDEN_RATIO),
                    // What follows a point in the sequence depends on it: the share of an endpoint
                    // that cannot be used would go to a few others.
                    _ => (SplitMix64::new(u64::from(turn) << 8 | draws).next_u64() >> 32) as u32,
                }
            };
            return self.weights.draw_endpoint(endpoints, previous, point);
        }
        let start = self.next.fetch_add(1, Relaxed) as usize % endpoints.len();
        let picked = scan(endpoints, previous, start)?;
        let skipped = (picked + endpoints.len() - start) % endpoints.len();
        if skipped > 0 {
            self.next.fetch_add(skipped as u32, Relaxed);
        }
        Some(picked)
    }
}

impl LoadBalancer for WeightedRoundRobin {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let picked = self.choose(endpoints, context.previous);
        or_unready(picked, endpoints)
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.weights.refresh(endpoints, now)
    }
}

/// Least request among endpoints of different weights: they are sampled by weight, and the lowest
/// `in_flight ^ bias / weight` wins, the first sampled on a tie. Without load it is weighted random.
///
/// Envoy schedules by `weight / (in_flight + 1) ^ bias` there, without choosing among samples, so
/// that one endpoint of another weight makes the whole cluster slower to avoid a loaded one.
#[derive(Debug)]
pub(super) struct WeightedLeastRequest {
    config: config::LeastRequest,
    weights: Weights,
}

impl WeightedLeastRequest {
    pub(super) fn new(config: config::LeastRequest, weights: Weights) -> Self {
        Self { config, weights }
    }

    fn load(&self, endpoints: &[ClusterEndpoint], index: usize) -> f64 {
        let in_flight = f64::from(endpoints[index].stats.load());
        let bias = self.config.active_request_bias;
        let in_flight = if bias == 1.0 {
            in_flight
        } else {
            in_flight.powf(bias)
        };
        in_flight / self.weights.share(index).max(1) as f64
    }
}

impl LoadBalancer for WeightedLeastRequest {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let mut best: Option<(f64, usize)> = None;
        let choices = match self.config.active_request_bias {
            0.0 => 1,
            _ => self.config.choice_count,
        };
        for _ in 0..choices {
            let point = || (context.rng.next_u64() >> 32) as u32;
            let drawn = self
                .weights
                .draw_endpoint(endpoints, context.previous, point);
            let Some(index) = drawn else {
                break;
            };
            let load = self.load(endpoints, index);
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, index));
            }
        }
        or_unready(best.map(|(_, index)| index), endpoints)
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.weights.refresh(endpoints, now)
    }
}
