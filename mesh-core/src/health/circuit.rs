//! Requests and retries in flight of one cluster, as counters that threads do not wait for.
//!
//! Limits change with the configuration while requests are in flight; changing a limit does not reset
//! a count (gRFC A32).
//!
//! The retry budget's share is earned by requests and spent by retries, as in Finagle, instead of
//! being compared with the requests in flight at the moment, as in Envoy: when an endpoint dies,
//! all of its requests fail at the same moment, and a share of those in flight would refuse most
//! of the retries that this is for. Over time the share is the same.

use std::sync::{
    PoisonError,
    atomic::{AtomicU64 as Count, Ordering::Relaxed},
};

use crate::{
    config::CircuitBreakers,
    shard::{self, Padded, Sharded},
    sync::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Mutex},
};

/// Counters of one cluster. Belongs to the cluster's name, not to a snapshot.
///
/// A limit is exact, and still threads do not meet at one counter: each shard keeps a few permits of
/// its own, takes more from the common ones when it has none, and from the other shards when those
/// are used up. At any time the limit is the sum of the common ones, those of the shards and those
/// that are out.
#[derive(Debug)]
pub struct Circuit {
    permits: Permits,
    limit: AtomicU32,
    common: AtomicI64,
    /// Held while the limit changes.
    change: Mutex<()>,
    dropped: AtomicU64,
    retries: AtomicU32,
    earned: Mutex<Earned>,
}

/// The permits that shards have. Clones share them: who keeps one need not look at the [`Circuit`] for
/// most requests.
#[derive(Clone, Debug)]
pub struct Permits {
    shards: Sharded<Padded<Shard>>,
}

/// What one request touches.
#[derive(Debug, Default)]
struct Shard {
    permits: AtomicI32,
    /// Permits that it takes from the common ones at a time; 0 while more are out than there should be,
    /// and those that come back are not for the next request.
    batch: AtomicI32,
    /// Requests that got a permit here.
    permitted: Count,
}

/// What retries may spend. Requests earn it by being counted; that is looked at when one is spent.
#[derive(Debug, Default)]
struct Earned {
    /// In hundredths of a retry.
    balance: i64,
    /// Requests that have earned already.
    requests: u64,
}

/// Permits that a shard takes at a time, at most.
const BATCH_MAX: u32 = 16;

/// Unspent retries kept at most: how many requests may fail at one moment and all be tried again.
pub const RETRIES_EARNED_MAX: u32 = 100;

impl Permits {
    /// Takes a permit that the thread's shard has. When it has none, ask the
    /// [circuit](Circuit::try_acquire).
    #[inline]
    pub fn try_take(&self) -> bool {
        let (shard, adder) = self.shards.counters();
        let is_taken = take(&shard.permits);
        if is_taken {
            adder.add(&shard.permitted, 1);
        }
        is_taken
    }

    /// Gives a permit to the thread's shard. `false` when that has too many now: tell the
    /// [circuit](Circuit::gather).
    #[inline]
    #[must_use]
    pub fn put(&self) -> bool {
        let shard = self.shards.local();
        let batch = shard.batch.load(Relaxed);
        shard.permits.fetch_add(1, Relaxed) < 2 * batch
    }

    fn local(&self) -> &Shard {
        self.shards.local()
    }

    fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().map(|shard| &**shard)
    }
}

impl Circuit {
    /// One of a cluster that may have so many requests in flight.
    pub fn new(max_requests: u32) -> Self {
        let batch = batch(max_requests);
        Self {
            permits: Permits {
                shards: Sharded::new(|| {
                    Padded(Shard {
                        batch: AtomicI32::new(batch),
                        ..Shard::default()
                    })
                }),
            },
            limit: AtomicU32::new(max_requests),
            common: AtomicI64::new(i64::from(max_requests)),
            change: Mutex::new(()),
            dropped: AtomicU64::new(0),
            retries: AtomicU32::new(0),
            earned: Mutex::new(Earned::default()),
        }
    }

    /// What shards have of its permits.
    pub fn permits(&self) -> &Permits {
        &self.permits
    }

