//! Gateway API's HTTPRoute and GRPCRoute on Services (GAMMA; GEP-1294, GEP-1324).
//!
//! A route in its Service's namespace is for all clients (producer); one in another namespace is
//! for the clients there, in the place of what the producer says (consumer). All routes of a port
//! are merged: the most specific match wins. What is wrong with a rule fails the requests that it
//! matches, never those of another one.

mod attach;
mod backend;
mod filters;
mod grpc;
mod http;
mod matches;
mod policy;
mod rank;
mod status;

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::config::{
    ClusterExtras, FilterOverride, Forward, ForwardExtras, Fraction, HeaderMutations, RetryPolicy,
    Route, RouteAction, RouteMatch,
};

use super::{
    RouteOrigin, SESSION_FILTER, route_action::default_retries, route_match::Wrong,
    routes::Context, scoped::DeclaredRoute, session::session,
};
use crate::model::{
    Object,
    gateway::{BackendRef, Filter, GrpcRoute, HttpRoute, SessionPersistence},
};
pub(super) use attach::{Attachments, attach};
use backend::Backends;
pub(super) use backend::Grants;
use filters::{Effects, path_rewrite, redirect};
use matches::Matched;
pub(super) use policy::apply_policies;
use rank::Rank;
pub use status::{Condition, ParentStatus, RouteStatus};

/// A route on a port of a service, or on all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached<'o> {
    object: &'o Arc<Object>,
    spec: RouteSpec<'o>,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
enum RouteSpec<'o> {
    Http(&'o HttpRoute),
    Grpc(&'o GrpcRoute),
}

/// What a rule says, in either kind of route.
struct Rule<'r> {
    name: Option<&'r str>,
    matches: Result<Vec<Matched>, Wrong>,
    filters: &'r [Filter],
    backends: &'r [BackendRef],
    timeout: Result<Option<std::time::Duration>, Wrong>,
    retry: Result<Option<RetryPolicy>, Wrong>,
    session: Option<&'r SessionPersistence>,
}

impl Attached<'_> {
    pub(super) fn is_on(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    pub(super) fn object(&self) -> &Arc<Object> {
        self.object
    }

    /// The namespace whose clients it is for; `None` is all.
    pub(super) fn consumers(&self, service_namespace: &str) -> Option<&str> {
        let own = self.object.key.namespace.as_str();
        (own != service_namespace).then_some(own)
    }
}

