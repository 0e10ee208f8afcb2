//! Calls whose route asks for more than a cluster.
//!
//! Stage 8, for the few. The route is decided once ([`RouteTable::decide_route`]); the request's head
//! is changed before its first attempt, so that whatever is sent again is what was sent; the rest is
//! kept in [`CallExtras`].
//!
//! [`RouteTable::decide_route`]: mesh_core::route::RouteTable::decide_route

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use mesh_core::{
    filter::Session,
    rng::SplitMix64,
    route::{
        Caller, ChosenCluster, CompiledAction, Decision, DecisionAction, Forwarding, RequestView,
    },
};

use super::{Chosen, Stop, redirects::Redirects};
use crate::{
    cluster::{Affinity, MakeEndpoint},
    error::{Error, ErrorKind},
    extras::{CallExtras, Idle, ResponseRules},
    head::Head,
    listener::{ListenerRuntime, LiveSnapshot},
    local_reply::LocalReply,
    outgoing::Outgoing,
    telemetry::{LocalReplyReason as Reason, Protocol},
};

/// Decides about a request that route `number` matches.
#[cold]
pub(super) fn decide<'l, M: MakeEndpoint>(
    listener: &ListenerRuntime<M>,
    live: &'l LiveSnapshot<M>,
    number: u32,
    view: &RequestView<'_>,
    protocol: Protocol,
    rng: &mut SplitMix64,
) -> Result<Chosen<'l, M>, Stop> {
    let sessions = live.sessions(number);
    let caller = Caller {
        source_ip: crate::source_ip::of_process(),
        channel: Some(listener.channel()),
        cluster: sessions.and_then(|sessions| sessions.cluster(view, |name| live.find(name))),
    };
    let routes = &live.snapshot.routes;
    let decision = Box::new(routes.decide_route(number, view, &caller, rng));
    let fail = |kind, reason: &str| {
        let (listener, route) = (listener.name(), &decision.route.name);
        let reason = format!("listener {listener}: route {route}: {reason}");
        Stop::Failed(Error::new(kind, reason))
    };
    let cluster = match &decision.action {
        DecisionAction::Forward(forwarding) => match &forwarding.cluster {
            ChosenCluster::Index(index) => *index,
            ChosenCluster::Named(name) => live
                .find(name)
                .ok_or_else(|| Stop::Unknown(name.as_str().into()))?,
        },
        DecisionAction::Redirect { status, location } => {
            let location = HeaderValue::from_str(location).map_err(|_| {
                fail(
                    ErrorKind::InvalidRequest,
                    "the redirect has no usable address",
                )
            })?;
            let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
            let mut reply = LocalReply::new(Reason::Redirect, status_of(*status), Bytes::new());
            reply.headers = headers;
            let reply = answer(&decision, view, reply, protocol);
            return Err(Stop::Answered(reply));
        }
        DecisionAction::DirectResponse { status, body } => {
            let body = Bytes::clone(body);
            let reply = LocalReply::new(Reason::DirectResponse, status_of(*status), body);
            let reply = answer(&decision, view, reply, protocol);
            return Err(Stop::Answered(reply));
        }
        DecisionAction::NonForwarding => {
            let reason = "its action is for servers (non_forwarding_action)";
            return Err(fail(ErrorKind::Unsupported, reason));
        }
        DecisionAction::Unsupported(reason) => return Err(fail(ErrorKind::Unsupported, reason)),
        DecisionAction::NoClusterHeader(name) => {
            let reason = format!("header {name}, which names the cluster, is missing");
            return Err(fail(ErrorKind::NoRoute, &reason));
        }
    };
    let CompiledAction::Forward(forward) = &decision.route.action else {
        unreachable!("it was decided to forward")
    };
    let session = sessions.and_then(|sessions| Session::of(sessions.of(cluster)?, view));
    Ok(Chosen {
        route: decision.route,
        forward,
        cluster: live.clusters.get(cluster),
        filters: live.filters(number, cluster),
        decision: Some(decision),
        session: session.map(Box::new),
    })
}

