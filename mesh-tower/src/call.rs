//! One call, from its request to the head of its response.
//!
//! Stages 8 to 13. The order, outermost first, and why:
//!
//! 1. configuration — everything else reads it; waited for once in a listener's life.
//! 2. route — outside of the limits, because the route carries the timeouts.
//! 3. circuit permit — once a call, outside of retries: a retry is not a new request (gRFC A32).
//! 4. deadline — outside of attempts: it covers all of them (Envoy `RouteAction.timeout`).
//! 5. attempts — each picks again from the newest endpoints.
//! 6. per-try timeout — inside of an attempt, and outside of the pick: connecting counts.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use mesh_core::{
    config::RetryPolicy,
    outcome::Outcome,
    retry::{backoff, is_retriable},
    rng::SplitMix64,
    route::{CompiledAction, CompiledRoute, ForwardAction, RequestView},
};
use tokio::time::Instant;

use crate::{
    Body, ResponseBody,
    cluster::{ClusterRuntime, EndpointService, MakeEndpoint, pick_later},
    context::{self, GRPC_TIMEOUT},
    error::{DispatchError, Error, ErrorKind},
    head::Head,
    headers::find,
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot},
    rng,
    telemetry::{CallHead, Protocol, grpc_status},
    within::within,
};

/// How long a request without a deadline waits for an endpoint that is connecting.
pub const CONNECTING_WAIT_MAX: Duration = Duration::from_secs(10);

/// Times that a request which never left is sent again, outside of the retry policy: as many as
/// there are connections that can close under it in a rolling restart, but bounded (gRFC A6 calls
/// these transparent retries).
pub const TRANSPARENT_RETRIES_MAX: u32 = 5;

/// How one service makes its calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallOptions {
    /// Puts a [`SelectedEndpoint`](crate::SelectedEndpoint) into the response's extensions.
    pub(crate) reports_endpoint: bool,
}

type CallResult<M> = Result<Response<ResponseBody<M>>, Error>;

/// A call that knows its route and holds its permit: all that it needs from the configuration.
pub(crate) struct Call<M: MakeEndpoint> {
    in_flight: InFlight<M>,
    retry: Option<RetryPolicy>,
    rng: SplitMix64,
}

/// Stages 8 to 10: decides where `request` goes.
///
/// # Errors
/// When there is no route, the cluster is not usable, or the cluster has enough to do.
pub(crate) fn begin<M: MakeEndpoint>(
    listener: &ListenerRuntime<M>,
    live: &LiveSnapshot<M>,
    request: &Request<Body>,
    options: CallOptions,
) -> Result<Call<M>, Error> {
    let started = Instant::now();
    let protocol = Protocol::of(request.headers());
    let head = CallHead::of(listener.name(), request, protocol);
    let mut span = listener.telemetry().start_call_span(head);
    let mut rng = rng::fork();
    let permitted = choose(listener.name(), live, request, &mut rng).and_then(|chosen| {
        let (_, _, runtime) = chosen;
        runtime.activate();
        let state = runtime.load();
        state.acquire()?;
        Ok((chosen, state))
    });
    let ((route, forward, _), state) = match permitted {
        Ok(permitted) => permitted,
        Err(error) => {
            span.end(error.kind().into());
            return Err(error);
        }
    };
    let limit = earlier(forward.timeout, forward.stream_limit);
    let of_route = limit.and_then(|limit| started.checked_add(limit));
    let asked = asked_deadline(request.headers(), protocol, started);
    let deadline = earlier(asked, of_route);
    let mut in_flight = InFlight::begin(state, started, deadline, protocol, span);
    if options.reports_endpoint {
        in_flight.route = Some(Arc::clone(&route.name));
    }
    Ok(Call {
        in_flight,
        retry: forward.retry.clone(),
        rng,
    })
}

