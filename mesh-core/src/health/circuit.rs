//! Requests and retries in flight of one cluster, as counters that threads do not wait for.
//!
//! Limits are passed in at each call because they change with the configuration while requests
//! are in flight; changing a limit does not reset a count (gRFC A32).
//!
//! The retry budget's share is earned by requests and spent by retries, as in Finagle, instead of
//! being compared with the requests in flight at the moment, as in Envoy: when an endpoint dies,
//! all of its requests fail at the same moment, and a share of those in flight would refuse most
//! of the retries that this is for. Over time the share is the same.

use std::sync::{Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed};

use crate::{
    config::CircuitBreakers,
    shard::{self, Padded, Sharded},
    sync::{AtomicI32, AtomicI64, AtomicU32, AtomicU64},
};

/// Counters of one cluster. Belongs to the cluster's name, not to a snapshot.
///
/// A limit is exact, and still threads do not meet at one counter: each shard keeps a few permits of
/// its own, takes more from the common ones when it has none, and from the other shards when those
/// are used up.
#[derive(Debug, Default)]
pub struct Circuit {
    permits: OnceLock<Permits>,
    retries: AtomicU32,
    dropped: AtomicU64,
    /// Retries that were earned and not spent yet, in hundredths.
    earned: AtomicI64,
}

/// The permits of a cluster. At any time the limit is the sum of the common ones, those of the
/// shards and those that are out.
#[derive(Debug)]
struct Permits {
    limit: AtomicU32,
    /// Permits that a shard takes at a time.
    batch: AtomicI32,
    common: AtomicI64,
    shards: Sharded<Padded<AtomicI32>>,
    /// Held while the limit changes.
    change: Mutex<()>,
}

/// Permits that a shard takes at a time, at most.
const BATCH_MAX: u32 = 16;

/// Unspent retries kept at most: how many requests may fail at one moment and all be tried again.
pub const RETRIES_EARNED_MAX: u32 = 100;

impl Permits {
    fn new(limit: u32) -> Self {
        Self {
            limit: AtomicU32::new(limit),
            batch: AtomicI32::new(batch(limit)),
            common: AtomicI64::new(i64::from(limit)),
            shards: Sharded::default(),
            change: Mutex::new(()),
        }
    }

    #[inline]
    fn acquire(&self) -> bool {
        let local = self.shards.local();
        if take(local) {
            return true;
        }
        // Most come from the common ones, a batch at a time.
        let batch = i64::from(self.batch.load(Relaxed));
        let taken = self.common.fetch_update(Relaxed, Relaxed, |common| {
            (common > 0).then(|| common - common.min(batch))
        });
        if let Ok(before) = taken {
            local.fetch_add(before.min(batch) as i32 - 1, Relaxed);
            return true;
        }
        self.shards.iter().any(|shard| take(shard))
    }

    #[inline]
    fn release(&self) {
        let local = self.shards.local();
        let batch = self.batch.load(Relaxed);
        // Requests may begin on one thread and end on another: what gathers goes back. Only what is
        // still there, or others would take from the common ones what this shard owes.
        if local.fetch_add(1, Relaxed) + 1 > 2 * batch {
            let surplus = |held| (held > 2 * batch).then(|| held - batch);
            if local.fetch_update(Relaxed, Relaxed, surplus).is_ok() {
                self.common.fetch_add(i64::from(batch), Relaxed);
            }
        }
    }

    /// Follows the configuration; requests in flight keep their permits.
    fn set_limit(&self, limit: u32) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.limit.swap(limit, Relaxed);
        self.batch.store(batch(limit), Relaxed);
        self.common
            .fetch_add(i64::from(limit) - i64::from(before), Relaxed);
        // A lower limit holds at once.
        for shard in self.shards.iter() {
            let held = shard.swap(0, Relaxed);
            self.common.fetch_add(i64::from(held), Relaxed);
        }
    }

    fn out(&self) -> u32 {
        let held: i64 = self.shards.iter().map(|s| i64::from(s.load(Relaxed))).sum();
        let out = i64::from(self.limit.load(Relaxed)) - self.common.load(Relaxed) - held;
        u32::try_from(out.max(0)).unwrap_or(u32::MAX)
    }
}

fn batch(limit: u32) -> i32 {
    (limit / (4 * shard::count() as u32)).clamp(1, BATCH_MAX) as i32
}

/// Takes one permit of a shard.
fn take(shard: &AtomicI32) -> bool {
    if shard.load(Relaxed) <= 0 {
        return false;
    }
    // Add back when another thread was faster: one operation in the usual case.
    let is_taken = shard.fetch_sub(1, Relaxed) > 0;
    if !is_taken {
        shard.fetch_add(1, Relaxed);
    }
    is_taken
}

impl Circuit {
    /// Takes a permit for a request; give it back with [`release`](Self::release). `false` when
    /// `max_requests` are in flight, which is counted as a drop.
    #[inline]
    pub fn try_acquire(&self, limits: &CircuitBreakers) -> bool {
        let permits = self
            .permits
            .get_or_init(|| Permits::new(limits.max_requests));
        if permits.limit.load(Relaxed) != limits.max_requests {
            permits.set_limit(limits.max_requests);
        }
        if permits.acquire() {
            // In steady state the balance is full and this is a read.
            if self.earned.load(Relaxed) < i64::from(RETRIES_EARNED_MAX) * 100 {
                self.earned
                    .fetch_add(i64::from(limits.retry_budget.percent), Relaxed);
            }
            return true;
        }
        self.dropped.fetch_add(1, Relaxed);
        false
    }