    /// Follows the configuration; requests in flight keep their permits.
    pub fn set_max_requests(&self, limit: u32) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.limit.swap(limit, Relaxed);
        if before == limit {
            return;
        }
        self.common
            .fetch_add(i64::from(limit) - i64::from(before), Relaxed);
        // A lower limit holds at once.
        for shard in self.permits.iter() {
            let held = shard.permits.swap(0, Relaxed);
            self.common.fetch_add(i64::from(held), Relaxed);
        }
        self.set_batch(limit);
    }

    /// Under the lock of changes.
    fn set_batch(&self, limit: u32) {
        let is_in_debt = self.common.load(Relaxed) < 0;
        let batch = if is_in_debt { 0 } else { batch(limit) };
        for shard in self.permits.iter() {
            shard.batch.store(batch, Relaxed);
        }
    }

    /// The limit of requests in flight.
    pub fn max_requests(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Takes a permit for a request; give it back with [`release`](Self::release). `false` when as many
    /// are in flight as may be, which is counted as a drop.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        if self.permits.try_take() {
            return true;
        }
        let is_taken = self.acquire_elsewhere();
        if is_taken {
            let (shard, adder) = self.permits.shards.counters();
            adder.add(&shard.permitted, 1);
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
        is_taken
    }

    /// Most come from the common ones, a batch at a time.
    #[cold]
    fn acquire_elsewhere(&self) -> bool {
        let shard = self.permits.local();
        let batch = i64::from(shard.batch.load(Relaxed).max(1));
        let taken = self.common.fetch_update(Relaxed, Relaxed, |common| {
            (common > 0).then(|| common - common.min(batch))
        });
        if let Ok(before) = taken {
            let more = before.min(batch) as i32 - 1;
            shard.permits.fetch_add(more, Relaxed);
            return true;
        }
        self.permits.iter().any(|shard| take(&shard.permits))
    }

    /// Gives back a permit of [`try_acquire`](Self::try_acquire).
    #[inline]
    pub fn release(&self) {
        if !self.permits.put() {
            self.gather();
        }
    }

    /// Makes common what the thread's shard has too many of: requests may begin on one thread and end on
    /// another.
    #[cold]
    pub fn gather(&self) {
        let shard = self.permits.local();
        let batch = shard.batch.load(Relaxed);
        if batch == 0 {
            let held = i64::from(shard.permits.swap(0, Relaxed));
            if self.common.fetch_add(held, Relaxed) + held >= 0 {
                let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
                self.set_batch(self.max_requests());
            }
            return;
        }
        // Only what is still there, or others would take from the common ones what this shard owes.
        let surplus = |held| (held > 2 * batch).then(|| held - batch);
        if shard
            .permits
            .fetch_update(Relaxed, Relaxed, surplus)
            .is_ok()
        {
            self.common.fetch_add(i64::from(batch), Relaxed);
        }
    }

    /// Takes a permit for a retry; give it back with [`release_retry`](Self::release_retry).
    /// `false` when `max_retries` are in flight, or where there is no such limit, when the budget's
    /// share is spent and its minimum is in flight.
    pub fn try_acquire_retry(&self, limits: &CircuitBreakers) -> bool {
        let in_flight = self.retries.fetch_add(1, Relaxed);
        let budget = &limits.retry_budget;
        let is_permitted = match limits.max_retries {
            Some(limit) => in_flight < limit,
            None => self.spend(budget.percent) || in_flight < budget.min_retry_concurrency,
        };
        if !is_permitted {
            self.retries.fetch_sub(1, Relaxed);
        }
        is_permitted
    }

    /// Spends one retry, of which each request earns `percent` hundredths.
    fn spend(&self, percent: u32) -> bool {
        let mut earned = self.earned.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = self.permitted();
        // Counters of threads are not read at one moment: what seems less than before is nothing new.
        let new = requests.saturating_sub(earned.requests);
        earned.requests = earned.requests.max(requests);
        let most = i64::from(RETRIES_EARNED_MAX) * 100;
        let share = new.saturating_mul(u64::from(percent)).min(most as u64) as i64;
        earned.balance = (earned.balance + share).min(most);
        let is_enough = earned.balance >= 100;
        if is_enough {
            earned.balance -= 100;
        }
        is_enough
    }

    /// Gives back a permit of [`try_acquire_retry`](Self::try_acquire_retry).
    pub fn release_retry(&self) {
        self.retries.fetch_sub(1, Relaxed);
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        let held = |shard: &Shard| i64::from(shard.permits.load(Relaxed));
        let held: i64 = self.permits.iter().map(held).sum();
        let out = i64::from(self.max_requests()) - self.common.load(Relaxed) - held;
        u32::try_from(out.max(0)).unwrap_or(u32::MAX)
    }

    /// Requests that got a permit since the process started.
    fn permitted(&self) -> u64 {
        let permitted = |shard: &Shard| shard.permitted.load(Relaxed);
        self.permits.iter().map(permitted).sum()
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

fn batch(limit: u32) -> i32 {
    (limit / (4 * shard::count() as u32)).clamp(1, BATCH_MAX) as i32
}

/// Takes one permit of a shard.
#[inline]
fn take(permits: &AtomicI32) -> bool {
    if permits.load(Relaxed) <= 0 {
        return false;
    }
    // Add back when another thread was faster: one operation in the usual case.
    let is_taken = permits.fetch_sub(1, Relaxed) > 0;
    if !is_taken {
        permits.fetch_add(1, Relaxed);
    }
    is_taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RetryBudget;

    #[test]
    fn the_limit_holds_and_permits_come_back() {
        let circuit = Circuit::new(2);
        assert!(circuit.try_acquire() && circuit.try_acquire());
        assert!(!circuit.try_acquire());
        circuit.release();
        assert!(circuit.try_acquire());
        assert_eq!((circuit.requests(), circuit.dropped()), (2, 1));
        circuit.set_max_requests(0);
        circuit.release();
        assert!(!circuit.try_acquire());
        assert_eq!(circuit.requests(), 1, "those in flight go on");
        circuit.set_max_requests(2);
        assert!(circuit.try_acquire() && !circuit.try_acquire());
    }

    #[test]
    fn a_lower_limit_holds_for_those_that_come_back() {
        let circuit = Circuit::new(100);
        let most = |circuit: &Circuit| (0..200).filter(|_| circuit.try_acquire()).count();
        assert_eq!(most(&circuit), 100);
        circuit.set_max_requests(10);
        for out in (10..100).rev() {
            circuit.release();
            assert_eq!(circuit.requests(), out);
            assert!(!circuit.try_acquire(), "{out} are in flight");
        }
        circuit.release();
        assert!(circuit.try_acquire() && !circuit.try_acquire());
        for _ in 0..10 {
            circuit.release();
        }
        assert_eq!((circuit.requests(), most(&circuit)), (0, 10));
    }

    #[test]
    fn threads_never_pass_the_limit_together_and_lose_no_permit() {
        const LIMIT: u32 = 40;
        let circuit = Circuit::new(LIMIT);
        let out = AtomicU32::new(0);
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000u32 {
                        let wanted = 1 + round % 23;
                        let taken = (0..wanted)
                            .filter(|_| {
                                let is_taken = circuit.try_acquire();
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
        let all = (0..=LIMIT).filter(|_| circuit.try_acquire()).count();
        assert_eq!(all, LIMIT as usize);
    }

    #[test]
    fn a_limit_of_retries_holds_instead_of_the_budget() {
        let circuit = Circuit::new(1_024);
        let limits = CircuitBreakers {
            max_retries: Some(1),
            ..CircuitBreakers::default()
        };
        for _ in 0..100 {
            assert!(circuit.try_acquire());
        }
        assert!(circuit.try_acquire_retry(&limits));
        assert!(!circuit.try_acquire_retry(&limits), "whatever was earned");
        circuit.release_retry();
        assert!(circuit.try_acquire_retry(&limits));
    }

    #[test]
    fn the_budget_is_earned_by_requests_spent_by_retries_and_has_a_minimum() {
        let circuit = Circuit::new(u32::MAX);
        let limits = CircuitBreakers {
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
            assert!(circuit.try_acquire());
            circuit.release();
        }
        assert_eq!(retries(), 10, "20 % of 50, although nothing is in flight");
        circuit.release_retry();
        assert_eq!(retries(), 0, "more than the minimum is in flight");
        for _ in 0..100_000 {
            assert!(circuit.try_acquire());
        }
        assert_eq!(retries(), RETRIES_EARNED_MAX as usize);
    }
}