/// [`begin`] once there is a configuration, and [`finish`].
pub(crate) async fn call_when_ready<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: &mut Request<Body>,
    options: CallOptions,
) -> CallResult<M> {
    let started = Instant::now();
    let protocol = Protocol::of(request.headers());
    let asked = asked_deadline(request.headers(), protocol, started);
    let failed = match within(asked, listener.ready()).await {
        Some(Ok(live)) => {
            let Some(live) = live.ready() else {
                unreachable!("ready() returns only usable ones")
            };
            let mut call = begin(&listener, live, request, options)?;
            call.in_flight.started = started;
            call.in_flight.deadline = earlier(asked, call.in_flight.deadline);
            return finish(&mut Some(call), request).await;
        }
        Some(Err(error)) => error,
        None => Error::new(
            ErrorKind::DeadlineExceeded,
            "the deadline passed before there was a configuration",
        ),
    };
    let head = CallHead::of(listener.name(), request, protocol);
    let mut span = listener.telemetry().start_call_span(head);
    span.end(failed.kind().into());
    Err(failed)
}

/// Stages 11 and 12: sends the request, and gives the call, which is there until then, to the body of
/// its response.
pub(crate) async fn finish<M: MakeEndpoint>(
    held: &mut Option<Call<M>>,
    request: &mut Request<Body>,
) -> CallResult<M> {
    let Some(call) = held else {
        unreachable!("a call is finished once")
    };
    let attempts = Attempts {
        in_flight: &mut call.in_flight,
        rng: &mut call.rng,
        previous: Vec::new(),
    };
    let result = attempts.run(request, call.retry.as_ref()).await;
    let Some(Call { mut in_flight, .. }) = held.take() else {
        unreachable!("it was there before")
    };
    match result {
        Ok(mut response) => {
            in_flight.respond(classify(&response, in_flight.protocol));
            if let Some(selected) = in_flight.selected() {
                response.extensions_mut().insert(selected);
            }
            Ok(response.map(|body| ResponseBody::new(body, in_flight)))
        }
        Err(error) => Err(in_flight.fail(error)),
    }
}

/// A route, its action, and the cluster that it is sent to.
type Chosen<'l, M> = (
    &'l CompiledRoute,
    &'l ForwardAction,
    &'l Arc<ClusterRuntime<M>>,
);

fn choose<'l, M: MakeEndpoint>(
    name: &str,
    live: &'l LiveSnapshot<M>,
    request: &Request<Body>,
    rng: &mut SplitMix64,
) -> Result<Chosen<'l, M>, Error> {
    let routes = &live.snapshot.routes;
    let view = RequestView {
        method: request.method(),
        path: request.uri().path(),
        authority: authority(request).unwrap_or(name),
        headers: request.headers(),
    };
    let Some((_, route)) = routes.lookup(&view, rng) else {
        let host = routes.virtual_host();
        let RequestView { method, path, .. } = view;
        return Err(Error::new(
            ErrorKind::NoRoute,
            format!("listener {name}: no route of virtual host {host} matches {method} {path}"),
        ));
    };
    let forward = forward_action(name, route)?;
    Ok((
        route,
        forward,
        &live.clusters[forward.cluster(rng) as usize],
    ))
}

type Answer<M> = <<M as MakeEndpoint>::Endpoint as EndpointService>::ResponseBody;

/// The attempts of one call.
struct Attempts<'c, M: MakeEndpoint> {
    in_flight: &'c mut InFlight<M>,
    rng: &'c mut SplitMix64,
    /// Endpoints that were tried; empty, and nothing is allocated, before the first retry.
    previous: Vec<SocketAddr>,
}