    /// Gives back a permit of [`try_acquire`](Self::try_acquire).
    #[inline]
    pub fn release(&self) {
        if let Some(permits) = self.permits.get() {
            permits.release();
        }
    }

    /// Takes a permit for a retry; give it back with [`release_retry`](Self::release_retry).
    /// `false` when `max_retries`
    /// are in flight, or where there is no such limit, when the budget's share is spent and its
    /// minimum is in flight.
    pub fn try_acquire_retry(&self, limits: &CircuitBreakers) -> bool {
        let in_flight = self.retries.fetch_add(1, Relaxed);
        if let Some(limit) = limits.max_retries {
            let is_permitted = in_flight < limit;
            if !is_permitted {
                self.retries.fetch_sub(1, Relaxed);
            }
            return is_permitted;
        }
        if self.earned.fetch_sub(100, Relaxed) >= 100 {
            return true;
        }
        self.earned.fetch_add(100, Relaxed);
        if in_flight < limits.retry_budget.min_retry_concurrency {
            return true;
        }
        self.retries.fetch_sub(1, Relaxed);
        false
    }

    /// Gives back a permit of [`try_acquire_retry`](Self::try_acquire_retry).
    pub fn release_retry(&self) {
        self.retries.fetch_sub(1, Relaxed);
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.permits.get().map_or(0, Permits::out)
    }

    /// Retries in flight.
    pub fn retries(&self) -> u32 {
        self.retries.load(Relaxed)
    }

    /// Requests refused since the process started.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RetryBudget;

    #[test]
    fn the_limit_holds_and_permits_come_back() {
        let circuit = Circuit::default();
        let limits = CircuitBreakers {
            max_requests: 2,
            ..CircuitBreakers::default()
        };
        assert!(circuit.try_acquire(&limits) && circuit.try_acquire(&limits));
        assert!(!circuit.try_acquire(&limits));
        circuit.release();
        assert!(circuit.try_acquire(&limits));
        assert_eq!((circuit.requests(), circuit.dropped()), (2, 1));
        let none = CircuitBreakers {
            max_requests: 0,
            ..limits
        };
        assert!(!circuit.try_acquire(&none));
    }

    #[test]
    fn threads_never_pass_the_limit_together_and_lose_no_permit() {
        const LIMIT: u32 = 40;
        let circuit = Circuit::default();
        let limits = CircuitBreakers {
            max_requests: LIMIT,
            ..CircuitBreakers::default()
        };
        let out = AtomicU32::new(0);
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000u32 {
                        let wanted = 1 + round % 23;
                        let taken = (0..wanted)
                            .filter(|_| {
                                let is_taken = circuit.try_acquire(&limits);
                                if is_taken {
                                    most.fetch_max(out.fetch_add(1, Relaxed) + 1, Relaxed);
                                }
                                is_taken
                            })
                            .count();
                        for _ in 0..taken {
                            out.fetch_sub(1, Relaxed);
                            circuit.release();
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= LIMIT);
        assert_eq!(circuit.requests(), 0);
        // Wherever the permits gathered, all of them can be had.
        let all = (0..=LIMIT).filter(|_| circuit.try_acquire(&limits)).count();
        assert_eq!(all, LIMIT as usize);
    }

    #[test]
    fn a_limit_of_retries_holds_instead_of_the_budget() {
        let circuit = Circuit::default();
        let limits = CircuitBreakers {
            max_retries: Some(1),
            ..CircuitBreakers::default()
        };
        for _ in 0..100 {
            assert!(circuit.try_acquire(&limits));
        }
        assert!(circuit.try_acquire_retry(&limits));
        assert!(!circuit.try_acquire_retry(&limits), "whatever was earned");
        circuit.release_retry();
        assert!(circuit.try_acquire_retry(&limits));
    }

    #[test]
    fn the_budget_is_earned_by_requests_spent_by_retries_and_has_a_minimum() {
        let circuit = Circuit::default();
        let limits = CircuitBreakers {
            max_requests: u32::MAX,
            retry_budget: RetryBudget {
                percent: 20,
                min_retry_concurrency: 3,
            },
            ..CircuitBreakers::default()
        };
        let retries = || {
            (0..1_000)
                .filter(|_| circuit.try_acquire_retry(&limits))
                .count()
        };
        assert_eq!(retries(), 3, "the minimum, nothing was earned");
        for _ in 0..50 {
            assert!(circuit.try_acquire(&limits));
            circuit.release();
        }
        assert_eq!(retries(), 10, "20 % of 50, although nothing is in flight");
        circuit.release_retry();
        assert_eq!(retries(), 0, "more than the minimum is in flight");
        for _ in 0..100_000 {
            assert!(circuit.try_acquire(&limits));
        }
        assert_eq!(retries(), RETRIES_EARNED_MAX as usize);
    }
}
