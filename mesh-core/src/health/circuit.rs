//! Requests and retries in flight of one cluster, as counters without locks.
//!
//! Limits are passed in at each call because they change with the configuration while requests
//! are in flight; changing a limit does not reset a count (gRFC A32).
//!
//! The retry budget's share is earned by requests and spent by retries, as in Finagle, instead of
//! being compared with the requests in flight at the moment, as in Envoy: when an endpoint dies,
//! all of its requests fail at the same moment, and a share of those in flight would refuse most
//! of the retries that this is for. Over time the share is the same.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::config::{CircuitBreakers, RetryBudget};

/// Counters of one cluster. Belongs to the cluster's name, not to a snapshot.
#[derive(Debug, Default)]
pub struct Circuit {
    requests: AtomicU32,
    retries: AtomicU32,
    dropped: AtomicU64,
    /// Retries that were earned and not spent yet, in hundredths.
    earned: AtomicI64,
}

/// Unspent retries kept at most: how many requests may fail at one moment and all be tried again.
pub const RETRIES_EARNED_MAX: u32 = 100;

impl Circuit {
    /// Takes a permit for a request; give it back with [`release`](Self::release). `false` when
    /// `max_requests` are in flight, which is counted as a drop.
    pub fn try_acquire(&self, limits: &CircuitBreakers) -> bool {
        // Add first and undo on refusal: exact under contention, and one operation when permitted.
        if self.requests.fetch_add(1, Relaxed) < limits.max_requests {
            // In steady state the balance is full and this is a read.
            if self.earned.load(Relaxed) < i64::from(RETRIES_EARNED_MAX) * 100 {
                self.earned
                    .fetch_add(i64::from(limits.retry_budget.percent), Relaxed);
            }
            return true;
        }
        self.requests.fetch_sub(1, Relaxed);
        self.dropped.fetch_add(1, Relaxed);
        false
    }

    /// Gives back a permit of [`try_acquire`](Self::try_acquire).
    pub fn release(&self) {
        self.requests.fetch_sub(1, Relaxed);
    }

    /// Takes a permit for a retry; give it back with [`release_retry`](Self::release_retry).
    /// `false` when the budget's share is spent and its minimum is in flight.
    pub fn try_acquire_retry(&self, budget: &RetryBudget) -> bool {
        let in_flight = self.retries.fetch_add(1, Relaxed);
        if self.earned.fetch_sub(100, Relaxed) >= 100 {
            return true;
        }
        self.earned.fetch_add(100, Relaxed);
        if in_flight < budget.min_retry_concurrency {
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
        self.requests.load(Relaxed)
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
    fn the_budget_is_earned_by_requests_spent_by_retries_and_has_a_minimum() {
        let circuit = Circuit::default();
        let limits = CircuitBreakers {
            max_requests: u32::MAX,
            ..CircuitBreakers::default()
        };
        let budget = RetryBudget {
            percent: 20,
            min_retry_concurrency: 3,
        };
        let retries = || {
            (0..1_000)
                .filter(|_| circuit.try_acquire_retry(&budget))
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
