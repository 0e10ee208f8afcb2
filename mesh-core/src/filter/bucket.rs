//! A token bucket without a lock.
//!
//! Tokens come at an even rate, as in Envoy since 1.32, not at once at the end of each interval. The
//! bucket is one number: how much was ever taken, in parts of a token. What ever came follows from the
//! time. At most `max_tokens + rate · t` are taken within `t`.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::config::TokenBucket;

/// Parts of a token that are counted, unless the rate is so high that they would not fit.
const PARTS_MAX: u64 = 1 << 20;
/// How long a bucket counts without overflow, at least: 20 years.
const LIFE_SECONDS: u128 = 20 * 365 * 86_400;

/// A bucket of tokens that many threads take from.
#[derive(Debug)]
pub struct AtomicBucket {
    config: TokenBucket,
    /// Parts of a token.
    parts: u64,
    /// When it was full for the first time: at its first use.
    epoch: OnceLock<Instant>,
    /// Parts that were taken, or that did not fit.
    spent: AtomicU64,
}

impl AtomicBucket {
    /// A full bucket.
    pub fn new(config: TokenBucket) -> Self {
        let interval = config.fill_interval.as_nanos().max(1);
        let in_life = u128::from(config.tokens_per_fill) * LIFE_SECONDS * 1_000_000_000 / interval;
        let mut parts = PARTS_MAX;
        while parts > 1 && in_life * u128::from(parts) > u128::from(u64::MAX / 4) {
            parts /= 2;
        }
        Self {
            config,
            parts,
            epoch: OnceLock::new(),
            spent: AtomicU64::new(0),
        }
    }

    /// Its limits.
    pub fn config(&self) -> &TokenBucket {
        &self.config
    }

    /// Takes a token if there is one.
    pub fn try_take(&self, now: Instant) -> bool {
        let (came, full) = (self.came(now), self.full());
        let mut spent = self.spent.load(Relaxed);
        loop {
            // What came while it was full is lost.
            let next = spent.max(came.saturating_sub(full)) + self.parts;
            if next > came {
                return false;
            }
            match self
                .spent
                .compare_exchange_weak(spent, next, Relaxed, Relaxed)
            {
                Ok(_) => return true,
                Err(changed) => spent = changed,
            }
        }
    }

    /// Whole tokens in it.
    pub fn remaining(&self, now: Instant) -> u64 {
        self.left(now) / self.parts
    }

    /// Until there is a token; zero when there is.
    pub fn next_token(&self, now: Instant) -> Duration {
        self.time_to_fill(self.parts.saturating_sub(self.left(now)))
    }

    /// Until it is full.
    pub fn reset(&self, now: Instant) -> Duration {
        self.time_to_fill(self.full() - self.left(now))
    }

    /// Parts in it.
    fn left(&self, now: Instant) -> u64 {
        let came = self.came(now);
        came.saturating_sub(self.spent.load(Relaxed))
            .min(self.full())
    }

    fn full(&self) -> u64 {
        u64::from(self.config.max_tokens) * self.parts
    }

    /// Parts that came until now, those of the beginning among them.
    fn came(&self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_init(|| now);
        let elapsed = now.saturating_duration_since(epoch).as_nanos();
        let rate = u128::from(self.config.tokens_per_fill) * u128::from(self.parts);
        let came = elapsed.saturating_mul(rate) / self.config.fill_interval.as_nanos().max(1);
        let came = u64::try_from(came).unwrap_or(u64::MAX / 2);
        came.min(u64::MAX / 2).saturating_add(self.full())
    }

    fn time_to_fill(&self, parts: u64) -> Duration {
        let rate = u128::from(self.config.tokens_per_fill) * u128::from(self.parts);
        let nanos = u128::from(parts) * self.config.fill_interval.as_nanos();
        let nanos = nanos.div_ceil(rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
