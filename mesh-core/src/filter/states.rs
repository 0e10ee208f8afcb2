//! What filters count, which outlives snapshots (gRFC A83).
//!
//! A filter whose place and configuration stay the same goes on with its tokens and its limit when
//! something else changes.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::{concurrency::ConcurrencyController, fault::ActiveFaults, rate_limit::RateLimiter};
use crate::{
    config::{AdaptiveConcurrency, LocalRateLimit},
    rng::{Rng, SplitMix64},
};

/// The states of filters in use.
#[derive(Debug)]
pub struct FilterStates {
    limiters: HashMap<String, Weak<RateLimiter>>,
    controllers: HashMap<String, Weak<ConcurrencyController>>,
    pub(super) active_faults: ActiveFaults,
    rng: SplitMix64,
}

impl FilterStates {
    /// None yet. `seed` spreads what controllers do over time.
    pub fn new(seed: u64) -> Self {
        Self {
            limiters: HashMap::new(),
            controllers: HashMap::new(),
            active_faults: ActiveFaults::default(),
            rng: SplitMix64::new(seed),
        }
    }

    pub(super) fn limiter(
        &mut self,
        place: String,
        config: &Arc<LocalRateLimit>,
    ) -> Arc<RateLimiter> {
        let held = self.limiters.get(&place).and_then(Weak::upgrade);
        if let Some(held) = held.filter(|held| held.config() == config) {
            return held;
        }
        let made = Arc::new(RateLimiter::new(config));
        self.limiters.insert(place, Arc::downgrade(&made));
        made
    }

    pub(super) fn controller(
        &mut self,
        place: String,
        config: &Arc<AdaptiveConcurrency>,
    ) -> Arc<ConcurrencyController> {
        let held = self.controllers.get(&place).and_then(Weak::upgrade);
        if let Some(held) = held.filter(|held| held.config() == config) {
            return held;
        }
        let made = Arc::new(ConcurrencyController::new(config, self.rng.next_u64()));
        self.controllers.insert(place, Arc::downgrade(&made));
        made
    }

    /// Forgets what no snapshot uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.limiters.retain(|_, held| held.strong_count() > 0);
        self.controllers.retain(|_, held| held.strong_count() > 0);
    }
}
