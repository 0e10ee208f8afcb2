//! The last good value of every wanted resource.
//!
//! Stage 4. Per resource: what is used, what the server last said, and how people see it. A good
//! value is taken away only by its own time to live, or by a data error from a server that asked for
//! that (`fail_on_data_errors`, gRFC A88); any other failure is noted beside it. It does not know
//! why a resource is wanted; [`crate::graph`] does.

mod entry;
mod revive;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use mesh_core::{
    ClusterName, EndpointsName, ListenerName, RouteConfigName, SecretName,
    config::{self, Secret},
};

use crate::{
    dump::ResourceDump,
    metrics::ResourceKey,
    resource::{Accepted, ClusterSpec, Config, Kind, Known as KnownBefore, Same},
    store::StoredResource,
};
pub(crate) use entry::{About, Cause, Failure, Good, Known, Resolved};
pub(crate) use revive::revive;
use table::Table;

/// What a server's features say about errors (gRFC A53, A88).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorPolicy {
    /// A data error takes the resource away.
    pub(crate) fail_on_data_errors: bool,
    /// A deletion never does, whatever else is said.
    pub(crate) ignore_resource_deletion: bool,
    /// A resource that does not come in time is slow, not missing.
    pub(crate) resource_timer_is_transient: bool,
}

impl ErrorPolicy {
    fn drops(self, cause: Cause) -> bool {
        match cause {
            Cause::Expired => true,
            Cause::Removed => self.fail_on_data_errors && !self.ignore_resource_deletion,
            Cause::Rejected | Cause::DataError => self.fail_on_data_errors,
            Cause::ServerError | Cause::Missing | Cause::TimedOut => false,
        }
    }
}

/// A change of what is wanted on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) name: Arc<str>,
    pub(crate) is_wanted: bool,
}

impl Change {
    fn subscribe(kind: Kind, name: Arc<str>) -> Self {
        Self {
            kind,
            name,
            is_wanted: true,
        }
    }

    fn unsubscribe(kind: Kind, name: Arc<str>) -> Self {
        Self {
            kind,
            name,
            is_wanted: false,
        }
    }
}

/// All wanted resources.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) listeners: Table<ListenerName, config::Listener>,
    pub(crate) routes: Table<RouteConfigName, config::RouteConfig>,
    pub(crate) clusters: Table<ClusterName, ClusterSpec>,
    pub(crate) endpoints: Table<EndpointsName, config::ClusterEndpoints>,
    pub(crate) secrets: Table<SecretName, Secret>,
    changes: Vec<Change>,
    /// Whether what storage should hold has changed.
    is_dirty: bool,
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
            is_dirty: false,
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

impl Reference {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::Route(_) => Kind::Route,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Secret(_) => Kind::Secret,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Listener(name) => name.as_str(),
            Self::Route(name) => name.as_str(),
            Self::Cluster(name) => name.as_str(),
            Self::Endpoints(name) => name.as_str(),
            Self::Secret(name) => name.as_str(),
        }
    }
}

impl KnownBefore for Cache {
    fn known(&self, kind: Kind, name: &str, bytes: &[u8]) -> Option<Same> {
        match kind {
            Kind::Listener => self.listeners.same(name, bytes, Config::Listener),
            Kind::Route => self.routes.same(name, bytes, Config::Route),
            Kind::Cluster => self.clusters.same(name, bytes, Config::Cluster),
            Kind::Endpoints => self.endpoints.same(name, bytes, Config::Endpoints),
            Kind::Secret => self.secrets.same(name, bytes, Config::Secret),
        }
    }
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

    /// Drops a resource with its last good value. Storage keeps it until the next value of any.
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
    pub(crate) fn accept(&mut self, accepted: Accepted, now: SystemTime) -> Option<Reference> {
        self.is_dirty = true;
        let name = &accepted.name;
        let about = About {
            version: accepted.version,
            raw: accepted.raw,
            ignored: accepted.ignored,
            updated: now,
            is_stored: false,
        };
        match accepted.config {
            Config::Listener(v) => {
                let changed = self.listeners.accept(name, good(v, about));
                changed.map(Reference::Listener)
            }
            Config::Route(v) => {
                let changed = self.routes.accept(name, good(v, about));
                changed.map(Reference::Route)
            }
            Config::Cluster(v) => {
                let changed = self.clusters.accept(name, good(v, about));
                changed.map(Reference::Cluster)
            }
            Config::Endpoints(v) => {
                let changed = self.endpoints.accept(name, good(v, about));
                changed.map(Reference::Endpoints)
            }
            Config::Secret(v) => {
                let changed = self.secrets.accept(name, good(v, about));
                changed.map(Reference::Secret)
            }
        }
    }

