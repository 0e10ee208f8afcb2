//! When so many endpoints of a service are lost at once that the loss is not believed.
//!
//! Checks and leases tell of what the control plane sees. When it loses sight of half a service within
//! a minute, its own network is the likelier cause (Eureka calls this self-preservation): those lost
//! beyond the share are kept as they were until they are seen again, deregister, or most others are.
//! What says itself that it goes is never kept. Sans-IO.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Share of a service's endpoints, in percent, that may be lost within [`GUARD_WINDOW`].
pub const GUARD_SHARE: usize = 50;
/// The time within which losses count together.
pub const GUARD_WINDOW: Duration = Duration::from_secs(60);
/// A service of fewer endpoints is not guarded: one that is lost may well be half of it.
pub const GUARD_ENDPOINTS_MIN: usize = 3;

/// What one service lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// When, the oldest first.
    losses: VecDeque<Instant>,
}

impl Guard {
    /// Whether one more of `usable` endpoints may be lost; if so, it is counted.
    pub(super) fn lets_go(&mut self, usable: usize, now: Instant) -> bool {
        self.forget(now);
        let all = usable + self.losses.len();
        let lost = self.losses.len() + 1;
        let may = all < GUARD_ENDPOINTS_MIN || lost * 100 <= GUARD_SHARE * all;
        if may {
            self.losses.push_back(now);
        }
        may
    }

    /// Whether those that were kept may go: most of `all` registered endpoints are seen, as `lost`, these
    /// among them, are not; and nothing was lost lately.
    pub(super) fn is_calm(&mut self, lost: usize, all: usize, now: Instant) -> bool {
        self.forget(now);
        self.losses.is_empty() && lost * 100 < GUARD_SHARE * all
    }

    /// When it may be calm at the earliest.
    pub(super) fn next(&self) -> Option<Instant> {
        Some(*self.losses.back()? + GUARD_WINDOW)
    }

    fn forget(&mut self, now: Instant) {
        while self
            .losses
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= GUARD_WINDOW)
        {
            self.losses.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `all` may be lost at these seconds.
    fn lost(all: usize, seconds: impl IntoIterator<Item = u64>) -> usize {
        let begin = Instant::now();
        let mut guard = Guard::default();
        let mut usable = all;
        for second in seconds {
            let now = begin + Duration::from_secs(second);
            usable -= usize::from(usable > 0 && guard.lets_go(usable, now));
        }
        all - usable
    }

    #[test]
    fn half_of_a_service_may_be_lost_within_the_window_and_not_one_more() {
        assert_eq!(lost(10, [0; 10]), 5);
        assert_eq!(lost(3, [0; 3]), 1);
        assert_eq!(lost(4, [0, 59, 59]), 2);
    }

    #[test]
    fn a_small_service_is_not_guarded() {
        assert_eq!(lost(2, [0; 2]), 2);
        assert_eq!(lost(1, [0]), 1);
    }

    #[test]
    fn what_is_lost_slowly_is_believed() {
        assert_eq!(lost(10, (0..10).map(|minute| minute * 60)), 10);
    }
}
