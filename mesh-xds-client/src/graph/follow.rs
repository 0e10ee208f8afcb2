//! Watchers of single resources.
//!
//! Stage 5. Compares what the cache knows of a resource with what a watcher was told, and tells the
//! difference: an identical error or an unchanged value is never repeated (gRFC A88). An outage is told
//! where the resource has no error of its own, which says more.

use std::{collections::BTreeMap, fmt, sync::Arc};

use mesh_core::{
    ConfigError,
    config::{ClusterEndpoints, Listener, RouteConfig},
};

use super::{Graph, WatchId, faults::named};
use crate::{
    cache::{Cache, Known, Reference},
    resource::{ClusterSpec, Kind, authority},
    watcher::{Done, Gate, News, Teller},
};

/// Follows one resource for one watcher.
pub(crate) trait Follow: fmt::Debug + Send {
    fn reference(&self) -> Reference;

    /// Tells what differs from what was told. `outage` is why its control planes cannot be reached.
    fn follow(&mut self, cache: &Cache, outage: Option<&ConfigError>, gate: Option<&Gate>);
}

/// A type of resource that can be watched by itself.
pub trait Resource: sealed::Resource {
    /// The type's URL on the wire.
    const TYPE_URL: &'static str;
}

impl Resource for Listener {
    const TYPE_URL: &'static str = Kind::Listener.type_url();
}

impl Resource for RouteConfig {
    const TYPE_URL: &'static str = Kind::Route.type_url();
}

impl Resource for ClusterSpec {
    const TYPE_URL: &'static str = Kind::Cluster.type_url();
}

impl Resource for ClusterEndpoints {
    const TYPE_URL: &'static str = Kind::Endpoints.type_url();
}

pub(crate) mod sealed {
    use super::{Cache, ClusterEndpoints, ClusterSpec, Known, Listener, Reference, RouteConfig};

    /// Where the values of a type are.
    pub trait Resource: Sized + Send + Sync + 'static {
        #[doc(hidden)]
        #[allow(private_interfaces, reason = "sealed: nobody else can call it")]
        fn reference(name: &str) -> Reference;

        #[doc(hidden)]
        #[allow(private_interfaces, reason = "sealed: nobody else can call it")]
        fn known<'c>(cache: &'c Cache, name: &str) -> Known<'c, Self>;
    }

    macro_rules! resource {
        ($type:ty, $variant:ident, $table:ident) => {
            impl Resource for $type {
                #[allow(private_interfaces, reason = "sealed: nobody else can call it")]
                fn reference(name: &str) -> Reference {
                    Reference::$variant(name.into())
                }

                #[allow(private_interfaces, reason = "sealed: nobody else can call it")]
                fn known<'c>(cache: &'c Cache, name: &str) -> Known<'c, Self> {
                    cache.$table.known(name)
                }
            }
        };
    }

    resource!(Listener, Listener, listeners);
    resource!(RouteConfig, Route, routes);
    resource!(ClusterSpec, Cluster, clusters);
    resource!(ClusterEndpoints, Endpoints, endpoints);
}

/// One watcher with what it was told.
pub(crate) struct Follower<T> {
    name: String,
    teller: Teller<T>,
    value: Option<Result<Arc<T>, ConfigError>>,
    ambient: Option<ConfigError>,
}

impl<T> Follower<T> {
    pub(crate) fn new(name: String, teller: Teller<T>) -> Self {
        Self {
            name,
            teller,
            value: None,
            ambient: None,
        }
    }

    fn was_told(&self, value: &Result<Arc<T>, ConfigError>) -> bool {
        match (&self.value, value) {
            // The cache keeps the pointer of a value that comes again.
            (Some(Ok(old)), Ok(new)) => Arc::ptr_eq(old, new),
            (Some(Err(old)), Err(new)) => old == new,
            _ => false,
        }
    }
}

impl<T: sealed::Resource> Follow for Follower<T> {
    fn reference(&self) -> Reference {
        T::reference(&self.name)
    }

    fn follow(&mut self, cache: &Cache, outage: Option<&ConfigError>, gate: Option<&Gate>) {
        let Known { value, error } = T::known(cache, &self.name);
        let error = error.or(outage);
        let (value, ambient) = match (value, error) {
            (Some(value), error) => (Ok(value), error),
            (None, Some(error)) => (Err(error.clone()), None),
            // Nothing is known, or no longer that the control plane is away.
            (None, None) => return,
        };
        if !self.was_told(&value) {
            self.teller
                .tell(News::Changed(value.clone()), Done::new(gate));
            self.value = Some(value);
            self.ambient = None;
        }
        if self.ambient.as_ref() != ambient {
            let news = News::AmbientError(ambient.cloned());
            self.teller.tell(news, Done::new(gate));
            self.ambient = ambient.cloned();
        }
    }
}

impl<T> fmt::Debug for Follower<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All followers, by what they follow.
#[derive(Debug, Default)]
pub(super) struct Followers(BTreeMap<Reference, BTreeMap<WatchId, Box<dyn Follow>>>);

impl Followers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, reference: &Reference) -> bool {
        self.0.contains_key(reference)
    }

    pub(super) fn remove(&mut self, reference: &Reference, id: WatchId) {
        if let Some(followers) = self.0.get_mut(reference) {
            followers.remove(&id);
            if followers.is_empty() {
                self.0.remove(reference);
            }
        }
    }
}

impl Graph {
    pub(super) fn add_follower(&mut self, id: WatchId, mut follower: Box<dyn Follow>) -> Reference {
        let reference = follower.reference();
        self.cache.request(&reference);
        let outage = self.outage_of(&reference);
        // What is in memory did not come by a stream: nothing is to be held back.
        follower.follow(&self.cache, outage.as_ref(), None);
        let followers = self.followers.0.entry(reference.clone()).or_default();
        followers.insert(id, follower);
        reference
    }

    /// Tells the watchers of these resources what is new. `gate` is that of the stream it came by.
    pub(super) fn tell(&mut self, references: &[Reference], gate: Option<&Gate>) {
        if self.followers.is_empty() {
            return;
        }
        for reference in references {
            if !self.followers.has(reference) {
                continue;
            }
            let outage = self.outage_of(reference);
            let followers = self.followers.0.get_mut(reference);
            for follower in followers.into_iter().flat_map(BTreeMap::values_mut) {
                follower.follow(&self.cache, outage.as_ref(), gate);
            }
        }
    }

    /// Tells the watchers of an authority's resources that it can or cannot be reached.
    pub(super) fn tell_of_outage(&mut self, of: Option<&str>) {
        let references = self.followers.0.keys();
        let hit: Vec<_> = references
            .filter(|reference| authority(reference.name()) == of)
            .cloned()
            .collect();
        self.tell(&hit, None);
    }

    fn outage_of(&self, reference: &Reference) -> Option<ConfigError> {
        let name = reference.name();
        let outage = self.outages.get(&authority(name).map(str::to_owned))?;
        Some(self.origin.away(named(reference.kind(), name, ""), outage))
    }
}
