//! The names wanted of one type, what became of each, and how long each has been waited for.
//!
//! Stage 2, shared by the protocol's variants. The timer of gRFC A57 runs from the moment the
//! request is sent on an established stream, once per stream, and never for a resource that has
//! been answered before, with a value, a refusal or an error. A resource with a time to live
//! expires by itself, stream or no stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::deadlines::Deadlines;

/// How long a resource is waited for (gRFC A57).
pub(crate) const DOES_NOT_EXIST_AFTER: Duration = Duration::from_secs(15);

/// The same when the server's feature says that it only means a slow server (gRFC A88).
pub(crate) const TIMED_OUT_AFTER: Duration = Duration::from_secs(30);

/// The name that stands for all resources of a type.
pub(super) const WILDCARD: &str = "*";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for on this stream.
    Unsent,
    /// Asked for; the timer runs.
    Waiting,
    /// Received, on this stream or an earlier one.
    Held,
    /// Refused before there was a good one: neither missing nor there.
    Refused,
    /// The server says that it is gone, or has sent an error in its place.
    Gone,
    /// Not answered in time on this stream.
    Missing,
}

/// The names wanted of one type.
#[derive(Debug)]
pub(super) struct Subscription {
    timeout: Duration,
    names: BTreeMap<String, State>,
    /// Wanted, which the server has not been told on this stream.
    untold: BTreeSet<String>,
    /// No longer wanted, which the server has not been told.
    removing: BTreeSet<String>,
    /// Wanted again before the server was told that they were not. A request that leaves them out
    /// must go first: otherwise the server sees no change and sends nothing.
    returning: BTreeSet<String>,
    /// Received because everything is wanted, not by name.
    implied: BTreeSet<String>,
    timers: Deadlines,
    ttls: Deadlines,
}

impl Default for Subscription {
    fn default() -> Self {
        Self {
            timeout: DOES_NOT_EXIST_AFTER,
            names: BTreeMap::new(),
            untold: BTreeSet::new(),
            removing: BTreeSet::new(),
            returning: BTreeSet::new(),
            implied: BTreeSet::new(),
            timers: Deadlines::default(),
            ttls: Deadlines::default(),
        }
    }
}

impl Subscription {
    /// How long a resource is waited for, from the next request on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Wants `name`.
    pub(super) fn add(&mut self, name: &str) {
        if self.names.contains_key(name) {
            return;
        }
        if self.removing.contains(name) {
            self.returning.insert(name.to_owned());
        } else {
            self.names.insert(name.to_owned(), State::Unsent);
            self.untold.insert(name.to_owned());
        }
    }

    /// Does not want `name`. `is_sent` is whether the stream has had a request of this type.
    pub(super) fn remove(&mut self, name: &str, is_sent: bool) {
        if self.returning.remove(name) || self.names.remove(name).is_none() {
            return;
        }
        self.timers.clear(name);
        self.ttls.clear(name);
        if name == WILDCARD {
            self.implied.clear();
        }
        if !self.untold.remove(name) && is_sent {
            self.removing.insert(name.to_owned());
        }
    }

    /// Whether a resource of this name is wanted, by name or with all others.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.names.contains_key(WILDCARD)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the server must be told something.
    pub(super) fn is_changed(&self) -> bool {
        !self.untold.is_empty() || !self.removing.is_empty()
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// Names the server has not been told.
    pub(super) fn untold(&self) -> Vec<String> {
        self.untold.iter().cloned().collect()
    }

    /// Names the server must forget.
    pub(super) fn removing(&self) -> Vec<String> {
        self.removing.iter().cloned().collect()
    }

    /// The server has been told everything. What came back meanwhile is told next.
    pub(super) fn sent(&mut self, now: Instant) {
        let deadline = now + self.timeout;
        for name in std::mem::take(&mut self.untold) {
            if let Some(state @ State::Unsent) = self.names.get_mut(&name)
                && name != WILDCARD
            {
                *state = State::Waiting;
                self.timers.set(&name, deadline);
            }
        }
        self.removing.clear();
        for name in std::mem::take(&mut self.returning) {
            self.add(&name);
        }
    }

    /// A good resource has come; `ttl` is when it expires.
    pub(super) fn held(&mut self, name: &str, ttl: Option<Instant>) {
        if !self.contains(name) {
            return;
        }
        self.settle(name, State::Held);
        match ttl {
            Some(at) => self.ttls.set(name, at),
            None => self.ttls.clear(name),
        }
    }

    /// A sign of life of a resource; it changes nothing else.
    pub(super) fn heartbeat(&mut self, name: &str, ttl: Option<Instant>) {
        if self.is_held(name) {
            match ttl {
                Some(at) => self.ttls.set(name, at),
                None => self.ttls.clear(name),
            }
        }
    }

    /// A resource has been refused. One that is held stays held.
    pub(super) fn refused(&mut self, name: &str) {
        if !self.is_held(name) {
            self.settle(name, State::Refused);
        }
    }

    /// The server has said that there is none, or sent an error in its place.
    pub(super) fn gone(&mut self, name: &str) {
        self.settle(name, State::Gone);
        self.ttls.clear(name);
    }

    fn settle(&mut self, name: &str, next: State) {
        self.timers.clear(name);
        match self.names.get_mut(name) {
            Some(state) => *state = next,
            None if next == State::Held => _ = self.implied.insert(name.to_owned()),
            None => _ = self.implied.remove(name),
        }
    }

    fn is_held(&self, name: &str) -> bool {
        self.names.get(name) == Some(&State::Held) || self.implied.contains(name)
    }

    /// Names of resources that are there.
    pub(super) fn held_names(&self) -> impl Iterator<Item = &String> {
        let is_held = |(name, state): (_, &State)| (*state == State::Held).then_some(name);
        self.names.iter().filter_map(is_held).chain(&self.implied)
    }

    /// Starts over on the next stream with what has not been answered.
    pub(super) fn stream_closed(&mut self) {
        self.timers.clear_all();
        self.removing.clear();
        for name in std::mem::take(&mut self.returning) {
            self.names.insert(name, State::Unsent);
        }
        for (name, state) in &mut self.names {
            if matches!(state, State::Waiting | State::Missing) {
                *state = State::Unsent;
            }
            self.untold.insert(name.clone());
        }
    }

    /// Moves all deadlines.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.timers.postpone(by);
        self.ttls.postpone(by);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.ttls.next()).min()
    }

    /// Names that have been waited for long enough.
    pub(super) fn pop_missing(&mut self, now: Instant) -> Vec<String> {
        let missing = self.timers.pop_due(now);
        for name in &missing {
            self.names.insert(name.clone(), State::Missing);
        }
        missing
    }

    /// Names of resources whose time to live is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Vec<String> {
        let expired = self.ttls.pop_due(now);
        for name in &expired {
            self.settle(name, State::Missing);
        }
        expired
    }
}
