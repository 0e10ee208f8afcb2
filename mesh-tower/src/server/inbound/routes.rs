//! What a chain's routes say about a request: whether it is served here, what it passes before, and
//! what it is answered otherwise.
//!
//! Most servers have one route for everything, which changes nothing: that costs nothing. Actions are
//! `non_forwarding_action`, redirects and direct responses; a server has nobody to forward to.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, uri::Scheme};
use mesh_core::{
    config::{PathPattern, RouteAction, RouteConfig, RouteSource},
    filter::Filters,
    route::{
        Caller, Decision, DecisionAction, Features, RequestView, ResponseChanges, RouteTable,
        StreamLimits, virtual_host,
    },
};

use super::{Chain, Refusal};
use crate::{head::Head, rng, telemetry::LocalReplyReason};

/// The part of a chain's routes that a server needs.
pub(super) enum Routes {
    /// Everything is served, and nothing is changed.
    Open,
    Tables {
        config: Arc<RouteConfig>,
        /// One for each virtual host; `None` for one that cannot be used.
        hosts: Box<[Option<Arc<RouteTable>>]>,
    },
    /// The routes are not known.
    Closed,
}

/// Whether a request is served here, and what it passes before.
pub(in crate::server) struct Routed<'c> {
    pub(in crate::server) filters: Option<&'c Filters>,
    /// What its route says; `None` where that is nothing but to serve it.
    pub(in crate::server) route: Option<Found<'c>>,
    /// Found before the filters, and told after them.
    pub(in crate::server) refusal: Option<Refusal>,
}

/// The route of a request, and what was decided.
pub(in crate::server) struct Found<'c> {
    table: &'c Arc<RouteTable>,
    decision: Decision<'c>,
    is_tls: bool,
}

impl Routes {
    pub(super) fn compile(routes: &RouteSource) -> Self {
        let config = match routes {
            RouteSource::Rds(_) => return Self::Closed,
            RouteSource::Inline(config) if serves_everything(config) => return Self::Open,
            RouteSource::Inline(config) => Arc::clone(config),
        };
        let limits = StreamLimits::default();
        let hosts = config.virtual_hosts.iter().map(|host| {
            // A server forwards to no cluster: the name of one changes nothing.
            let table =
                RouteTable::compile_host(Features::EXECUTED, &config, host, &limits, &|_| Some(0));
            match table {
                Ok(table) => Some(Arc::new(table)),
                Err(error) => {
                    tracing::error!(target: "mesh::server", %error, "refusing");
                    None
                }
            }
        });
        let hosts = hosts.collect();
        Self::Tables { config, hosts }
    }
}

