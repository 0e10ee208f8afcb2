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
    cluster::{ClusterRuntime, ClusterState, EndpointService, MakeEndpoint, Picked},
    context,
    error::{DispatchError, Error, ErrorKind},
    head::Head,
    in_flight::{InFlight, Progress},
    listener::{ListenerRuntime, LiveSnapshot, Local},
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

/// Runs one call once there is a configuration.
pub(crate) async fn call_when_ready<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: &mut Request<Body>,
    options: CallOptions,
) -> CallResult<M> {
    let started = Instant::now();
    let protocol = Protocol::of(request.headers());
    let asked = asked_deadline(request.headers(), protocol, started);
    let failed = match within(asked, listener.ready()).await {
        Some(Ok(local)) => return call(local, request, options).await,
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

/// Runs one call.
pub(crate) async fn call<M: MakeEndpoint>(
    local: Arc<Local<M>>,
    request: &mut Request<Body>,
    options: CallOptions,
) -> CallResult<M> {
    let started = Instant::now();
    let protocol = Protocol::of(request.headers());
    let asked = asked_deadline(request.headers(), protocol, started);
    let head = CallHead::of(&local.name, request, protocol);
    let span = local.telemetry.start_call_span(head);
    let mut in_flight = InFlight::begin(local, started, protocol, asked, span);
    match send(&in_flight.local, &mut in_flight.progress, request).await {
        Ok(response) => {
            in_flight.progress.respond(classify(&response, protocol));
            let mut response = response;
            if options.reports_endpoint
                && let Some(selected) = in_flight.selected()
            {
                response.extensions_mut().insert(selected);
            }
            Ok(response.map(|body| ResponseBody::new(body, in_flight)))
        }
        Err(error) => Err(in_flight.fail(error)),
    }
}

type Answer<M> = <<M as MakeEndpoint>::Endpoint as EndpointService>::ResponseBody;

async fn send<M: MakeEndpoint>(
    local: &Local<M>,
    progress: &mut Progress<M>,
    request: &mut Request<Body>,
) -> Result<Response<Answer<M>>, Error> {
    let Some(live) = local.ready() else {
        unreachable!("calls begin with a configuration")
    };
    let mut rng = rng::fork();
    let (route, forward, cluster) = choose(&local.name, live, request, &mut rng)?;
    let runtime = &live.clusters[cluster as usize];
    runtime.activate();
    let state = runtime.load();
    runtime.acquire(&state)?;
    runtime.calls().start();
    progress.chosen = Some((route, cluster));
    progress.span.set_cluster(runtime.name().as_str());
    let limit = earlier(forward.timeout, forward.stream_limit);
    let of_route = limit.and_then(|limit| progress.started.checked_add(limit));
    progress.deadline = earlier(progress.deadline, of_route);
    let attempts = Attempts {
        cluster: runtime,
        progress,
        rng,
        previous: Vec::new(),
    };
    attempts.run(state, request, forward.retry.as_ref()).await
}

/// The route of a request, its action, and the cluster it is sent to.
fn choose<'l, M: MakeEndpoint>(
    name: &str,
    live: &'l LiveSnapshot<M>,
    request: &Request<Body>,
    rng: &mut SplitMix64,
) -> Result<(u32, &'l ForwardAction, u32), Error> {
    let routes = &live.snapshot.routes;
    let view = RequestView {
        method: request.method(),
        path: request.uri().path(),
        authority: authority(request).unwrap_or(name),
        headers: request.headers(),
    };
    let Some((index, route)) = routes.lookup(&view, rng) else {
        let host = routes.virtual_host();
        let RequestView { method, path, .. } = view;
        return Err(Error::new(
            ErrorKind::NoRoute,
            format!("listener {name}: no route of virtual host {host} matches {method} {path}"),
        ));
    };
    let forward = forward_action(name, route)?;
    Ok((index, forward, forward.cluster(rng)))
}

/// The attempts of one call.
struct Attempts<'c, M: MakeEndpoint> {
    cluster: &'c ClusterRuntime<M>,
    progress: &'c mut Progress<M>,
    rng: SplitMix64,
    /// Endpoints that were tried; empty, and nothing is allocated, before the first retry.
    previous: Vec<SocketAddr>,
}

