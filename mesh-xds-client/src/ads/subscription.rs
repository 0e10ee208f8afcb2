//! The names wanted of one type, what became of each, and how long each has been waited for.
//!
//! Stage 2, shared by the protocol's variants. The timer of gRFC A57 runs from the moment the
//! request is sent on an established stream, once per stream, and never for a resource that has
//! been answered before, with a value, a refusal or an error. A resource with a time to live
//! expires by itself, stream or no stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{deadlines::Deadlines, names::EncodedNames};

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

/// What is known of a name.
#[derive(Clone, Debug)]
struct Wanted {
    state: State,
    /// Of the last good value, as long as that is there.
    version: Option<Arc<str>>,
}

impl Wanted {
    const UNSENT: Self = Self {
        state: State::Unsent,
        version: None,
    };
}

/// The names wanted of one type.
#[derive(Debug)]
pub(super) struct Subscription {
    timeout: Duration,
    names: BTreeMap<Arc<str>, Wanted>,
    /// All of `names` for requests that repeat them, while they stay the same.
    encoded: Option<EncodedNames>,
    /// Wanted, which the server has not been told on this stream.
    untold: BTreeSet<Arc<str>>,
    /// No longer wanted, which the server has not been told.
    removing: BTreeSet<Arc<str>>,
    /// Wanted again before the server was told that they were not. A request that leaves them out
    /// must go first: otherwise the server sees no change and sends nothing.
    returning: BTreeSet<Arc<str>>,
    /// Received because everything is wanted, not by name; with their versions.
    implied: BTreeMap<Arc<str>, Arc<str>>,
    timers: Deadlines,
    ttls: Deadlines,
}

impl Default for Subscription {
    fn default() -> Self {
        Self {
            timeout: DOES_NOT_EXIST_AFTER,
            names: BTreeMap::new(),
            encoded: None,
            untold: BTreeSet::new(),
            removing: BTreeSet::new(),
            returning: BTreeSet::new(),
            implied: BTreeMap::new(),
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
    pub(super) fn add(&mut self, name: Arc<str>) {
        if self.names.contains_key(&name) {
            return;
        }
        if self.removing.contains(&name) {
            self.returning.insert(name);
        } else {
            self.encoded = None;
            self.names.insert(Arc::clone(&name), Wanted::UNSENT);
            self.untold.insert(name);
        }
    }

    /// Does not want `name`. `is_sent` is whether the stream has had a request of this type.
    pub(super) fn remove(&mut self, name: &str, is_sent: bool) {
        if self.returning.remove(name) || self.names.remove(name).is_none() {
            return;
        }
        self.encoded = None;
        self.timers.clear(name);
        self.ttls.clear(name);
        if name == WILDCARD {
            self.implied.clear();
        }
        if !self.untold.remove(name) && is_sent {
            self.removing.insert(name.into());
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
        self.names.keys().map(ToString::to_string).collect()
    }

    /// All names, encoded.
    pub(super) fn encoded_names(&mut self) -> EncodedNames {
        let encoded = self
            .encoded
            .get_or_insert_with(|| self.names.keys().map(|name| &**name).collect());
        encoded.clone()
    }

    /// Names of what is there, with its versions.
    pub(super) fn versions(&self) -> impl Iterator<Item = (String, String)> {
        let named = self.names.iter();
        let named = named.filter_map(|(name, wanted)| Some((name, wanted.version.as_ref()?)));
        let all = named.chain(&self.implied);
        all.map(|(name, version)| (name.to_string(), version.to_string()))
    }

    /// Forgets the versions of what is there.
    pub(super) fn forget_versions(&mut self) {
        for wanted in self.names.values_mut() {
            wanted.version = None;
        }
    }

    /// Names the server has not been told.
    pub(super) fn untold(&self) -> Vec<String> {
        self.untold.iter().map(ToString::to_string).collect()
    }

    /// Names the server must forget.
    pub(super) fn removing(&self) -> Vec<String> {
        self.removing.iter().map(ToString::to_string).collect()
    }

    /// The server has been told everything. What came back meanwhile is told next.
    pub(super) fn sent(&mut self, now: Instant) {
        let deadline = now + self.timeout;
        for name in std::mem::take(&mut self.untold) {
            if let Some(wanted) = self.names.get_mut(&name)
                && wanted.state == State::Unsent
                && *name != *WILDCARD
            {
                wanted.state = State::Waiting;
                self.timers.set(name, deadline);
            }
        }
        self.removing.clear();
        for name in std::mem::take(&mut self.returning) {
            self.add(name);
        }
    }

    /// A good resource of this version has come; `ttl` is when it expires.
    pub(super) fn held(&mut self, name: &str, version: &Arc<str>, ttl: Option<Instant>) {
        self.timers.clear(name);
        if let Some(wanted) = self.names.get_mut(name) {
            wanted.state = State::Held;
            wanted.version = Some(Arc::clone(version));
        } else if self.names.contains_key(WILDCARD) {
            self.implied.insert(name.into(), Arc::clone(version));
        } else {
            return;
        }
        self.lives(name, ttl);
    }

    fn lives(&mut self, name: &str, ttl: Option<Instant>) {
        match ttl {
            Some(at) => self.ttls.set(name.into(), at),
            None => self.ttls.clear(name),
        }
    }

    /// A sign of life of a resource; it changes nothing else.
    pub(super) fn heartbeat(&mut self, name: &str, ttl: Option<Instant>) {
        if self.is_held(name) {
            self.lives(name, ttl);
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
            Some(wanted) => {
                wanted.state = next;
                wanted.version = None;
            }
            None => _ = self.implied.remove(name),
        }
    }

    fn is_held(&self, name: &str) -> bool {
        let wanted = self.names.get(name);
        wanted.is_some_and(|wanted| wanted.state == State::Held) || self.implied.contains_key(name)
    }

    /// Names of resources that are there.
    pub(super) fn held_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let names = self.names.iter();
        let held = names.filter(|(_, wanted)| wanted.state == State::Held);
        held.map(|(name, _)| name).chain(self.implied.keys())
    }

    /// Starts over on the next stream with what has not been answered.
    pub(super) fn stream_closed(&mut self) {
        self.timers.clear_all();
        self.removing.clear();
        for name in std::mem::take(&mut self.returning) {
            self.encoded = None;
            self.names.insert(name, Wanted::UNSENT);
        }
        for (name, wanted) in &mut self.names {
            if matches!(wanted.state, State::Waiting | State::Missing) {
                wanted.state = State::Unsent;
            }
            self.untold.insert(Arc::clone(name));
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
    pub(super) fn pop_missing(&mut self, now: Instant) -> Vec<Arc<str>> {
        let missing = self.timers.pop_due(now);
        for name in &missing {
            if let Some(wanted) = self.names.get_mut(name) {
                wanted.state = State::Missing;
            }
        }
        missing
    }

    /// Names of resources whose time to live is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Vec<Arc<str>> {
        let expired = self.ttls.pop_due(now);
        for name in &expired {
            self.settle(name, State::Missing);
        }
        expired
    }
}
