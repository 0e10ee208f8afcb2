//! Requests and retries in flight of one cluster, as counters without locks.
//!
//! Limits are passed in at each call because they change with the configuration while requests
//! are in flight; changing a limit does not reset a count (gRFC A32).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::config::{CircuitBreakers, RetryBudget};

/// Counters of one cluster. Belongs to the cluster's name, not to a snapshot.
#[derive(Debug, Default)]
pub struct Circuit {
    requests: AtomicU32,
    retries: AtomicU32,
    dropped: AtomicU64,
}

impl Circuit {
    /// Takes a permit for a request; give it back with [`release`](Self::release). `false` when
    /// `max_requests` are in flight, which is counted as a drop.
    pub fn try_acquire(&self, limits: &CircuitBreakers) -> bool {
        // Add first and undo on refusal: exact under contention, and one operation when permitted.
        if self.requests.fetch_add(1, Relaxed) < limits.max_requests {
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
    /// `false` when as many retries are in flight as the budget allows.
    pub fn try_acquire_retry(&self, budget: &RetryBudget) -> bool {
        let share = u64::from(self.requests.load(Relaxed)) * u64::from(budget.percent) / 100;
        let allowed = share.max(u64::from(budget.min_retry_concurrency));
        if u64::from(self.retries.fetch_add(1, Relaxed)) < allowed {
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
    fn the_budget_is_a_share_of_the_requests_in_flight_but_never_below_its_minimum() {
        let circuit = Circuit::default();
        let budget = RetryBudget {
            percent: 20,
            min_retry_concurrency: 3,
        };
        assert_eq!(
            (0..10)
                .filter(|_| circuit.try_acquire_retry(&budget))
                .count(),
            3
        );
        for _ in 0..50 {
            assert!(circuit.try_acquire(&CircuitBreakers::default()));
        }
        assert_eq!(
            (0..100)
                .filter(|_| circuit.try_acquire_retry(&budget))
                .count(),
            7
        );
        circuit.release_retry();
        assert!(circuit.try_acquire_retry(&budget));
        assert_eq!(circuit.retries(), 10);
    }
}
