//! Which filters apply to which route, merged when a snapshot is compiled.

use std::{collections::HashSet, sync::Arc};

use super::{
    Filter, FilterKind, FilterStates, Filters,
    cors::Cors,
    ext_authz::ExternalCheck,
    fault::FaultInjector,
    header_mutation::HeaderMutations,
    merge::{Level, Merged, merge},
    rate_limit::RateLimiter,
    stateful_session::Session,
};
use crate::{
    authz::Authorizer,
    config::{
        FilterConfig, FilterOverrides, HttpFilter, RateLimit, Route, RouteAction, RouteConfig,
        StatefulSession, VirtualHost, WeightedCluster,
    },
    name::ClusterName,
    route::RequestView,
};

/// The filters of the routes of one virtual host. Routes without any cost one look at an empty list.
#[derive(Debug, Default)]
pub struct FilterTable {
    routes: Box<[RouteFilters]>,
    /// Empty when no route has one.
    sessions: Box<[RouteSessions]>,
}

/// How sessions of one route stick to endpoints.
#[derive(Clone, Debug, Default)]
pub struct RouteSessions {
    base: Option<Arc<StatefulSession>>,
    /// By the cluster's index in the snapshot, where it says something else.
    clusters: Box<[(u32, Option<Arc<StatefulSession>>)]>,
}

impl RouteSessions {
    /// How those stick that go to this cluster.
    pub fn of(&self, cluster: u32) -> Option<&Arc<StatefulSession>> {
        let own = self.clusters.iter().find(|(of, _)| *of == cluster);
        own.map_or(self.base.as_ref(), |(_, session)| session.as_ref())
    }

    /// The cluster that holds the request's session, by its index: a cookie counts for clusters whose
    /// sessions are kept in it.
    pub fn cluster(
        &self,
        request: &RequestView<'_>,
        index: impl Fn(&str) -> Option<u32>,
    ) -> Option<u32> {
        let own = self.clusters.iter().filter_map(|(_, own)| own.as_ref());
        own.chain(&self.base).find_map(|config| {
            let session = Session::of(config, request)?;
            let cluster = index(session.cluster()?)?;
            let kept = self.of(cluster).is_some_and(|kept| kept == config);
            kept.then_some(cluster)
        })
    }

    fn is_empty(&self) -> bool {
        self.base.is_none() && self.clusters.iter().all(|(_, own)| own.is_none())
    }
}

/// The filters of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteFilters {
    base: Option<Filters>,
    /// By the cluster's index in the snapshot, where it says something about filters.
    clusters: Box<[(u32, Option<Filters>)]>,
}

impl RouteFilters {
    /// The filters of requests to this cluster.
    pub fn of(&self, cluster: Option<u32>) -> Option<&Filters> {
        let own = self.clusters.iter().find(|(of, _)| Some(*of) == cluster);
        own.map_or(self.base.as_ref(), |(_, filters)| filters.as_ref())
    }

    fn is_empty(&self) -> bool {
        self.base.is_none() && self.clusters.iter().all(|(_, filters)| filters.is_none())
    }
}

impl FilterTable {
    /// Compiles the filters of `host`'s routes. `scope` names the listener; `index` finds a cluster by
    /// name.
    pub fn compile(
        scope: &str,
        filters: &[HttpFilter],
        config: &RouteConfig,
        host: &VirtualHost,
        index: impl Fn(&ClusterName) -> Option<u32>,
        states: &mut FilterStates,
    ) -> Self {
        if filters.is_empty() {
            return Self::default();
        }
        // Most hosts say nothing, and listeners list filters that do nothing by themselves.
        let base = compile(scope, filters, states);
        let is_silent = config.filters.is_none() && host.filters.is_none();
        let has_session = filters
            .iter()
            .any(|filter| matches!(filter.config, FilterConfig::StatefulSession(Some(_))));
        if base.is_none() && !has_session && is_silent && host.routes.iter().all(says_nothing) {
            return Self::default();
        }
        let mut compiler = TableCompiler {
            scope,
            filters,
            config,
            host,
            states,
        };
        let routes: Box<[_]> = (0..)
            .zip(&host.routes)
            .map(|(number, route)| match is_silent && says_nothing(route) {
                true => RouteFilters {
                    base: base.clone(),
                    clusters: Box::default(),
                },
                false => compiler.route(number, route, &index),
            })
            .collect();
        let sessions = host.routes.iter();
        let sessions: Box<[_]> = sessions
            .map(|route| compiler.sessions(route, &index))
            .collect();
        states.forget_unused();
        let has_filters = !routes.iter().all(RouteFilters::is_empty);
        let has_sessions = !sessions.iter().all(RouteSessions::is_empty);
        Self {
            routes: if has_filters { routes } else { Box::default() },
            sessions: if has_sessions {
                sessions
            } else {
                Box::default()
            },
        }
    }

