//! The names wanted of one type, and how long each has been waited for.
//!
//! Stage 2, shared by the protocol's variants. The timer of gRFC A57 runs from the moment the
//! request is sent on an established stream, once per stream, and never for a resource that has
//! been answered before, with a value, a refusal or an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// How long a resource is waited for (gRFC A57).
pub(crate) const DOES_NOT_EXIST_AFTER: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for on this stream.
    Unsent,
    /// Asked for; counts as missing from then on.
    Waiting(Instant),
    /// Answered, on this stream or an earlier one.
    Seen,
    /// Not answered in time on this stream.
    Missing,
}

/// The names wanted of one type.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    names: BTreeMap<String, State>,
    unsent: BTreeSet<String>,
    deadlines: BTreeMap<Instant, BTreeSet<String>>,
    /// No longer wanted, which the server has not been told.
    removing: BTreeSet<String>,
    /// Wanted again before the server was told that they were not. A request that leaves them out
    /// must go first: otherwise the server sees no change and sends nothing.
    returning: BTreeSet<String>,
}

impl Subscription {
    /// Whether this changes what the server must be told.
    pub(super) fn add(&mut self, name: &str) -> bool {
        if self.names.contains_key(name) {
            return false;
        }
        if self.removing.contains(name) {
            self.returning.insert(name.to_owned());
        } else {
            self.names.insert(name.to_owned(), State::Unsent);
            self.unsent.insert(name.to_owned());
        }
        true
    }

    /// Whether this changes what the server must be told.
    pub(super) fn remove(&mut self, name: &str, is_sent: bool) -> bool {
        if self.returning.remove(name) {
            return true;
        }
        let Some(state) = self.names.remove(name) else {
            return false;
        };
        self.forget_deadline(name, state);
        self.unsent.remove(name);
        if is_sent && state != State::Unsent {
            self.removing.insert(name.to_owned());
        }
        true
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.returning.is_empty()
    }

    /// The names for a request.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// A request with all names has been sent. Returns whether another must follow.
    pub(super) fn sent(&mut self, now: Instant) -> bool {
        let deadline = now + DOES_NOT_EXIST_AFTER;
        for name in std::mem::take(&mut self.unsent) {
            if let Some(state) = self.names.get_mut(&name) {
                *state = State::Waiting(deadline);
                self.deadlines.entry(deadline).or_default().insert(name);
            }
        }
        self.removing.clear();
        let returning = std::mem::take(&mut self.returning);
        let is_followed = !returning.is_empty();
        for name in returning {
            self.add(&name);
        }
        is_followed
    }

    /// The server has answered for `name`.
    pub(super) fn seen(&mut self, name: &str) {
        if let Some(state) = self.names.get_mut(name) {
            let before = std::mem::replace(state, State::Seen);
            self.forget_deadline(name, before);
            self.unsent.remove(name);
        }
    }

    /// Names that have been answered before.
    pub(super) fn seen_names(&self) -> impl Iterator<Item = &String> {
        let is_seen = |(name, state): (_, &State)| (*state == State::Seen).then_some(name);
        self.names.iter().filter_map(is_seen)
    }

    /// Starts over on the next stream with what has not been answered.
    pub(super) fn stream_closed(&mut self) {
        self.deadlines.clear();
        self.removing.clear();
        for name in std::mem::take(&mut self.returning) {
            self.names.insert(name, State::Unsent);
        }
        for (name, state) in &mut self.names {
            if *state != State::Seen {
                *state = State::Unsent;
                self.unsent.insert(name.clone());
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.keys().next().copied()
    }

    /// Names whose time is up.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut expired = Vec::new();
        while let Some(entry) = self.deadlines.first_entry() {
            if *entry.key() > now {
                break;
            }
            expired.extend(entry.remove());
        }
        for name in &expired {
            self.names.insert(name.clone(), State::Missing);
        }
        expired
    }

    fn forget_deadline(&mut self, name: &str, state: State) {
        let State::Waiting(deadline) = state else {
            return;
        };
        if let Some(names) = self.deadlines.get_mut(&deadline) {
            names.remove(name);
            if names.is_empty() {
                self.deadlines.remove(&deadline);
            }
        }
    }
}
