//! Routes: from a request's head to a cluster (xDS RDS; gRFC A28, A31, A44).

use super::{
    DirectResponse, FilterOverrides, Forward, ForwardExtras, Fraction, HashPolicy, HeaderMatcher,
    HeaderMutations, MirrorTarget, PathMatcher, QueryMatcher, Redirect,
};
use crate::name::{ClusterName, RouteConfigName};

/// A route configuration resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Resource name.
    pub name: RouteConfigName,
    /// Chosen by the request's authority.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Changes of headers for all routes.
    pub headers: Option<Box<HeaderMutations>>,
    /// Whether the more specific changes of headers are made last, and so win
    /// (`most_specific_header_mutations_wins`). By default they are made first, as those of a
    /// weighted cluster always are.
    pub most_specific_mutations_win: bool,
    /// Whether domains are compared with the authority without its port.
    pub ignore_port: bool,
    /// What is said about filters for all routes.
    pub filters: Option<Box<FilterOverrides>>,
}

impl RouteConfig {
    /// Virtual hosts without anything that holds for all of them.
    pub fn new(name: impl Into<RouteConfigName>, virtual_hosts: Vec<VirtualHost>) -> Self {
        Self {
            name: name.into(),
            virtual_hosts,
            headers: None,
            most_specific_mutations_win: false,
            ignore_port: false,
            filters: None,
        }
    }
}

impl RouteConfig {
    /// The names of all clusters that routes or copies lead to; one may be there several times.
    pub fn clusters(&self) -> impl Iterator<Item = String> + '_ {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        let forwards = routes.filter_map(|route| match &route.action {
            RouteAction::Forward(forward) => Some(forward),
            _ => None,
        });
        forwards.flat_map(|forward| {
            let extras = forward.extras.iter().flat_map(|extras| &extras.mirrors);
            let copies = extras.filter_map(|mirror| match &mirror.cluster {
                MirrorTarget::Cluster(name) => Some(name.to_string()),
                MirrorTarget::Header(_) => None,
            });
            let clusters = forward.clusters.iter();
            clusters
                .map(|cluster| cluster.name.to_string())
                .chain(copies)
        })
    }
}

/// Routes of a group of domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// For people; unique in a [`RouteConfig`].
    pub name: String,
    /// Exact, `*suffix`, `prefix*` or `*`; compared without ASCII case.
    pub domains: Vec<String>,
    /// The first that matches wins.
    pub routes: Vec<Route>,
    /// Changes of headers for all routes of this host.
    pub headers: Option<Box<HeaderMutations>>,
    /// What is said about filters for all routes of this host.
    pub filters: Option<Box<FilterOverrides>>,
    /// Who is told how often requests were tried.
    pub attempt_counts: AttemptCounts,
}

/// Who is told in `x-envoy-attempt-count` which attempt this is, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    /// The server (`include_request_attempt_count`).
    pub in_request: bool,
    /// The caller (`include_attempt_count_in_response`).
    pub in_response: bool,
}

impl VirtualHost {
    /// Domains and their routes.
    pub fn new(
        name: impl Into<String>,
        domains: impl IntoIterator<Item = impl Into<String>>,
        routes: Vec<Route>,
    ) -> Self {
        Self {
            name: name.into(),
            domains: domains.into_iter().map(Into::into).collect(),
            routes,
            headers: None,
            filters: None,
            attempt_counts: AttemptCounts::default(),
        }
    }
}

/// A match and its action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// For people, metrics and logs; may be empty.
    pub name: String,
    /// All parts must match.
    pub matcher: RouteMatch,
    /// What happens then.
    pub action: RouteAction,
    /// Changes of headers.
    pub headers: Option<Box<HeaderMutations>>,
    /// What is said about filters.
    pub filters: Option<Box<FilterOverrides>>,
}

impl Route {
    /// A match and its action.
    pub fn new(name: impl Into<String>, matcher: RouteMatch, action: RouteAction) -> Self {
        Self {
            name: name.into(),
            matcher,
            action,
            headers: None,
            filters: None,
        }
    }
}

impl Route {
    /// Every cluster that it names: those that requests are sent to, and those that get copies.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        let forward = match &self.action {
            RouteAction::Forward(forward) => Some(forward),
            _ => None,
        };
        let targets = forward.into_iter().flat_map(|forward| &forward.clusters);
        let mirrors = self.extras().into_iter().flat_map(|extras| &extras.mirrors);
        let copies = mirrors.filter_map(|mirror| match &mirror.cluster {
            MirrorTarget::Cluster(name) => Some(name),
            MirrorTarget::Header(_) => None,
        });
        targets.map(|cluster| &cluster.name).chain(copies)
    }

    fn extras(&self) -> Option<&ForwardExtras> {
        match &self.action {
            RouteAction::Forward(forward) => forward.extras.as_deref(),
            _ => None,
        }
    }

    /// What its requests have in common that go to the same endpoint.
    pub fn hash_policy(&self) -> &[HashPolicy] {
        self.extras().map_or(&[], |extras| &extras.hash_policy)
    }

    /// Whether requests name clusters of it, in a header.
    pub fn has_cluster_header(&self) -> bool {
        self.extras().is_some_and(|extras| {
            let mut mirrors = extras.mirrors.iter();
            extras.cluster_header.is_some()
                || mirrors.any(|mirror| matches!(mirror.cluster, MirrorTarget::Header(_)))
        })
    }
}

/// When a [`Route`] applies. The path, which every look-up reads, is in one cache line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct RouteMatch {
    /// Predicate over the path.
    pub path: PathMatcher,
    /// Predicates over headers, all must match.
    pub headers: Vec<HeaderMatcher>,
    /// Predicates over query parameters, all must match.
    pub query_parameters: Vec<QueryMatcher>,
    /// Share of the requests; `None` for all (`runtime_fraction.default_value`).
    pub fraction: Option<Fraction>,
}

impl RouteMatch {
    /// Whether it asks for more than a path.
    pub fn has_conditions(&self) -> bool {
        let Self {
            path: _,
            headers,
            query_parameters,
            fraction,
        } = self;
        !(headers.is_empty() && query_parameters.is_empty() && fraction.is_none())
    }

    /// Every request whose path matches.
    pub fn path(path: PathMatcher) -> Self {
        Self {
            path,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            fraction: None,
        }
    }

    /// Every request.
    pub fn any() -> Self {
        Self::path(PathMatcher::any())
    }
}

/// What a [`Route`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// Send the request to a cluster.
    Forward(Forward),
    /// Answer with another address.
    Redirect(Box<Redirect>),
    /// Answer without asking anybody.
    DirectResponse(Box<DirectResponse>),
    /// Serve it here (servers only, `non_forwarding_action`).
    NonForwarding,
    /// An action this version does not know; a request that reaches it fails with this reason.
    Unsupported(String),
}