impl<M: MakeEndpoint> Attempts<'_, M> {
    async fn run(
        mut self,
        request: &mut Request<Body>,
        policy: Option<&RetryPolicy>,
    ) -> Result<Response<Answer<M>>, Error> {
        self.cap_grpc_timeout(request.headers_mut(), false);
        // Only a call that may be repeated keeps its head and records its body.
        let Some(policy) = policy else {
            let result = self.attempt(request, None).await?;
            return self.answer(result);
        };
        let (head, replay) = (Head::of(request), request.body_mut().share());
        let mut retries = 0;
        loop {
            let result = self.attempt(request, policy.per_try_timeout).await?;
            let outcome = self.classify(&result);
            if retries >= policy.num_retries
                || !is_retriable(policy, outcome)
                || !replay.can_repeat()
            {
                return self.answer(result);
            }
            let Some(pause) = self.pause(policy, retries + 1) else {
                return self.answer(result);
            };
            if !self.permit_retry() {
                return self.answer(result);
            }
            drop(result);
            self.in_flight.end_attempt(outcome.into());
            retries += 1;
            self.in_flight.state.calls().retry();
            // Rare: kept out of every other call's future.
            Box::pin(tokio::time::sleep(pause)).await;
            let Some(body) = replay.attempt() else {
                unreachable!("a body that cannot be repeated ends the loop")
            };
            *request = head.request(body);
            self.cap_grpc_timeout(request.headers_mut(), true);
            if self.in_flight.protocol == Protocol::Grpc {
                let headers = request.headers_mut();
                headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(retries));
            }
            self.renew();
        }
    }

    /// Sends the request to one endpoint, and to another one if it never left.
    async fn attempt(
        &mut self,
        request: &mut Request<Body>,
        limit: Option<Duration>,
    ) -> Result<AttemptResult<M>, Error> {
        let limit = limit.map(|limit| Instant::now() + limit);
        let until = earlier(limit, self.in_flight.deadline);
        let mut transparent = 0;
        loop {
            let endpoint = self.pick(until).await?;
            self.in_flight
                .begin_attempt(endpoint, request.headers_mut());
            let Some(service) = self.in_flight.service() else {
                unreachable!("an attempt has begun")
            };
            let result = match within(until, service.dispatch(request)).await {
                Some(Ok(response)) => AttemptResult::Response(response),
                Some(Err(error)) => AttemptResult::Failed(error),
                None => AttemptResult::TimedOut,
            };
            if !self.classify(&result).is_success() {
                self.in_flight.fail_attempt();
                self.avoid(self.in_flight.endpoint());
            }
            if let AttemptResult::Failed(error) = &result
                && transparent < TRANSPARENT_RETRIES_MAX
                && error.is_unsent()
            {
                self.in_flight.end_attempt(error.outcome().into());
                transparent += 1;
                self.renew();
                continue;
            }
            return Ok(result);
        }
    }

    /// Takes the newest endpoints for the next attempt.
    fn renew(&mut self) {
        if let Some(newest) = self.in_flight.state.newest() {
            self.in_flight.state = newest;
        }
    }

    /// Takes a permit for a retry; that of an earlier one is given back before.
    fn permit_retry(&mut self) -> bool {
        let in_flight = &mut *self.in_flight;
        if std::mem::take(&mut in_flight.has_retry_permit) {
            in_flight.state.release_retry();
        }
        in_flight.has_retry_permit = in_flight.state.acquire_retry();
        in_flight.has_retry_permit
    }

    /// Later attempts go elsewhere while they can.
    fn avoid(&mut self, endpoint: Option<SocketAddr>) {
        if self.previous.len() == PREVIOUS_MAX {
            self.previous.remove(0);
        }
        self.previous.extend(endpoint);
    }

    /// Picks an endpoint, waiting for one that is connecting, but not without bound.
    async fn pick(&mut self, until: Option<Instant>) -> Result<u32, Error> {
        let Self {
            in_flight,
            rng,
            previous,
        } = self;
        if let Some(decided) = in_flight.state.pick(*rng, previous) {
            return decided;
        }
        let bound = until.unwrap_or_else(|| Instant::now() + CONNECTING_WAIT_MAX);
        // Rare: kept out of every other call's future.
        let later = Box::pin(within(
            Some(bound),
            pick_later(Arc::clone(&in_flight.state), *rng, previous),
        ));
        match later.await {
            Some(picked) => {
                let (state, endpoint) = picked?;
                self.in_flight.state = state;
                Ok(endpoint)
            }
            None if until.is_some() && until == self.in_flight.deadline => {
                Err(self.deadline_exceeded("while connecting"))
            }
            None => Err(Error::new(
                ErrorKind::NoEndpoint,
                format!(
                    "cluster {}: still connecting to all of its endpoints",
                    self.in_flight.state.name()
                ),
            )),
        }
    }

    fn classify(&self, result: &AttemptResult<M>) -> Outcome {
        match result {
            AttemptResult::Response(response) => classify(response, self.in_flight.protocol),
            AttemptResult::Failed(error) => error.outcome(),
            AttemptResult::TimedOut => Outcome::PerTryTimeout,
        }
    }

    /// The pause before the next attempt, `None` when the deadline comes first.
    fn pause(&mut self, policy: &RetryPolicy, retry: u32) -> Option<Duration> {
        let pause = backoff(&policy.backoff, retry, &mut *self.rng);
        match self.in_flight.deadline {
            Some(deadline) if Instant::now() + pause >= deadline => None,
            _ => Some(pause),
        }
    }

    /// Tells a gRPC server how much of the deadline is left.
    fn cap_grpc_timeout(&self, headers: &mut HeaderMap, is_retry: bool) {
        let InFlight {
            protocol,
            deadline,
            started,
            ..
        } = *self.in_flight;
        if let (Protocol::Grpc, Some(deadline)) = (protocol, deadline) {
            let now = if is_retry { Instant::now() } else { started };
            let left = deadline.saturating_duration_since(now);
            headers.insert(GRPC_TIMEOUT.clone(), context::format_grpc_timeout(left));
        }
    }

    fn answer(&self, result: AttemptResult<M>) -> Result<Response<Answer<M>>, Error> {
        let name = self.in_flight.state.name();
        let is_late = |deadline| Instant::now() >= deadline;
        match result {
            AttemptResult::Response(response) => Ok(response),
            AttemptResult::Failed(error) => Err(error.into_error(name.as_str())),
            AttemptResult::TimedOut if self.in_flight.deadline.is_some_and(is_late) => {
                Err(self.deadline_exceeded("before the response"))
            }
            AttemptResult::TimedOut => Err(Error::new(
                ErrorKind::PerTryTimeout,
                format!("cluster {name}: no response within the per-try timeout"),
            )),
        }
    }

    fn deadline_exceeded(&self, when: &str) -> Error {
        let name = self.in_flight.state.name();
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!("cluster {name}: the deadline passed {when}"),
        )
    }
}