    /// Whether no route has filters, or sessions that stick.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.sessions.is_empty()
    }

    /// The filters of a route, by its number; `None` without any.
    #[inline]
    pub fn route(&self, number: u32) -> Option<&RouteFilters> {
        self.routes.get(number as usize)
    }

    /// How sessions of a route, by its number, stick to endpoints.
    #[inline]
    pub fn sessions(&self, number: u32) -> Option<&RouteSessions> {
        let sessions = self.sessions.get(number as usize);
        sessions.filter(|sessions| !sessions.is_empty())
    }
}

/// The clusters of a route that say something about filters, each once, with their indexes.
fn overriding<'r>(
    route: &'r Route,
    index: &impl Fn(&ClusterName) -> Option<u32>,
) -> impl Iterator<Item = (u32, &'r ClusterName, &'r FilterOverrides)> {
    let clusters = match &route.action {
        RouteAction::Forward(forward) => &forward.clusters[..],
        _ => &[],
    };
    let mut known = HashSet::new();
    let overriding = clusters.iter().filter_map(move |cluster| {
        let overrides = cluster.extras.as_ref()?.filters.as_deref()?;
        let index = (cluster.weight > 0).then(|| index(&cluster.name))??;
        known
            .insert(index)
            .then_some((index, &cluster.name, overrides))
    });
    overriding.collect::<Vec<_>>().into_iter()
}

/// Whether neither a route nor a cluster of it says anything about filters.
fn says_nothing(route: &Route) -> bool {
    let clusters = match &route.action {
        RouteAction::Forward(forward) => &forward.clusters[..],
        _ => &[],
    };
    let of_cluster = |cluster: &WeightedCluster| {
        let extras = cluster.extras.as_ref();
        extras.is_none_or(|extras| extras.filters.is_none())
    };
    route.filters.is_none() && clusters.iter().all(of_cluster)
}

/// The filters of requests without a route, or of a listener whose routes say nothing.
pub fn compile(scope: &str, filters: &[HttpFilter], states: &mut FilterStates) -> Option<Filters> {
    compile_merged(scope, merge(filters, &[]), &[], states)
}

struct TableCompiler<'c> {
    scope: &'c str,
    filters: &'c [HttpFilter],
    config: &'c RouteConfig,
    host: &'c VirtualHost,
    states: &'c mut FilterStates,
}

impl TableCompiler<'_> {
    fn route(
        &mut self,
        number: u32,
        route: &Route,
        index: &impl Fn(&ClusterName) -> Option<u32>,
    ) -> RouteFilters {
        RouteFilters {
            base: self.level(number, route, None),
            clusters: overriding(route, index)
                .map(|(index, name, own)| (index, self.level(number, route, Some((name, own)))))
                .collect(),
        }
    }

    fn sessions(
        &self,
        route: &Route,
        index: &impl Fn(&ClusterName) -> Option<u32>,
    ) -> RouteSessions {
        RouteSessions {
            base: self.session(route, None),
            clusters: overriding(route, index)
                .map(|(index, _, own)| (index, self.session(route, Some(own))))
                .collect(),
        }
    }

    /// What the levels say about sessions.
    fn session(
        &self,
        route: &Route,
        cluster: Option<&FilterOverrides>,
    ) -> Option<Arc<StatefulSession>> {
        let place = "";
        let [config, host, route] = [&self.config.filters, &self.host.filters, &route.filters]
            .map(|overrides| overrides.as_deref());
        let levels = [config, host, route, cluster];
        let levels = levels.map(|overrides| Level { place, overrides });
        let merged = merge(self.filters, &levels);
        merged.into_iter().find_map(|merged| match merged.config {
            FilterConfig::StatefulSession(session) => session.clone(),
            _ => None,
        })
    }

    fn level(
        &mut self,
        number: u32,
        route: &Route,
        cluster: Option<(&ClusterName, &FilterOverrides)>,
    ) -> Option<Filters> {
        let (config, host) = (self.config, self.host);
        let of_config = format!("route configuration {}", config.name);
        let of_host = format!("{of_config}/{}", host.name);
        let of_route = format!("{of_host}/{number}:{}", route.name);
        let of_cluster = cluster.map(|(name, _)| format!("{of_route}/{name}"));
        let level = |place, overrides| Level { place, overrides };
        let mut levels = vec![
            level(&*of_config, config.filters.as_deref()),
            level(&*of_host, host.filters.as_deref()),
            level(&*of_route, route.filters.as_deref()),
        ];
        if let (Some(place), Some((_, overrides))) = (&of_cluster, cluster) {
            levels.push(level(place, Some(overrides)));
        }
        let limits = rate_limits(route.filters.as_deref(), host.filters.as_deref());
        let merged = merge(self.filters, &levels);
        compile_merged(self.scope, merged, &limits, self.states)
    }
}

