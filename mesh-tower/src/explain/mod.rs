//! Why a request goes where it goes, as this process would send it now.
//!
//! Nothing is sent and nothing is counted. What is drawn for each request, shares and weights, is told
//! as such.

mod show;

use std::time::Duration;

use http::{HeaderMap, request::Parts};
use mesh_core::{
    config::{RetryPolicy, RouteAction},
    filter::{Level, describe},
    rng::SplitMix64,
    route::{
        Caller, ChosenCluster, Decision, DecisionAction, ForwardAction, Forwarding, HostTried,
        RequestView, RouteTried, explain as explain_routes,
    },
    snapshot::{ClusterHandle, Snapshot},
    stats::Connectivity,
};
use serde::Serialize;

use crate::{
    cluster::MakeEndpoint,
    listener::{ListenerRuntime, LiveSnapshot},
};

/// Why a request goes where it goes. Shown as text by `Display`, and as JSON by `serde`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CallExplanation {
    /// The listener that was dialled.
    pub listener: String,
    /// Number of the configuration that is in use.
    pub generation: u64,
    /// The request's method, authority and path.
    pub request: String,
    /// Virtual hosts of the route configuration.
    pub virtual_hosts: Vec<ExplainedHost>,
    /// Routes that were tried, up to the one that is taken.
    pub routes: Vec<ExplainedRoute>,
    /// What happens; `None` when no route matches.
    pub action: Option<ExplainedAction>,
}

/// A virtual host.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedHost {
    /// Its name.
    pub name: String,
    /// Its domain that matches the dialled authority.
    pub domain: Option<String>,
    /// Whether it is the one.
    pub is_taken: bool,
}

/// A route that was tried.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedRoute {
    /// Its name.
    pub name: String,
    /// Why it does not match.
    pub mismatch: Option<String>,
    /// The share of matching requests that it takes, in millionths, when it is not all.
    pub share_per_million: Option<u32>,
    /// Whether it is the one.
    pub is_taken: bool,
}

/// What happens with the request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExplainedAction {
    /// It is sent to a cluster.
    Forward(Box<ExplainedForward>),
    /// It is answered with another address.
    Redirect {
        /// HTTP status.
        status: u16,
        /// The address.
        location: String,
    },
    /// It is answered here.
    DirectResponse {
        /// HTTP status.
        status: u16,
        /// Length of the body.
        bytes: usize,
    },
    /// It fails.
    Fail {
        /// Why.
        reason: String,
    },
}

/// How a request is sent.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedForward {
    /// The clusters that it may be sent to.
    pub clusters: Vec<ExplainedCluster>,
    /// Limit over all attempts (`timeout`).
    pub timeout: Option<Duration>,
    /// Limit of the stream's life (`max_stream_duration`).
    pub stream_limit: Option<Duration>,
    /// Limit without data (`idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Option<ExplainedRetry>,
    /// What the endpoint is chosen by, with the hash that comes of it.
    pub hash: Option<ExplainedHash>,
    /// The path that is sent, when it is another.
    pub path: Option<String>,
    /// The authority that is sent, when it is another.
    pub authority: Option<String>,
    /// Headers that are sent and not in the request, or with other values.
    pub headers_set: Vec<(String, String)>,
    /// Headers of the request that are not sent.
    pub headers_removed: Vec<String>,
    /// Clusters that get a copy.
    pub mirrors: Vec<String>,
    /// What filters do: the name of each, and what.
    pub filters: Vec<(String, String)>,
    /// Attempts side by side.
    pub hedge: Option<String>,
}

/// When a request is tried again.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedRetry {
    /// Conditions.
    pub retry_on: String,
    /// Retries at most.
    pub num_retries: u32,
    /// Limit of each attempt.
    pub per_try_timeout: Option<Duration>,
}

/// What requests have in common that go to the same endpoint.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedHash {
    /// The policies.
    pub policies: Vec<String>,
    /// What they come to; `None` when the request has nothing of it.
    pub value: Option<u64>,
    /// Whether the response would set a cookie, and the hash be that of its random value.
    pub sets_cookie: bool,
}

/// A cluster that a request may be sent to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedCluster {
    /// Its name.
    pub name: String,
    /// Its weight among the others; 0 for one that this request is not sent to.
    pub weight: u32,
    /// Why it cannot be used.
    pub error: Option<String>,
    /// Its policy.
    pub lb_policy: String,
    /// Its endpoints.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedEndpoint {
    /// Its address.
    pub address: String,
    /// Region, zone and sub-zone.
    pub locality: String,
    /// Its weight.
    pub weight: u32,
    /// What the control plane says.
    pub health: String,
    /// Its connection.
    pub connectivity: String,
    /// Whether it gets no requests because too many of them failed.
    pub is_ejected: bool,
    /// Whether a request could be sent to it now.
    pub is_usable: bool,
    /// Requests on their way.
    pub in_flight: u32,
}

