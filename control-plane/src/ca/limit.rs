//! How many certificates an identity gets in a second, and how often an address may be wrong.
//!
//! A signature costs a fraction of a millisecond; a caller that asks without end, or guesses, must
//! not cost others theirs.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::Identity;

/// Certificates for one identity in a second, in the long run. Replicas share an identity.
const ISSUANCES_PER_SECOND: f64 = 100.0;
/// At once, after a quiet time: all replicas of a service may start together.
const ISSUANCES_BURST: f64 = 1_000.0;
/// Failed authentications from one address in a second, in the long run.
const FAILURES_PER_SECOND: f64 = 1.0;
/// At once, after a quiet time.
const FAILURES_BURST: f64 = 60.0;
/// Names that are remembered; beyond that those who are at rest are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Limits on issuance. The defaults are 100 a second for an identity with a burst of 1,000, and one
/// failed authentication a second for an address with a burst of 60.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IssuanceLimits {
    /// Certificates for one identity in a second, and at once.
    pub issuances: (f64, f64),
    /// Failed authentications from one address in a second, and at once.
    pub failures: (f64, f64),
}

impl Default for IssuanceLimits {
    fn default() -> Self {
        Self {
            issuances: (ISSUANCES_PER_SECOND, ISSUANCES_BURST),
            failures: (FAILURES_PER_SECOND, FAILURES_BURST),
        }
    }
}

/// Counts both.
#[derive(Debug)]
pub(super) struct Limiter {
    issuances: Buckets<Identity>,
    failures: Buckets<IpAddr>,
}

impl Limiter {
    pub(super) fn new(limits: IssuanceLimits) -> Self {
        Self {
            issuances: Buckets::new(limits.issuances),
            failures: Buckets::new(limits.failures),
        }
    }

    /// Whether `identity` may have another certificate now.
    pub(super) fn may_issue(&self, identity: &Identity, now: Instant) -> bool {
        self.issuances.take(identity, now, 1.0)
    }

    /// Whether `address` was not wrong too often.
    pub(super) fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        self.failures.take(&address, now, 0.0)
    }

    /// `address` was wrong.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        self.failures.take(&address, now, 1.0);
    }
}

#[derive(Debug)]
struct Buckets<K> {
    per_second: f64,
    burst: f64,
    held: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new((per_second, burst): (f64, f64)) -> Self {
        Self {
            per_second,
            burst: burst.max(1.0),
            held: Mutex::default(),
        }
    }

    /// Takes `cost` if there is one token at least.
    fn take(&self, key: &K, now: Instant, cost: f64) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let level = |(tokens, at): (f64, Instant)| {
            let earned = now.saturating_duration_since(at).as_secs_f64() * self.per_second;
            (tokens + earned).min(self.burst)
        };
        let tokens = held.get(key).copied().map_or(self.burst, level);
        if tokens < 1.0 {
            return false;
        }
        if cost > 0.0 {
            if held.len() >= REMEMBERED_MAX && !held.contains_key(key) {
                held.retain(|_, bucket| level(*bucket) < self.burst);
            }
            // When even those at work are too many, the newest is not remembered: no harm is
            // done to others.
            if held.len() < REMEMBERED_MAX || held.contains_key(key) {
                held.insert(key.clone(), (tokens - cost, now));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_identity_has_a_rate_of_its_own_and_an_address_may_be_wrong_for_a_while() {
        let limiter = Limiter::new(IssuanceLimits {
            issuances: (2.0, 3.0),
            failures: (1.0, 2.0),
        });
        let begin = Instant::now();
        let after = |ms: u64| begin + Duration::from_millis(ms);
        let [a, b] = ["a", "b"].map(|account| Identity::new("ns", account).unwrap());
        let issued = |identity, at| {
            std::iter::from_fn(|| limiter.may_issue(identity, at).then_some(())).count()
        };
        assert_eq!(issued(&a, after(0)), 3);
        assert_eq!(issued(&b, after(0)), 3, "another identity's are its own");
        assert_eq!((issued(&a, after(499)), issued(&a, after(1_000))), (0, 2));
        assert_eq!(issued(&a, after(60_000)), 3);

        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..2 {
            assert!(limiter.may_try(address, after(0)));
            limiter.failed(address, after(0));
        }
        assert!(!limiter.may_try(address, after(0)));
        assert!(limiter.may_try(IpAddr::from([192, 0, 2, 2]), after(0)));
        assert!(limiter.may_try(address, after(1_000)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let buckets = Buckets::new((1.0, 2.0));
        let now = Instant::now();
        for key in 0..REMEMBERED_MAX + 10 {
            assert!(buckets.take(&key, now, 1.0));
        }
        assert_eq!(buckets.held.lock().unwrap().len(), REMEMBERED_MAX);
        assert!(buckets.take(&usize::MAX, now + Duration::from_secs(2), 1.0));
        assert_eq!(buckets.held.lock().unwrap().len(), 1);
    }
}