/// What makes the descriptors of a route's requests: its own, or its virtual host's when it has none or
/// asks for both.
fn rate_limits(route: Option<&FilterOverrides>, host: Option<&FilterOverrides>) -> Vec<RateLimit> {
    let own = route.map_or(&[][..], |route| &route.rate_limits);
    let includes_host = own.is_empty() || route.is_some_and(|route| route.include_vh_rate_limits);
    let of_host = host.filter(|_| includes_host);
    let of_host = of_host.map_or(&[][..], |host| &host.rate_limits);
    own.iter().chain(of_host).cloned().collect()
}

fn compile_merged(
    scope: &str,
    merged: Vec<Merged<'_>>,
    route_limits: &[RateLimit],
    states: &mut FilterStates,
) -> Option<Filters> {
    let filters = merged.into_iter().filter_map(|merged| {
        Some(Filter {
            name: Arc::clone(&merged.filter.name),
            kind: compile_one(scope, &merged, route_limits, states)?,
        })
    });
    let filters: Filters = filters.collect();
    (!filters.is_empty()).then_some(filters)
}

/// `None` for a filter that does nothing.
fn compile_one(
    scope: &str,
    merged: &Merged<'_>,
    route_limits: &[RateLimit],
    states: &mut FilterStates,
) -> Option<FilterKind> {
    let place = || format!("{}/{}", merged.place.unwrap_or(scope), merged.filter.name);
    Some(match merged.config {
        FilterConfig::Rbac(rules) => {
            FilterKind::Authorize(Authorizer::compile(std::slice::from_ref(rules.as_ref()?)))
        }
        FilterConfig::JwtAuthn(tokens) => FilterKind::Authenticate(Arc::clone(tokens)),
        FilterConfig::ExtAuthz(_) => {
            let levels = merged.levels.iter().filter_map(|level| match level {
                FilterConfig::ExtAuthz(settings) => Some(settings),
                _ => None,
            });
            FilterKind::Check(ExternalCheck::new(levels)?)
        }
        FilterConfig::Fault(fault) if fault.delay.is_none() && fault.abort.is_none() => {
            return None;
        }
        FilterConfig::Fault(fault) => {
            FilterKind::Fault(FaultInjector::new(fault, &states.active_faults))
        }
        FilterConfig::LocalRateLimit(limit) if RateLimiter::is_without_effect(limit) => {
            return None;
        }
        FilterConfig::LocalRateLimit(limit) => {
            let rate_limits = match limit.rate_limits.is_empty() {
                false => limit.rate_limits.clone(),
                true => {
                    let of_stage = route_limits.iter().filter(|one| one.stage == limit.stage);
                    of_stage.cloned().collect()
                }
            };
            FilterKind::RateLimit {
                limiter: states.limiter(place(), limit),
                rate_limits: rate_limits.into(),
            }
        }
        FilterConfig::AdaptiveConcurrency(config) if !config.enabled => return None,
        FilterConfig::AdaptiveConcurrency(config) => {
            FilterKind::Concurrency(states.controller(place(), config))
        }
        FilterConfig::Cors(_) => {
            let policies = merged.levels.iter().rev().filter_map(|level| match level {
                FilterConfig::Cors(policy) => policy.clone(),
                _ => None,
            });
            FilterKind::Cors(Cors::new(policies.collect())?)
        }
        FilterConfig::HeaderMutation(_) => {
            let levels = merged.levels.iter().filter_map(|level| match level {
                FilterConfig::HeaderMutation(mutation) => Some(Arc::clone(mutation)),
                _ => None,
            });
            FilterKind::HeaderMutation(HeaderMutations::new(levels.collect())?)
        }
        // Decides about the endpoint: see [`FilterTable::sessions`].
        FilterConfig::StatefulSession(_) => return None,
        FilterConfig::Buffer { max_request_bytes } => FilterKind::Buffer(*max_request_bytes),
    })
}