/// Explains a request that is sent to `authority`.
pub(crate) fn explain<M: MakeEndpoint>(
    listener: &ListenerRuntime<M>,
    live: &LiveSnapshot<M>,
    head: &Parts,
    authority: &str,
) -> CallExplanation {
    let snapshot = &*live.snapshot;
    let view = RequestView::new(&head.method, &head.uri, authority, &head.headers);
    let tried = explain_routes(&snapshot.config, &snapshot.authority, &view);
    let path = view.header(":path").unwrap_or_default();
    let action = tried.route.map(|number| {
        let caller = Caller {
            source_ip: crate::source_ip::of_process(),
            channel: Some(listener.channel()),
            cluster: None,
        };
        let mut rng = SplitMix64::new(0);
        let decision = snapshot
            .routes
            .decide_route(number as u32, &view, &caller, &mut rng);
        action(snapshot, decision, &view, number)
    });
    let host = |(index, host): (usize, HostTried)| ExplainedHost {
        name: host.name,
        domain: host.domain,
        is_taken: tried.host == Some(index),
    };
    let route = |(index, route): (usize, RouteTried)| ExplainedRoute {
        name: snapshot.routes.routes()[index].name.to_string(),
        mismatch: route.mismatch.map(|mismatch| mismatch.to_string()),
        share_per_million: route.share.map(|share| share.per_million()),
        is_taken: tried.route == Some(index),
    };
    CallExplanation {
        listener: listener.name().to_string(),
        generation: snapshot.generation,
        request: format!("{} {authority}{path}", head.method),
        virtual_hosts: tried.hosts.into_iter().enumerate().map(host).collect(),
        routes: tried.routes.into_iter().enumerate().map(route).collect(),
        action,
    }
}

fn action(
    snapshot: &Snapshot,
    mut decision: Decision<'_>,
    view: &RequestView<'_>,
    number: usize,
) -> ExplainedAction {
    let fail = |reason: String| ExplainedAction::Fail { reason };
    match std::mem::replace(&mut decision.action, DecisionAction::NonForwarding) {
        DecisionAction::Forward(forwarding) => {
            let forward = forward(snapshot, &decision, forwarding, view, number);
            ExplainedAction::Forward(Box::new(forward))
        }
        DecisionAction::Redirect { status, location } => {
            ExplainedAction::Redirect { status, location }
        }
        DecisionAction::DirectResponse { status, body } => {
            let bytes = body.len();
            ExplainedAction::DirectResponse { status, bytes }
        }
        DecisionAction::NonForwarding => {
            fail("its action is for servers (non_forwarding_action)".to_owned())
        }
        DecisionAction::Unsupported(reason) => fail(reason.to_owned()),
        DecisionAction::NoClusterHeader(name) => fail(format!(
            "header {name}, which names the cluster, is missing"
        )),
    }
}

fn forward(
    snapshot: &Snapshot,
    decision: &Decision<'_>,
    forwarding: Forwarding<'_>,
    view: &RequestView<'_>,
    number: usize,
) -> ExplainedForward {
    let mut headers = view.headers.clone();
    decision.apply_request_headers(view, &mut headers);
    let mirrors = forwarding.mirrors.iter();
    ExplainedForward {
        clusters: clusters(snapshot, decision, &forwarding),
        timeout: forwarding.timeout,
        stream_limit: forwarding.stream_limit,
        idle_timeout: forwarding.idle_timeout,
        retry: forwarding.retry.map(retry),
        hash: hash(snapshot, &forwarding, number),
        headers_set: set(view.headers, &headers),
        headers_removed: removed(view.headers, &headers),
        mirrors: mirrors.map(|mirror| mirror.cluster.to_string()).collect(),
        filters: filters(snapshot, number),
        hedge: forwarding.hedge.map(|hedge| {
            let delay = hedge.delay.as_ref();
            let when = delay.map_or_else(
                || "the timeout of an attempt".to_owned(),
                ToString::to_string,
            );
            format!("after {when}, at most {} at a time", hedge.attempts_max)
        }),
        authority: match forwarding.authority_of_endpoint {
            true => Some("the endpoint's hostname".to_owned()),
            false => forwarding.authority,
        },
        path: forwarding.path_and_query,
    }
}

