//! The last good value of every wanted resource.
//!
//! Stage 4. Per resource: requested, held, rejected or absent; once a good value is there, nothing
//! takes it away (gRFC A88 with its default: neither refusal, deletion nor loss of the stream).
//! It does not know why a resource is wanted; [`crate::graph`] does.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, sync::Arc};

use mesh_core::{
    ClusterName, ConfigError, EndpointsName, ListenerName, RouteConfigName, SecretName, config,
};

use crate::resource::{Config, Kind};

/// What is known of one resource.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    good: Option<Arc<T>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Requested,
    Held,
    /// The last good value, if any, stays in use.
    Failed(Failure),
}

/// Why there is no current value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Refused.
    Rejected(ConfigError),
    /// Taken away, replaced by an error, or not there in time.
    Absent(ConfigError),
}

impl Failure {
    fn error(&self) -> &ConfigError {
        match self {
            Self::Rejected(error) | Self::Absent(error) => error,
        }
    }
}

impl<T: PartialEq> Entry<T> {
    fn requested() -> Self {
        Self {
            good: None,
            state: State::Requested,
        }
    }

    /// The value or error to use; `None` while neither is known.
    pub(crate) fn resolved(&self) -> Option<Result<Arc<T>, ConfigError>> {
        match (&self.good, &self.state) {
            (Some(good), _) => Some(Ok(Arc::clone(good))),
            (None, State::Failed(failure)) => Some(Err(failure.error().clone())),
            (None, State::Requested | State::Held) => None,
        }
    }

    /// A good value came. Returns whether what is used changes.
    fn accept(&mut self, value: Arc<T>) -> bool {
        self.state = State::Held;
        if self.good.as_ref().is_some_and(|held| **held == *value) {
            return false;
        }
        self.good = Some(value);
        true
    }

    /// A failure came. Returns whether what is used changes.
    fn fail(&mut self, failure: Failure) -> bool {
        if matches!(&self.state, State::Failed(held) if *held == failure) {
            return false;
        }
        let error = failure.error();
        if self.good.is_some() {
            tracing::warn!(%error, "the last good value stays in use");
        } else {
            tracing::warn!(%error, "there is no earlier value to use");
        }
        self.state = State::Failed(failure);
        self.good.is_none()
    }
}

/// Entries of one type.
#[derive(Debug)]
pub(crate) struct Table<N, T> {
    kind: Kind,
    entries: HashMap<N, Entry<T>>,
}

impl<N, T> Table<N, T>
where
    N: Hash + Eq + Clone + Borrow<str> + for<'n> From<&'n str>,
    T: PartialEq,
{
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            entries: HashMap::new(),
        }
    }

    /// What is known of `name`; `None` when neither value nor error is.
    pub(crate) fn resolved(&self, name: &N) -> Option<Result<Arc<T>, ConfigError>> {
        self.entries
            .get::<str>(name.borrow())
            .and_then(Entry::resolved)
    }

    fn accept(&mut self, name: &str, value: Arc<T>) -> Option<N> {
        self.change(name, |entry| entry.accept(value))
    }

    fn fail(&mut self, name: &str, failure: Failure) -> Option<N> {
        self.change(name, |entry| entry.fail(failure))
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Entry<T>) -> bool) -> Option<N> {
        let entry = self.entries.get_mut(name)?;
        change(entry).then(|| name.into())
    }

    /// Wants `name`; records the change for the stream.
    fn request(&mut self, name: &N, changes: &mut Vec<Change>) {
        if !self.entries.contains_key::<str>(name.borrow()) {
            self.entries.insert(name.clone(), Entry::requested());
            changes.push(Change::subscribe(self.kind, name.borrow()));
        }
    }

    /// Drops `name`; records the change for the stream.
    fn forget(&mut self, name: &N, changes: &mut Vec<Change>) {
        if self.entries.remove::<str>(name.borrow()).is_some() {
            changes.push(Change::unsubscribe(self.kind, name.borrow()));
        }
    }
}

/// A change of what is wanted on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) is_wanted: bool,
}

impl Change {
    fn subscribe(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
            is_wanted: true,
        }
    }

    fn unsubscribe(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
            is_wanted: false,
        }
    }
}

/// All wanted resources.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) listeners: Table<ListenerName, config::Listener>,
    pub(crate) routes: Table<RouteConfigName, config::RouteConfig>,
    pub(crate) clusters: Table<ClusterName, config::Cluster>,
    pub(crate) endpoints: Table<EndpointsName, config::ClusterEndpoints>,
    pub(crate) secrets: Table<SecretName, config::Secret>,
    changes: Vec<Change>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            listeners: Table::new(Kind::Listener),
            routes: Table::new(Kind::Route),
            clusters: Table::new(Kind::Cluster),
            endpoints: Table::new(Kind::Endpoints),
            secrets: Table::new(Kind::Secret),
            changes: Vec::new(),
        }
    }
}

/// A reference to a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    Listener(ListenerName),
    Route(RouteConfigName),
    Cluster(ClusterName),
    Endpoints(EndpointsName),
    Secret(SecretName),
}

impl Cache {
    /// Wants a resource.
    pub(crate) fn request(&mut self, reference: &Reference) {
        let changes = &mut self.changes;
        match reference {
            Reference::Listener(name) => self.listeners.request(name, changes),
            Reference::Route(name) => self.routes.request(name, changes),
            Reference::Cluster(name) => self.clusters.request(name, changes),
            Reference::Endpoints(name) => self.endpoints.request(name, changes),
            Reference::Secret(name) => self.secrets.request(name, changes),
        }
    }

    /// Drops a resource with its last good value.
    pub(crate) fn forget(&mut self, reference: &Reference) {
        let changes = &mut self.changes;
        match reference {
            Reference::Listener(name) => self.listeners.forget(name, changes),
            Reference::Route(name) => self.routes.forget(name, changes),
            Reference::Cluster(name) => self.clusters.forget(name, changes),
            Reference::Endpoints(name) => self.endpoints.forget(name, changes),
            Reference::Secret(name) => self.secrets.forget(name, changes),
        }
    }

    /// A good value. Returns the resource when what is used changes.
    pub(crate) fn accept(&mut self, name: &str, config: Config) -> Option<Reference> {
        match config {
            Config::Listener(v) => self.listeners.accept(name, v).map(Reference::Listener),
            Config::Route(v) => self.routes.accept(name, v).map(Reference::Route),
            Config::Cluster(v) => self.clusters.accept(name, v).map(Reference::Cluster),
            Config::Endpoints(v) => self.endpoints.accept(name, v).map(Reference::Endpoints),
            Config::Secret(v) => self.secrets.accept(name, v).map(Reference::Secret),
        }
    }

    /// A failure in place of a value. Returns the resource when what is used changes.
    pub(crate) fn fail(&mut self, kind: Kind, name: &str, failure: Failure) -> Option<Reference> {
        match kind {
            Kind::Listener => self.listeners.fail(name, failure).map(Reference::Listener),
            Kind::Route => self.routes.fail(name, failure).map(Reference::Route),
            Kind::Cluster => self.clusters.fail(name, failure).map(Reference::Cluster),
            Kind::Endpoints => self.endpoints.fail(name, failure).map(Reference::Endpoints),
            Kind::Secret => self.secrets.fail(name, failure).map(Reference::Secret),
        }
    }

    /// Changes since the last call, in order.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}
