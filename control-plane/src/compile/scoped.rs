//! What differs between clients: which declaration of a service's routes holds for one, and which
//! routes of it.
//!
//! A group of clients for which the same holds shares one rendered configuration; its key is the
//! [`View::key`]. Who may see what here is a matter of order, not of security: clients say
//! themselves what their namespace and labels are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use mesh_core::{
    RouteConfigName,
    config::{LocalityId, Route, RouteConfig, VirtualHost},
};

use super::{
    RouteOrigin,
    hashing::{self, PartHash},
};

/// What a client says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'v> {
    /// Its namespace.
    pub namespace: &'v str,
    /// Its labels.
    pub labels: &'v BTreeMap<String, String>,
    /// Where it is.
    pub locality: &'v LocalityId,
}

static NOWHERE: LocalityId = LocalityId {
    region: String::new(),
    zone: String::new(),
    sub_zone: String::new(),
};
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl<'v> From<&'v str> for Viewer<'v> {
    /// A client without labels.
    fn from(namespace: &'v str) -> Self {
        Self {
            namespace,
            labels: &NO_LABELS,
            locality: &NOWHERE,
        }
    }
}

impl<'v> From<&'v String> for Viewer<'v> {
    fn from(namespace: &'v String) -> Self {
        namespace.as_str().into()
    }
}

/// Which namespaces something is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Audience {
    /// All of them.
    #[default]
    All,
    /// These.
    Namespaces(BTreeSet<String>),
}

impl Audience {
    pub(super) fn namespace(name: &str) -> Self {
        Self::Namespaces([name.to_owned()].into())
    }

    /// Istio's `exportTo`: `*` is all, `.` the object's own namespace, `~` none; none is all.
    pub(super) fn exported<'t>(list: impl IntoIterator<Item = &'t str>, namespace: &str) -> Self {
        let mut list = list.into_iter().map(str::trim).peekable();
        if list.peek().is_none() {
            return Self::All;
        }
        let mut names = BTreeSet::new();
        for name in list {
            match name {
                "*" => return Self::All,
                "." => _ = names.insert(namespace.to_owned()),
                "~" | "" => {}
                name => _ = names.insert(name.to_owned()),
            }
        }
        Self::Namespaces(names)
    }

    pub(super) fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }

    /// Whether everybody in `other` is in this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Namespaces(_), Self::All) => false,
            (Self::Namespaces(names), Self::Namespaces(others)) => names.is_superset(others),
        }
    }
}

/// Which clients a route is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientMatch {
    /// In these namespaces.
    pub(super) audience: Audience,
    /// With all of these labels.
    pub(super) labels: BTreeMap<String, String>,
}

impl ClientMatch {
    pub(super) fn has(&self, viewer: Viewer<'_>) -> bool {
        self.audience.has(viewer.namespace)
            && self
                .labels
                .iter()
                .all(|(key, value)| viewer.labels.get(key) == Some(value))
    }
}

/// A route, whom it is for, and where it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeclaredRoute {
    pub(super) route: Route,
    /// `None` is everybody.
    pub(super) clients: Option<ClientMatch>,
    /// `None` for one that nobody declared.
    pub(super) origin: Option<RouteOrigin>,
    /// What its clusters hash, where that is not the same for all clients.
    pub(super) hashes: Vec<PartHash>,
}

impl DeclaredRoute {
    pub(super) fn new(route: Route, origin: Option<RouteOrigin>) -> Self {
        Self {
            route,
            clients: None,
            origin,
            hashes: Vec::new(),
        }
    }
}

/// The routes that hold for an audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declaration {
    pub(super) audience: Audience,
    pub(super) routes: Vec<DeclaredRoute>,
}

/// The routes of a port of a service, for all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedRoutes {
    pub(super) name: RouteConfigName,
    /// The virtual host, without its routes.
    pub(super) host: VirtualHost,
    /// The first that is for a client holds; the last is for all.
    pub(super) declarations: Vec<Declaration>,
}

/// What holds for a group of clients.
#[derive(Clone, Debug)]
pub struct View {
    /// Equal for clients for which the same holds; empty where the same holds for all.
    pub key: String,
    /// The configuration.
    pub config: Arc<RouteConfig>,
    /// Where each of its routes is declared; `None` for one that nobody declared.
    pub origins: Vec<Option<RouteOrigin>>,
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all clients"),
            Self::Namespaces(names) => {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                write!(f, "clients of namespace {}", names.join(", "))
            }
        }
    }
}

impl fmt::Display for ClientMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.audience {
            Audience::All => f.write_str("clients")?,
            some => some.fmt(f)?,
        }
        for (key, value) in &self.labels {
            write!(f, " with {key}={value}")?;
        }
        Ok(())
    }
}

/// A route that a client does not get: its name, why, and where it is declared.
pub(crate) type LeftOut = (String, String, Option<RouteOrigin>);

impl ScopedRoutes {
    /// What is declared, but not for this client.
    pub(super) fn left_out(&self, viewer: Viewer<'_>) -> Vec<LeftOut> {
        let mut all = Vec::new();
        let mut is_chosen = false;
        for held in &self.declarations {
            let is_for = held.audience.has(viewer.namespace);
            let is_it = is_for && !is_chosen;
            let reason = match is_for {
                true => "what is for fewer clients goes before it".to_owned(),
                false => format!("it is for {}", held.audience),
            };
            is_chosen |= is_for;
            for declared in &held.routes {
                let reason = match &declared.clients {
                    Some(clients) if is_it && !clients.has(viewer) => {
                        format!("it is for {clients}")
                    }
                    _ if is_it => continue,
                    _ => reason.clone(),
                };
                let name = declared.route.name.clone();
                all.push((
                    name,
                    format!("not tried: {reason}"),
                    declared.origin.clone(),
                ));
            }
        }
        all
    }

    /// Whether the same holds for all clients.
    pub(super) fn is_same_for_all(&self) -> bool {
        let mut all = self.declarations.iter().flat_map(|held| &held.routes);
        let is_for_all = |held: &DeclaredRoute| held.clients.is_none() && held.hashes.is_empty();
        self.declarations.len() == 1 && all.all(is_for_all)
    }

    /// What holds for a client; `None` asks for what holds for one that nothing special is for.
    pub(super) fn view(&self, viewer: Option<Viewer<'_>>) -> View {
        let is_for = |held: &&Declaration| match viewer {
            Some(viewer) => held.audience.has(viewer.namespace),
            None => held.audience == Audience::All,
        };
        let number = self.declarations.iter().position(|held| is_for(&held));
        let routes = number.map_or(&[][..], |number| &self.declarations[number].routes);
        let (mut key, mut origins) = (String::new(), Vec::new());
        let mut host = self.host.clone();
        if !self.is_same_for_all() {
            key = number.map_or_else(|| "-".to_owned(), |number| format!("{number}:"));
        }
        for declared in routes {
            if let Some(clients) = &declared.clients {
                let is_admitted = viewer.is_some_and(|viewer| clients.has(viewer));
                key.push(if is_admitted { '1' } else { '0' });
                if !is_admitted {
                    continue;
                }
            }
            let mut route = declared.route.clone();
            if !declared.hashes.is_empty() {
                let (number, policy) = hashing::of(&declared.hashes, viewer);
                key.push_str(&number);
                hashing::set(&mut route, policy);
            }
            host.routes.push(route);
            origins.push(declared.origin.clone());
        }
        View {
            key,
            config: Arc::new(RouteConfig::new(self.name.clone(), vec![host])),
            origins,
        }
    }
}