impl<M: MakeEndpoint> Attempts<'_, M> {
    async fn run(
        mut self,
        state: Arc<ClusterState<M>>,
        request: &mut Request<Body>,
        policy: Option<&RetryPolicy>,
    ) -> Result<Response<Answer<M>>, Error> {
        self.cap_grpc_timeout(request.headers_mut(), false);
        // Only a call that may be repeated keeps its head and records its body.
        let Some(policy) = policy else {
            let result = self.attempt(Some(state), request, None).await?;
            return self.finish(result);
        };
        let kept = (Head::of(request), request.body_mut().share());
        let mut state = Some(state);
        let mut retries = 0;
        loop {
            let result = self.attempt(state.take(), request, policy.per_try_timeout);
            let result = result.await?;
            let (head, replay) = &kept;
            let outcome = self.classify(&result);
            if retries >= policy.num_retries
                || !is_retriable(policy, outcome)
                || !replay.can_repeat()
            {
                return self.finish(result);
            }
            let Some(pause) = self.pause(policy, retries + 1) else {
                return self.finish(result);
            };
            // The permit of an earlier retry ends before the next one asks for its own.
            if std::mem::take(&mut self.progress.has_retry_permit) {
                self.cluster.release_retry();
            }
            if !self.cluster.acquire_retry() {
                return self.finish(result);
            }
            self.progress.has_retry_permit = true;
            drop(result);
            self.progress.end_attempt(outcome.into());
            retries += 1;
            self.cluster.calls().retry();
            tokio::time::sleep(pause).await;
            let Some(body) = replay.attempt() else {
                unreachable!("a body that cannot be repeated ends the loop")
            };
            *request = head.request(body);
            self.cap_grpc_timeout(request.headers_mut(), true);
            if self.progress.protocol == Protocol::Grpc {
                let headers = request.headers_mut();
                headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(retries));
            }
        }
    }

    /// Sends the request to one endpoint, and to another one if it never left.
    async fn attempt(
        &mut self,
        mut state: Option<Arc<ClusterState<M>>>,
        request: &mut Request<Body>,
        limit: Option<Duration>,
    ) -> Result<AttemptResult<M>, Error> {
        let limit = limit.map(|limit| Instant::now() + limit);
        let until = earlier(limit, self.progress.deadline);
        let mut transparent = 0;
        loop {
            let picked = self.pick(state.take(), until).await?;
            self.begin(picked, request);
            let Some(picked) = &self.progress.picked else {
                unreachable!("an attempt has begun")
            };
            let result = match within(until, picked.service().dispatch(request)).await {
                Some(Ok(response)) => AttemptResult::Response(response),
                Some(Err(error)) => AttemptResult::Failed(error),
                None => AttemptResult::TimedOut,
            };
            if !self.classify(&result).is_success() {
                self.progress.fail_attempt();
                self.avoid(self.progress.endpoint());
            }
            if let AttemptResult::Failed(error) = &result
                && transparent < TRANSPARENT_RETRIES_MAX
                && error.is_unsent()
            {
                self.progress.end_attempt(error.outcome().into());
                transparent += 1;
                continue;
            }
            return Ok(result);
        }
    }

    fn begin(&mut self, picked: Picked<M>, request: &mut Request<Body>) {
        let progress = &mut *self.progress;
        progress.attempts += 1;
        progress.attempt = Some(progress.span.start_attempt(
            progress.attempts,
            self.cluster.name().as_str(),
            picked.address(),
            request.headers_mut(),
        ));
        progress.picked = Some(picked);
    }

    /// Later attempts go elsewhere while they can.
    fn avoid(&mut self, endpoint: Option<SocketAddr>) {
        if self.previous.len() == PREVIOUS_MAX {
            self.previous.remove(0);
        }
        self.previous.extend(endpoint);
    }

    /// Picks an endpoint, waiting for one that is connecting, but not without bound.
    async fn pick(
        &mut self,
        state: Option<Arc<ClusterState<M>>>,
        until: Option<Instant>,
    ) -> Result<Picked<M>, Error> {
        let Self {
            cluster,
            rng,
            previous,
            ..
        } = self;
        let state = state.unwrap_or_else(|| cluster.load());
        if let Some(decided) = cluster.pick(state, rng, previous) {
            return decided;
        }
        let bound = until.unwrap_or_else(|| Instant::now() + CONNECTING_WAIT_MAX);
        // Rare: kept out of every other call's future.
        let later = Box::pin(cluster.pick_later(rng, previous));
        match within(Some(bound), later).await {
            Some(picked) => picked,
            None if until.is_some() && until == self.progress.deadline => {
                Err(self.deadline_exceeded("while connecting"))
            }
            None => Err(Error::new(
                ErrorKind::NoEndpoint,
                format!(
                    "cluster {}: still connecting to all of its endpoints",
                    self.cluster.name()
                ),
            )),
        }
    }

    fn classify(&self, result: &AttemptResult<M>) -> Outcome {
        match result {
            AttemptResult::Response(response) => classify(response, self.progress.protocol),
            AttemptResult::Failed(error) => error.outcome(),
            AttemptResult::TimedOut => Outcome::PerTryTimeout,
        }
    }

    /// The pause before the next attempt, `None` when the deadline comes first.
    fn pause(&mut self, policy: &RetryPolicy, retry: u32) -> Option<Duration> {
        let pause = backoff(&policy.backoff, retry, &mut self.rng);
        match self.progress.deadline {
            Some(deadline) if Instant::now() + pause >= deadline => None,
            _ => Some(pause),
        }
    }

    /// Tells a gRPC server how much of the deadline is left.
    fn cap_grpc_timeout(&self, headers: &mut HeaderMap, is_retry: bool) {
        let Progress {
            protocol,
            deadline,
            started,
            ..
        } = *self.progress;
        if let (Protocol::Grpc, Some(deadline)) = (protocol, deadline) {
            let now = if is_retry { Instant::now() } else { started };
            let left = deadline.saturating_duration_since(now);
            headers.insert(GRPC_TIMEOUT, context::format_grpc_timeout(left));
        }
    }

    fn finish(&self, result: AttemptResult<M>) -> Result<Response<Answer<M>>, Error> {
        match result {
            AttemptResult::Response(response) => Ok(response),
            AttemptResult::Failed(error) => Err(error.into_error(self.cluster.name().as_str())),
            AttemptResult::TimedOut
                if self
                    .progress
                    .deadline
                    .is_some_and(|deadline| Instant::now() >= deadline) =>
            {
                Err(self.deadline_exceeded("before the response"))
            }
            AttemptResult::TimedOut => Err(Error::new(
                ErrorKind::PerTryTimeout,
                format!(
                    "cluster {}: no response within the per-try timeout",
                    self.cluster.name()
                ),
            )),
        }
    }

    fn deadline_exceeded(&self, when: &str) -> Error {
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "cluster {}: the deadline passed {when}",
                self.cluster.name()
            ),
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
        None => request.headers().get(header::HOST)?.to_str().ok(),
    }
}

/// The deadline that the caller asks for: its own header, and the request it is serving itself.
fn asked_deadline(headers: &HeaderMap, protocol: Protocol, now: Instant) -> Option<Instant> {
    let header = headers
        .get(GRPC_TIMEOUT)
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

/// How long the caller waits (gRPC over HTTP/2).
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Endpoints that a retry avoids at most.
const PREVIOUS_MAX: usize = 8;

/// Sent with gRPC retries (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