fn status_of(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn answer(
    decision: &Decision<'_>,
    view: &RequestView<'_>,
    mut reply: LocalReply,
    protocol: Protocol,
) -> Box<LocalReply> {
    decision.apply_response_headers(view, reply.status, &mut reply.headers);
    Box::new(reply.spoken(protocol, view.method == Method::HEAD))
}

/// Changes the request's head as was decided, and keeps what comes later.
///
/// # Errors
/// When what was decided cannot be sent.
#[cold]
pub(super) fn prepare<M: MakeEndpoint>(
    mut decision: Box<Decision<'_>>,
    session: Option<Box<Session>>,
    listener: &ListenerRuntime<M>,
    live: &LiveSnapshot<M>,
    outgoing: &mut Outgoing<'_>,
) -> Result<Box<CallExtras>, Error> {
    let action = std::mem::replace(&mut decision.action, DecisionAction::NonForwarding);
    let DecisionAction::Forward(forwarding) = action else {
        unreachable!("only what is forwarded is prepared")
    };
    if session.as_ref().is_some_and(|session| session.is_lost()) {
        let (listener, route) = (listener.name(), &decision.route.name);
        let reason = format!(
            "listener {listener}: route {route}: what the session names is no endpoint, and no \
             other will do (strict)"
        );
        return Err(Error::new(ErrorKind::NoEndpoint, reason));
    }
    outgoing.make_absolute(Scheme::HTTP, || listener.name().parse().ok());
    let head = outgoing.head_mut();
    let original = head.uri.authority().cloned();
    let authority = original.as_ref().map_or("", Authority::as_str);
    let mut headers = std::mem::take(&mut head.headers);
    let view = RequestView::new(&head.method, &head.uri, authority, &head.headers);
    decision.apply_request_headers(&view, &mut headers);
    head.headers = headers;
    if let Some(uri) = rewritten(&head.uri, &forwarding).map_err(|what| {
        let (listener, route) = (listener.name(), &decision.route.name);
        let reason = format!("listener {listener}: route {route}: {what}");
        Error::new(ErrorKind::InvalidRequest, reason)
    })? {
        head.uri = uri;
        // The URI says it.
        head.headers.remove(header::HOST);
    }
    let response = decision.response_changes().map(|changes| ResponseRules {
        request: changes.reads_request.then(|| Head::of(head)),
        changes,
        snapshot: live.snapshot.clone(),
    });
    let redirects = decision.internal_redirect();
    let redirects = redirects.map(|policy| Redirects::new(policy, decision.route, head));
    let cookie = forwarding.cookie;
    Ok(Box::new(CallExtras {
        route: None,
        affinity: Affinity {
            hash: forwarding.hash,
            metadata: decision.metadata_match().cloned(),
            override_host: session
                .as_ref()
                .and_then(|session| Some((session.endpoint()?, session.is_strict()))),
        },
        session,
        dialled: original.filter(|_| forwarding.authority_of_endpoint),
        mirrors: forwarding.mirrors.into_iter().cloned().collect(),
        hedge: forwarding.hedge.copied(),
        idle: idle(forwarding.idle_timeout, outgoing),
        response,
        attempt_counts: live.snapshot.routes.attempt_counts(),
        permits: Vec::new(),
        cookie: cookie.and_then(|cookie| cookie.header.try_into().ok()),
        expected: None,
        redirects,
    }))
}

/// Watches the request's body where there is a limit without data.
fn idle(limit: Option<Duration>, outgoing: &mut Outgoing<'_>) -> Option<Idle> {
    let limit = limit.filter(|limit| !limit.is_zero())?;
    let mut idle = Idle::watch(outgoing);
    idle.stream = Some(limit);
    Some(idle)
}

/// The URI after the rewrites; `None` when it stays.
fn rewritten(uri: &Uri, forwarding: &Forwarding<'_>) -> Result<Option<Uri>, String> {
    let (path, authority) = (&forwarding.path_and_query, &forwarding.authority);
    if path.is_none() && authority.is_none() {
        return Ok(None);
    }
    let mut parts = uri.clone().into_parts();
    if let Some(path) = path {
        // An empty path cannot be written (RFC 9110, 4.2.3).
        let path = match path.starts_with('/') {
            true => path.clone(),
            false => format!("/{path}"),
        };
        let parsed = PathAndQuery::try_from(path.as_str());
        parts.path_and_query =
            Some(parsed.map_err(|error| format!("its rewritten path {path:?}: {error}"))?);
    }
    if let Some(authority) = authority {
        let parsed = Authority::try_from(authority.as_str());
        parts.authority =
            Some(parsed.map_err(|error| format!("its rewritten host {authority:?}: {error}"))?);
        parts.scheme = Some(Scheme::HTTP);
    }
    Uri::from_parts(parts)
        .map(Some)
        .map_err(|error| error.to_string())
}