impl Chain {
    /// Finds the request's route and its filters. `is_tls` is what its connection is.
    pub(in crate::server) fn route(&self, request: &RequestView<'_>, is_tls: bool) -> Routed<'_> {
        let unrouted = |refusal| Routed {
            filters: self.filters.as_ref(),
            route: None,
            refusal: Some(refusal),
        };
        let (config, hosts) = match &self.routes {
            Routes::Open => {
                return Routed {
                    filters: self.filters_of(0, 0),
                    route: None,
                    refusal: None,
                };
            }
            Routes::Closed => return unrouted(Refusal::UNUSABLE_ROUTE),
            Routes::Tables { config, hosts } => (config, hosts),
        };
        let Some(host) = virtual_host(config, request.authority) else {
            return unrouted(Refusal::NO_ROUTE);
        };
        let mut all = config.virtual_hosts.iter();
        let place = all.position(|other| std::ptr::eq(other, host));
        let place = place.unwrap_or_default();
        let Some(Some(table)) = hosts.get(place) else {
            return unrouted(Refusal::UNUSABLE_ROUTE);
        };
        let mut rng = rng::fork();
        let Some((number, _)) = table.lookup(request, &mut rng) else {
            return unrouted(Refusal::NO_ROUTE);
        };
        // Where a redirect leads depends on how the caller came.
        let uri = absolute(request, is_tls);
        let view = RequestView::new(request.method, &uri, request.authority, request.headers);
        let decision = table.decide_route(number, &view, &Caller::default(), &mut rng);
        let refusal = refusal(&decision, &view);
        Routed {
            filters: self.filters_of(place, number),
            refusal,
            route: Some(Found {
                table,
                decision,
                is_tls,
            }),
        }
    }

    fn filters_of(&self, host: usize, route: u32) -> Option<&Filters> {
        self.tables.get(host)?.route(route)?.of(None)
    }
}

/// What is answered to a request that is not served.
fn refusal(decision: &Decision<'_>, view: &RequestView<'_>) -> Option<Refusal> {
    let answer = |reason, status, body, mut headers| {
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        decision.apply_response_headers(view, code, &mut headers);
        Refusal::routed(reason, status, body, headers)
    };
    match &decision.action {
        DecisionAction::NonForwarding => None,
        DecisionAction::Redirect { status, location } => {
            let Ok(location) = HeaderValue::from_str(location) else {
                return Some(Refusal::BAD_PATH);
            };
            let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
            Some(answer(
                LocalReplyReason::Redirect,
                *status,
                bytes::Bytes::new(),
                headers,
            ))
        }
        DecisionAction::DirectResponse { status, body } => {
            let reason = LocalReplyReason::DirectResponse;
            let body = bytes::Bytes::clone(body);
            Some(answer(reason, *status, body, HeaderMap::new()))
        }
        DecisionAction::Forward(_)
        | DecisionAction::Unsupported(_)
        | DecisionAction::NoClusterHeader(_) => Some(Refusal::UNUSABLE_ROUTE),
    }
}

/// The request's URI with scheme and authority.
fn absolute(request: &RequestView<'_>, is_tls: bool) -> Uri {
    let mut parts = request.uri.clone().into_parts();
    if parts.authority.is_none() {
        parts.authority = request.authority.parse().ok();
    }
    if parts.authority.is_some() {
        parts.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    }
    Uri::from_parts(parts).unwrap_or_else(|_| request.uri.clone())
}

/// What a route does to the response of a request that it serves.
pub(in crate::server) struct ResponseRules {
    table: Arc<RouteTable>,
    changes: ResponseChanges,
    /// The request, where values are made from it.
    request: Option<Head>,
}

impl Found<'_> {
    /// Makes the changes that the request's headers get.
    pub(in crate::server) fn change_request(
        &self,
        request: &RequestView<'_>,
        headers: &mut HeaderMap,
    ) {
        self.decision.apply_request_headers(request, headers);
    }

    /// What the response gets, for a request that goes to the application with these headers.
    pub(in crate::server) fn response_rules(
        &self,
        request: &RequestView<'_>,
        headers: &HeaderMap,
    ) -> Option<Box<ResponseRules>> {
        let changes = self.decision.response_changes()?;
        let head = || {
            let mut head = Request::new(()).into_parts().0;
            head.method = request.method.clone();
            head.uri = absolute(request, self.is_tls);
            head.headers = headers.clone();
            Head::of(&head)
        };
        Some(Box::new(ResponseRules {
            request: changes.reads_request.then(head),
            changes,
            table: Arc::clone(self.table),
        }))
    }
}

impl ResponseRules {
    /// Makes the changes that the response's headers get.
    pub(in crate::server) fn apply(&self, status: StatusCode, headers: &mut HeaderMap) {
        let request = match &self.request {
            Some(head) => head.request(crate::Body::empty()),
            None => Request::default(),
        };
        let uri = request.uri();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let view = RequestView::new(request.method(), uri, authority, request.headers());
        self.table
            .apply_response_changes(&self.changes, &view, status, headers);
    }
}

/// One virtual host for everybody whose first route takes everything and changes nothing, which is
/// the usual case.
fn serves_everything(config: &RouteConfig) -> bool {
    let [host] = &config.virtual_hosts[..] else {
        return false;
    };
    config.headers.is_none()
        && host.headers.is_none()
        && host.domains.iter().any(|domain| domain == "*")
        && host.routes.first().is_some_and(|route| {
            route.action == RouteAction::NonForwarding
                && route.headers.is_none()
                && route.matcher.headers.is_empty()
                && route.matcher.query_parameters.is_empty()
                && route.matcher.fraction.is_none()
                && match &route.matcher.path.pattern {
                    PathPattern::Prefix(prefix) => prefix.is_empty() || prefix == "/",
                    _ => false,
                }
        })
}