enum AttemptResult<M: MakeEndpoint> {
    Response(Response<Answer<M>>),
    Failed(DispatchError),
    TimedOut,
}

fn forward_action<'r>(
    listener: &str,
    route: &'r CompiledRoute,
) -> Result<&'r ForwardAction, Error> {
    let reason = match &route.action {
        CompiledAction::Forward(forward) => return Ok(forward),
        CompiledAction::NonForwarding => "its action is for servers (non_forwarding_action)",
        CompiledAction::Unsupported(reason) => reason,
    };
    let name = &route.name;
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("listener {listener}: route {name}: {reason}"),
    ))
}

/// What a response's head says of its attempt.
pub(crate) fn classify<B>(response: &Response<B>, protocol: Protocol) -> Outcome {
    if protocol == Protocol::Grpc
        && let Some(code) = grpc_status(response.headers())
    {
        return Outcome::Grpc(code);
    }
    Outcome::Http(response.status().as_u16())
}

fn authority(request: &Request<Body>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => find(request.headers(), &header::HOST)?.to_str().ok(),
    }
}

/// The deadline that the caller asks for: its own header, and the request it is serving itself.
fn asked_deadline(headers: &HeaderMap, protocol: Protocol, now: Instant) -> Option<Instant> {
    let header = find(headers, &GRPC_TIMEOUT)
        .filter(|_| protocol == Protocol::Grpc)
        .and_then(context::parse_grpc_timeout)
        .and_then(|timeout| now.checked_add(timeout));
    earlier(header, context::inbound_deadline().map(Instant::from_std))
}

fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Endpoints that a retry avoids at most.
const PREVIOUS_MAX: usize = 8;

/// Sent with gRPC retries (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
