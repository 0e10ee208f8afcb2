//! Calls of clients that do what their callers ask for in headers, as Envoy's router does.
//!
//! Stages 9 to 11, in the place of what every other client does there. Times are read before the
//! route changes the request's headers, conditions of retries after that, and all of them are removed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use mesh_core::{
    config::{RetryPolicy, RouterOptions},
    retry::{CallerTimes, take_retry_policy, unreadable},
    rng::SplitMix64,
};
use tokio::time::Instant;

use super::{CallOptions, Chosen, ResponseFuture, Sending, asked_deadline, decided, earlier, read};
use crate::{
    cluster::MakeEndpoint,
    error::{AsError, ErrorKind},
    extras::ExpectedTimeout,
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot},
    local_reply::LocalReply,
    outgoing::Outgoing,
    telemetry::{LocalReplyReason as Reason, Protocol},
};

/// Sends a request that has its permit, at `now`, as its headers say.
#[cold]
pub(super) fn proceed<M: MakeEndpoint, S>(
    listener: &Arc<ListenerRuntime<M>>,
    live: &LiveSnapshot<M>,
    outgoing: &mut Outgoing<'_>,
    now: Instant,
    options: CallOptions,
    (mut in_flight, chosen): (InFlight<M>, Chosen<'_, M>),
    rng: &mut SplitMix64,
) -> ResponseFuture<M, S> {
    let router = live.snapshot.router;
    let (route, forward) = (chosen.route, chosen.forward);
    if let Some((name, value)) = unreadable(&outgoing.head().headers, router.strict_headers) {
        let body = format!("invalid header '{name}' with value '{value}'");
        let reply = LocalReply::new(Reason::BadHeader, StatusCode::BAD_REQUEST, body.into());
        let is_head = outgoing.head().method == Method::HEAD;
        let reply = reply.spoken(in_flight.protocol, is_head);
        let code = reply.code(in_flight.protocol);
        in_flight.answer(code);
        return ResponseFuture::answered(reply.into_response());
    }
    let times = CallerTimes::take(&mut outgoing.head_mut().headers, &router);
    let timeout = times.timeout.map_or(forward.timeout, limit);
    let of_stream = match in_flight.protocol {
        Protocol::Grpc => forward.stream_limit,
        Protocol::Http => forward.http_stream_limit,
    };
    let of_stream = times.stream_duration.map_or(of_stream, limit);
    let of_route = earlier(timeout, of_stream).and_then(|limit| now.checked_add(limit));
    let (_, grpc_timeout) = read::<AsError>(&outgoing.head().headers);
    let asked = asked_deadline(grpc_timeout, in_flight.started);
    in_flight.deadline = earlier(asked, of_route);
    if let Some(decision) = chosen.decision {
        match decided::prepare(decision, chosen.session, listener, live, outgoing) {
            Ok(extras) => in_flight.extras = Some(extras),
            Err(error) => return ResponseFuture::failed(in_flight.fail(error)),
        }
    }
    let declared = forward.declared_retry();
    let policy = take_retry_policy(&mut outgoing.head_mut().headers, declared);
    let policy = with_per_try_timeout(policy, &times, timeout);
    let per_try = policy.as_ref().and_then(|policy| policy.per_try_timeout);
    apply(&mut in_flight, &times, (per_try, timeout), router, now);
    let sending = Sending {
        route,
        forward,
        policy: policy.as_ref(),
        options,
        now,
    };
    if !times.answers_no_content {
        return sending.send(listener, live, outgoing, in_flight, rng);
    }
    let (protocol, is_head) = (in_flight.protocol, outgoing.head().method == Method::HEAD);
    let sent = sending.send::<M, AsError>(listener, live, outgoing, in_flight, rng);
    ResponseFuture::later(async move {
        match sent.await {
            Err(error) if is_timeout(error.kind()) => {
                let reply =
                    LocalReply::new(error.kind().into(), StatusCode::NO_CONTENT, Bytes::new());
                Ok(reply.spoken(protocol, is_head).into_response())
            }
            other => other,
        }
    })
}

/// A limit that somebody gave; zero is none.
fn limit(given: Duration) -> Option<Duration> {
    Some(given).filter(|limit| !limit.is_zero())
}

/// The policy with the caller's limit of attempts in the place of its own. A limit that `timeout`, over
/// all attempts, comes before is none.
fn with_per_try_timeout(
    policy: Option<RetryPolicy>,
    times: &CallerTimes,
    timeout: Option<Duration>,
) -> Option<RetryPolicy> {
    let declared = policy.as_ref().and_then(|policy| policy.per_try_timeout);
    let per_try = times.per_try_timeout.map_or(declared, limit);
    let per_try = per_try.filter(|per_try| timeout.is_none_or(|timeout| *per_try < timeout));
    match policy {
        None if per_try.is_none() => None,
        policy => Some(RetryPolicy {
            per_try_timeout: per_try,
            ..policy.unwrap_or_default()
        }),
    }
}

/// What the call keeps of it.
fn apply<M: MakeEndpoint>(
    in_flight: &mut InFlight<M>,
    times: &CallerTimes,
    (per_try, timeout): (Option<Duration>, Option<Duration>),
    router: RouterOptions,
    now: Instant,
) {
    let extras = in_flight.extras.get_or_insert_default();
    match (times.hedge_on_per_try_timeout, &mut extras.hedge) {
        (Some(true), hedge) => hedge.get_or_insert_default().on_per_try_timeout = true,
        (Some(false), Some(hedge)) => hedge.on_per_try_timeout = false,
        (Some(false), None) | (None, _) => {}
    }
    let goes_on = extras.hedge.is_some_and(|hedge| hedge.on_per_try_timeout);
    extras.expected = (!router.suppress_envoy_headers).then_some(ExpectedTimeout {
        per_try: per_try.filter(|_| !goes_on),
        all: timeout,
        began: now,
    });
}

/// Whether a limit of the call or of an attempt has passed.
fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DeadlineExceeded | ErrorKind::PerTryTimeout)
}
