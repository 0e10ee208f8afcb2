//! When a change is published: at once after a quiet time, together with others in a burst. The
//! first few of a burst go at once, too: files that belong together are written one by one.
//!
//! Sans-IO. Within a burst each publication doubles the wait for the next, so that a storm of
//! changes costs four publications a second and a single change costs no wait.

use std::time::{Duration, Instant};

/// So many publications of a burst wait for nothing.
const FREE: u32 = 4;
/// The first wait after those.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// The longest that a change waits, and how long it must be quiet for a burst to be over.
pub(crate) const WAIT_MAX: Duration = Duration::from_millis(250);

/// Decides when to publish.
#[derive(Debug, Default)]
pub(crate) struct Debounce {
    published: Option<Instant>,
    /// Publications in this burst.
    count: u32,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    first: Instant,
    due: Instant,
}

impl Debounce {
    /// There is something to publish. What is urgent does not wait, nor does what waits already.
    pub(crate) fn changed(&mut self, now: Instant, is_urgent: bool) {
        let first = self.waiting.as_ref().map_or(now, |waiting| waiting.first);
        let is_quiet = self
            .published
            .is_none_or(|published| now.saturating_duration_since(published) >= WAIT_MAX);
        if is_quiet && self.waiting.is_none() {
            self.count = 0;
        }
        let due = if is_urgent || is_quiet && self.waiting.is_none() {
            now
        } else {
            (now + self.wait()).min(first + WAIT_MAX)
        };
        self.waiting = Some(Waiting { first, due });
    }

    fn wait(&self) -> Duration {
        match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            // Ten doublings are past the longest wait.
            Some(count) => (WAIT_MIN * 2_u32.pow(count.min(10))).min(WAIT_MAX),
        }
    }

    /// When to publish what waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.due)
    }

    /// What waited is published; how long it waited.
    pub(crate) fn published(&mut self, now: Instant) -> Duration {
        self.published = Some(now);
        self.count = self.count.saturating_add(1);
        let first = self.waiting.take().map_or(now, |waiting| waiting.first);
        now.saturating_duration_since(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishes what is due as changes come at these times; when that was.
    fn publications(changes: impl IntoIterator<Item = (u64, bool)>) -> Vec<u64> {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut debounce = Debounce::default();
        let mut found = Vec::new();
        let mut publish_until = |debounce: &mut Debounce, end: Instant| {
            while let Some(due) = debounce.due().filter(|due| *due <= end) {
                debounce.published(due);
                found.push((due - begin).as_millis() as u64);
            }
        };
        for (millis, is_urgent) in changes {
            publish_until(&mut debounce, at(millis));
            debounce.changed(at(millis), is_urgent);
        }
        publish_until(&mut debounce, at(1_000_000));
        found
    }

    #[test]
    fn the_first_change_after_quiet_goes_at_once() {
        assert_eq!(publications([(0, false), (1_000, false)]), [0, 1_000]);
        assert_eq!(publications([(0, false), (250, false)]), [0, 250]);
        assert_eq!(publications([(0, false), (249, false)]), [0, 249]);
    }

    #[test]
    fn a_burst_is_published_at_most_four_times_a_second_and_no_change_waits_longer_than_that() {
        let found = publications((0..5_000).map(|millis| (millis, false)));
        assert_eq!(found[0], 0);
        assert!(found.len() <= 34, "{found:?}");
        let longest = found
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        assert!(longest <= 251, "{found:?}");
    }

    #[test]
    fn what_is_urgent_does_not_wait() {
        let last = |is_urgent| {
            let burst = (0..30).map(|millis| (millis, false));
            let found = publications(burst.chain([(30, is_urgent)]));
            found.last().copied()
        };
        assert_eq!(last(true), Some(30));
        assert!(last(false) > Some(30));
    }
}