/// What filters do on a route; for a part of its clusters that says more of them, too.
fn filters(snapshot: &Snapshot, number: usize) -> Vec<(String, String)> {
    let config = &snapshot.config;
    let host = mesh_core::route::virtual_host(config, &snapshot.authority);
    let route = host.and_then(|host| host.routes.get(number));
    let level = |overrides| Level {
        place: "",
        overrides,
    };
    let levels = [
        level(config.filters.as_deref()),
        level(host.and_then(|host| host.filters.as_deref())),
        level(route.and_then(|route| route.filters.as_deref())),
    ];
    let mut all = describe(&snapshot.listed_filters, &levels);
    let clusters = route.and_then(|route| match &route.action {
        RouteAction::Forward(forward) => Some(&forward.clusters),
        _ => None,
    });
    for cluster in clusters.into_iter().flatten() {
        let own = cluster.extras.as_ref();
        if let Some(own) = own.and_then(|extras| extras.filters.as_deref()) {
            let mut levels = levels.to_vec();
            levels.push(level(Some(own)));
            let said = describe(&snapshot.listed_filters, &levels);
            let said = said.into_iter().filter(|said| !all.contains(said));
            let name = &cluster.name;
            let said = said.map(|(filter, what)| (format!("{filter} (to {name})"), what));
            all.extend(said.collect::<Vec<_>>());
        }
    }
    all
}

fn clusters(
    snapshot: &Snapshot,
    decision: &Decision<'_>,
    forwarding: &Forwarding<'_>,
) -> Vec<ExplainedCluster> {
    let chosen = match &forwarding.cluster {
        ChosenCluster::Index(index) => *index,
        ChosenCluster::Named(name) => {
            let mut held = snapshot.clusters.iter();
            let found = held.find(|held| held.name.as_str() == name);
            return vec![found.map_or_else(|| unknown(name), |held| cluster(held, 1))];
        }
    };
    let all = decision.route.forward().map(ForwardAction::clusters);
    let weighted = all.into_iter().flatten().map(|(index, weight)| {
        let is_possible = forwarding.is_drawn || index == chosen;
        let handle = &snapshot.clusters[index as usize];
        cluster(handle, if is_possible { weight } else { 0 })
    });
    weighted.collect()
}

/// A cluster that a header names, and that nobody has asked for yet.
fn unknown(name: &str) -> ExplainedCluster {
    ExplainedCluster {
        name: name.to_owned(),
        weight: 1,
        error: Some("no request has named it yet".to_owned()),
        lb_policy: String::new(),
        endpoints: Vec::new(),
    }
}

fn cluster(handle: &ClusterHandle, weight: u32) -> ExplainedCluster {
    let version = handle.current.borrow().clone();
    let current = version.get();
    let config = current.config.as_ref();
    let error = config.err().or(current.resolution_note.as_ref());
    let endpoints = current.endpoints.iter().map(|endpoint| {
        let stats = &endpoint.stats;
        let locality = &endpoint.locality;
        let place = [&locality.region, &locality.zone, &locality.sub_zone];
        let place: Vec<_> = place.into_iter().filter(|part| !part.is_empty()).collect();
        ExplainedEndpoint {
            address: endpoint.address.to_string(),
            locality: place.into_iter().cloned().collect::<Vec<_>>().join("/"),
            weight: endpoint.weight,
            health: endpoint.health.to_string(),
            connectivity: stats.connectivity().to_string(),
            is_ejected: stats.is_ejected(),
            is_usable: stats.availability() == Connectivity::Ready,
            in_flight: stats.in_flight(),
        }
    });
    ExplainedCluster {
        name: handle.name.to_string(),
        weight,
        error: error.map(ToString::to_string),
        lb_policy: config.map_or_else(|_| String::new(), |c| c.lb_policy.to_string()),
        endpoints: endpoints.collect(),
    }
}

fn retry(policy: &RetryPolicy) -> ExplainedRetry {
    ExplainedRetry {
        retry_on: policy.retry_on.to_string(),
        num_retries: policy.num_retries,
        per_try_timeout: policy.per_try_timeout,
    }
}

fn hash(snapshot: &Snapshot, forwarding: &Forwarding<'_>, number: usize) -> Option<ExplainedHash> {
    let host = mesh_core::route::virtual_host(&snapshot.config, &snapshot.authority)?;
    let policies = host.routes.get(number)?.hash_policy();
    (!policies.is_empty()).then(|| ExplainedHash {
        policies: policies.iter().map(ToString::to_string).collect(),
        value: forwarding.hash,
        sets_cookie: forwarding.cookie.is_some(),
    })
}

fn set(before: &HeaderMap, after: &HeaderMap) -> Vec<(String, String)> {
    let changed = after.keys().filter(|name| {
        let values = |map: &HeaderMap| map.get_all(*name).iter().cloned().collect::<Vec<_>>();
        values(before) != values(after)
    });
    let shown = changed.flat_map(|name| {
        let values = after.get_all(name).iter();
        values.map(|value| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
    });
    shown.collect()
}

fn removed(before: &HeaderMap, after: &HeaderMap) -> Vec<String> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    gone.map(ToString::to_string).collect()
}
