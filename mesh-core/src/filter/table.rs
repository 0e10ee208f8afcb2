//! Which filters apply to which route, merged when a snapshot is compiled.

use std::{collections::HashMap, sync::Arc};

use super::{
    Filter, FilterKind, FilterStates, Filters,
    cors::Cors,
    ext_authz::ExternalCheck,
    fault::FaultInjector,
    header_mutation::HeaderMutations,
    merge::{Level, Merged, merge},
    rate_limit::RateLimiter,
};
use crate::{
    authz::Authorizer,
    config::{
        FilterConfig, FilterOverrides, Forward, HttpFilter, RateLimit, Route, RouteAction,
        RouteConfig, StatefulSession, VirtualHost, WeightedCluster,
    },
    name::ClusterName,
};

/// The filters of the routes of one virtual host. Routes without any cost one look at an empty list.
#[derive(Debug, Default)]
pub struct FilterTable {
    routes: Box<[RouteFilters]>,
    /// Empty when no route has one.
    sessions: Box<[Option<Arc<StatefulSession>>]>,
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
        let sessions = host.routes.iter().map(|route| compiler.session(route));
        let sessions: Box<[_]> = sessions.collect();
        states.forget_unused();
        let has_filters = !routes.iter().all(RouteFilters::is_empty);
        let has_sessions = sessions.iter().any(Option::is_some);
        Self {
            routes: if has_filters { routes } else { Box::default() },
            sessions: if has_sessions {
                sessions
            } else {
                Box::default()
            },
        }
    }

    /// The filters of a route, by its number; `None` without any.
    #[inline]
    pub fn route(&self, number: u32) -> Option<&RouteFilters> {
        self.routes.get(number as usize)
    }

    /// How sessions of a route, by its number, stick to endpoints.
    #[inline]
    pub fn session(&self, number: u32) -> Option<&Arc<StatefulSession>> {
        self.sessions.get(number as usize)?.as_ref()
    }
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
        let base = self.level(number, route, None);
        let none = Forward::default();
        let forward = match &route.action {
            RouteAction::Forward(forward) => forward,
            _ => &none,
        };
        let mut clusters = HashMap::new();
        for cluster in forward.clusters.iter().filter(|c| c.weight > 0) {
            let overrides = cluster.extras.as_ref().and_then(|e| e.filters.as_deref());
            if let (Some(overrides), Some(index)) = (overrides, index(&cluster.name)) {
                let own = Some((&cluster.name, overrides));
                clusters
                    .entry(index)
                    .or_insert_with(|| self.level(number, route, own));
            }
        }
        RouteFilters {
            base,
            clusters: clusters.into_iter().collect(),
        }
    }

    /// What the route says about sessions. A weighted cluster has no say: the session may decide which
    /// one it is.
    fn session(&self, route: &Route) -> Option<Arc<StatefulSession>> {
        let place = "";
        let levels = [&self.config.filters, &self.host.filters, &route.filters];
        let levels = levels.map(|overrides| Level {
            place,
            overrides: overrides.as_deref(),
        });
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
        // Decides about the endpoint: see [`FilterTable::session`].
        FilterConfig::StatefulSession(_) => return None,
        FilterConfig::Buffer { max_request_bytes } => FilterKind::Buffer(*max_request_bytes),
    })
}
