//! Names with a time each, soonest first.
//!
//! Stage 2. Used for the does-not-exist timers and for resources that expire. Holds no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// At most one time per name.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeMap<Instant, BTreeSet<Arc<str>>>,
    by_name: BTreeMap<Arc<str>, Instant>,
}

impl Deadlines {
    /// Sets the time of `name`, in place of any earlier one.
    pub(super) fn set(&mut self, name: Arc<str>, at: Instant) {
        self.clear(&name);
        self.by_name.insert(Arc::clone(&name), at);
        self.by_time.entry(at).or_default().insert(name);
    }

    /// Forgets `name`.
    pub(super) fn clear(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else {
            return;
        };
        if let Some(names) = self.by_time.get_mut(&at) {
            names.remove(name);
            if names.is_empty() {
                self.by_time.remove(&at);
            }
        }
    }

    /// Moves all times.
    pub(super) fn postpone(&mut self, by: Duration) {
        let moved = |at: &Instant| at.checked_add(by).unwrap_or(*at);
        let times = std::mem::take(&mut self.by_time).into_iter();
        self.by_time = times.map(|(at, names)| (moved(&at), names)).collect();
        for at in self.by_name.values_mut() {
            *at = moved(at);
        }
    }

    /// Forgets all.
    pub(super) fn clear_all(&mut self) {
        self.by_time.clear();
        self.by_name.clear();
    }

    /// The soonest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.keys().next().copied()
    }

    /// Takes the names whose time has come, soonest first.
    pub(super) fn pop_due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_time.first_entry() {
            if *entry.key() > now {
                break;
            }
            due.extend(entry.remove());
        }
        for name in &due {
            self.by_name.remove(name);
        }
        due
    }
}