impl Context<'_> {
    /// The routes of all that is attached, the most specific first.
    pub(super) fn gateway_routes<'a>(
        &mut self,
        attached: impl Iterator<Item = &'a Attached<'a>>,
    ) -> Vec<DeclaredRoute> {
        let mut all = Vec::new();
        let mut seen = BTreeSet::new();
        for Attached { object, spec, .. } in attached {
            // A route may name a service twice.
            if !seen.insert(&object.key) {
                continue;
            }
            match spec {
                RouteSpec::Http(spec) => {
                    for (index, rule) in spec.rules.iter().enumerate() {
                        self.rule(object, index, &http::rule(rule), &mut all);
                    }
                }
                RouteSpec::Grpc(spec) => {
                    for (index, rule) in spec.rules.iter().enumerate() {
                        self.rule(object, index, &grpc::rule(rule), &mut all);
                    }
                }
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.into_iter().map(|(_, declared)| declared).collect()
    }

    fn rule(
        &mut self,
        object: &Object,
        index: usize,
        rule: &Rule<'_>,
        all: &mut Vec<(Rank, DeclaredRoute)>,
    ) {
        let field = format!("spec.rules[{index}]");
        let matches = match &rule.matches {
            Ok(matches) => matches.as_slice(),
            Err((part, message)) => {
                // Nobody knows which requests it would have been.
                self.broken(object, index, Some(part), message);
                return;
            }
        };
        let refused = object.refused.iter().find(|path| is_inside(path, &field));
        let done = match refused {
            Some(path) => {
                self.broken(object, index, None, path);
                Err(format!("{path} is not supported"))
            }
            None => self.effects(object, rule, &field).map_err(|wrong| {
                let (part, message) = wrong;
                // What has no place is said already, and is no fault of the rule's.
                if !part.is_empty() {
                    self.broken(object, index, Some(&part), &message);
                }
                message
            }),
        };
        for (number, matched) in matches.iter().enumerate() {
            let base = rule.name.map_or_else(
                || format!("{}/rules[{index}]", object.key.name),
                str::to_owned,
            );
            let name = match matches.len() {
                1 => base,
                _ => format!("{base}.{number}"),
            };
            let origin = RouteOrigin::new(object, &field);
            let rank = Rank::new(&matched.specificity, object, (index, number));
            for route in self.routes_of(object, index, &done, matched, &name) {
                all.push((
                    rank.clone(),
                    DeclaredRoute::new(route, Some(origin.clone())),
                ));
            }
        }
    }

    /// The routes of one match: its share for backends that are not there, and the rest.
    fn routes_of(
        &mut self,
        object: &Object,
        index: usize,
        done: &Result<Done, String>,
        matched: &Matched,
        name: &str,
    ) -> Vec<Route> {
        let matcher = &matched.matcher;
        let fails = |reason: &str| {
            let action = RouteAction::Unsupported(reason.to_owned());
            vec![Route::new(name, matcher.clone(), action)]
        };
        let done = match done {
            Ok(done) => done,
            Err(reason) => return fails(reason),
        };
        let action = match self.gateway_action(done, matcher) {
            Ok(action) => action,
            Err((part, message)) => {
                self.broken(object, index, Some(&part), &message);
                return fails(&message);
            }
        };
        let mut routes = Vec::new();
        if let Some((fraction, reason)) = &done.backends.failing {
            let matcher = RouteMatch {
                fraction: Some(*fraction),
                ..matcher.clone()
            };
            let action = RouteAction::Unsupported(reason.clone());
            routes.push(Route::new(format!("{name}/invalid"), matcher, action));
        }
        let Effects {
            headers, filters, ..
        } = &done.effects;
        routes.push(Route {
            headers: (!headers.is_empty()).then(|| Box::new(headers.clone())),
            filters: filters.clone().boxed(),
            ..Route::new(name, matcher.clone(), action)
        });
        routes
    }

    /// What happens to requests that a rule takes; what depends on the match comes later.
    fn effects(&mut self, object: &Object, rule: &Rule<'_>, field: &str) -> Result<Done, Wrong> {
        let is_grpc = object.key.kind == "GRPCRoute";
        let mut effects = self.filters(object, rule.filters, field, is_grpc)?;
        if let Some(declared) = rule.session {
            let inside = |(part, message)| (format!("sessionPersistence.{part}"), message);
            let session = session(declared, &object.key.name).map_err(inside)?;
            let session = FilterOverride::with(session);
            effects
                .filters
                .by_name
                .insert(SESSION_FILTER.into(), session);
        }
        let timeout = rule.timeout.clone()?;
        let retry = rule.retry.clone()?;
        if effects.redirect.is_some() {
            if !rule.backends.is_empty() {
                let message = "a rule has backends or a RequestRedirect".to_owned();
                return Err(("backendRefs".to_owned(), message));
            }
            return Ok(Done {
                effects,
                backends: Backends::default(),
                timeout,
                retry,
            });
        }
        let backends = self.backends(object, rule.backends, field, is_grpc)?;
        Ok(Done {
            effects,
            backends,
            timeout,
            retry,
        })
    }

    fn gateway_action(&self, done: &Done, matcher: &RouteMatch) -> Result<RouteAction, Wrong> {
        let effects = &done.effects;
        if let Some(declared) = &effects.redirect {
            let redirect = redirect(declared, matcher, self.port.number)?;
            return Ok(RouteAction::Redirect(Box::new(redirect)));
        }
        let rewrite = effects.path.as_ref();
        let rewrite = rewrite.map(|modifier| path_rewrite(modifier, matcher));
        let extras = ForwardExtras {
            path_rewrite: rewrite.transpose()?.flatten(),
            host_rewrite: effects.host.clone(),
            mirrors: effects.mirrors.clone(),
            ..ForwardExtras::default()
        };
        Ok(RouteAction::Forward(Forward {
            clusters: done.backends.clusters.clone(),
            timeout: done.timeout,
            retry: done.retry.clone().or_else(|| Some(default_retries())),
            extras: (extras != ForwardExtras::default()).then(|| Box::new(extras)),
            ..Forward::default()
        }))
    }

    /// Notes that a rule cannot be used; without a part it is known already.
    fn broken(&mut self, object: &Object, index: usize, part: Option<&str>, message: &str) {
        if let Some(part) = part {
            let field = format!("spec.rules[{index}].{part}");
            self.wrong(object, &field, message);
        }
        if let Some(status) = self.compiled.statuses.get_mut(&object.key) {
            status.broken(index, message);
        }
    }
}

/// What a rule does, apart from what depends on the match.
struct Done {
    effects: Effects,
    backends: Backends,
    timeout: Option<std::time::Duration>,
    retry: Option<RetryPolicy>,
}

fn is_inside(path: &str, field: &str) -> bool {
    path.strip_prefix(field)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What only requests to one backend get.
fn own_extras(
    headers: HeaderMutations,
    host_rewrite: Option<String>,
) -> Option<Box<ClusterExtras>> {
    let extras = ClusterExtras {
        metadata_match: Default::default(),
        headers,
        host_rewrite,
        ..ClusterExtras::default()
    };
    (extras != ClusterExtras::default()).then(|| Box::new(extras))
}

/// The share of `part` in `all`, never nothing and never everything.
fn share_of(part: u64, all: u64) -> Option<Fraction> {
    const MILLION: u64 = 1_000_000;
    let share = (part.saturating_mul(MILLION) / all.max(1)).clamp(1, MILLION - 1);
    Fraction::new(share as u32, MILLION as u32)
}