    /// A failure in place of a value. Returns the resource when what is used changes.
    pub(crate) fn fail(
        &mut self,
        kind: Kind,
        name: &str,
        failure: Failure,
        policy: ErrorPolicy,
    ) -> Option<Reference> {
        let drops = policy.drops(failure.cause);
        self.is_dirty |= drops;
        match kind {
            Kind::Listener => {
                let changed = self.listeners.fail(name, failure, drops);
                changed.map(Reference::Listener)
            }
            Kind::Route => {
                let changed = self.routes.fail(name, failure, drops);
                changed.map(Reference::Route)
            }
            Kind::Cluster => {
                let changed = self.clusters.fail(name, failure, drops);
                changed.map(Reference::Cluster)
            }
            Kind::Endpoints => {
                let changed = self.endpoints.fail(name, failure, drops);
                changed.map(Reference::Endpoints)
            }
            Kind::Secret => {
                let changed = self.secrets.fail(name, failure, drops);
                changed.map(Reference::Secret)
            }
        }
    }

    /// Whether a value or an error is known: existing and known-missing both count as cached
    /// (gRFC A71).
    pub(crate) fn is_known(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Listener => self.listeners.is_known(name),
            Kind::Route => self.routes.is_known(name),
            Kind::Cluster => self.clusters.is_known(name),
            Kind::Endpoints => self.endpoints.is_known(name),
            Kind::Secret => self.secrets.is_known(name),
        }
    }

    /// Resources whose value stays in use and of which something else is new, since the last call.
    pub(crate) fn take_beside(&mut self) -> Vec<Reference> {
        let mut beside: Vec<_> = std::mem::take(&mut self.listeners.beside)
            .into_iter()
            .map(Reference::Listener)
            .collect();
        let routes = std::mem::take(&mut self.routes.beside).into_iter();
        beside.extend(routes.map(Reference::Route));
        let clusters = std::mem::take(&mut self.clusters.beside).into_iter();
        beside.extend(clusters.map(Reference::Cluster));
        let endpoints = std::mem::take(&mut self.endpoints.beside).into_iter();
        beside.extend(endpoints.map(Reference::Endpoints));
        let secrets = std::mem::take(&mut self.secrets.beside).into_iter();
        beside.extend(secrets.map(Reference::Secret));
        beside
    }

    /// Changes since the last call, in order.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What an earlier run knew, used until the control plane says otherwise.
    pub(crate) fn preload(&mut self, resources: Vec<(Accepted, SystemTime, u8)>) {
        for (accepted, updated, unused_runs) in resources {
            let name = accepted.name;
            let about = About {
                version: accepted.version,
                raw: accepted.raw,
                ignored: accepted.ignored,
                updated,
                is_stored: true,
            };
            match accepted.config {
                Config::Listener(v) => {
                    let stored = (good(v, about), unused_runs);
                    self.listeners.stored.insert(name, stored);
                }
                Config::Route(v) => {
                    let stored = (good(v, about), unused_runs);
                    self.routes.stored.insert(name, stored);
                }
                Config::Cluster(v) => {
                    let stored = (good(v, about), unused_runs);
                    self.clusters.stored.insert(name, stored);
                }
                Config::Endpoints(v) => {
                    let stored = (good(v, about), unused_runs);
                    self.endpoints.stored.insert(name, stored);
                }
                Config::Secret(v) => {
                    let stored = (good(v, about), unused_runs);
                    self.secrets.stored.insert(name, stored);
                }
            }
        }
    }

    /// Whether storage should be brought up to date; asks once.
    pub(crate) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.is_dirty)
    }

    /// What a later run should know. Private keys stay in memory.
    pub(crate) fn save(&self) -> Vec<StoredResource> {
        let mut to = Vec::new();
        self.listeners.save(|_| true, &mut to);
        self.routes.save(|_| true, &mut to);
        self.clusters.save(|_| true, &mut to);
        self.endpoints.save(|_| true, &mut to);
        let is_public = |secret: &Secret| matches!(secret, Secret::TrustBundle(_));
        self.secrets.save(is_public, &mut to);
        to.sort_unstable_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        to
    }

    /// How many values in use the control plane has not confirmed since this process started.
    pub(crate) fn stored_in_use(&self) -> usize {
        self.listeners.stale
            + self.routes.stale
            + self.clusters.stale
            + self.endpoints.stale
            + self.secrets.stale
    }

    /// How many resources are in each state.
    pub(crate) fn counts(&self) -> BTreeMap<ResourceKey, u64> {
        let mut to = BTreeMap::new();
        self.listeners.add_counts(&mut to);
        self.routes.add_counts(&mut to);
        self.clusters.add_counts(&mut to);
        self.endpoints.add_counts(&mut to);
        self.secrets.add_counts(&mut to);
        to
    }

    /// Every resource as people see it, in order.
    pub(crate) fn dump(&self) -> Vec<ResourceDump> {
        let mut to = Vec::new();
        self.listeners.dump(&mut to);
        self.routes.dump(&mut to);
        self.clusters.dump(&mut to);
        self.endpoints.dump(&mut to);
        self.secrets.dump(&mut to);
        to.sort_unstable_by(|a, b| (a.type_url, &a.name).cmp(&(b.type_url, &b.name)));
        to
    }
}

fn good<T>(value: Arc<T>, about: About) -> Good<T> {
    Good { value, about }
}
