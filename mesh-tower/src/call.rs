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

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header, request::Parts};
use mesh_core::{
    config::{CircuitBreakers, RetryPolicy},
    outcome::Outcome,
    retry::{backoff, is_retriable},
    rng::SplitMix64,
    route::{CompiledAction, CompiledRoute, ForwardAction, RequestView},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    Body, ResponseBody, SelectedEndpoint,
    cluster::{CircuitPermit, ClusterRuntime, EndpointService, MakeEndpoint, Picked, RetryPermit},
    context,
    error::{DispatchError, Error, ErrorKind},
    listener::{ListenerRuntime, Live},
    record::CallRecord,
    response::InFlight,
    rng,
    telemetry::{AttemptSpan, CallHead, Protocol, Telemetry, grpc_status},
};

/// How long a request without a deadline waits for an endpoint that is connecting.
pub const CONNECTING_WAIT_MAX: Duration = Duration::from_secs(10);

/// Times that a request which never left is sent again, outside of the retry policy: as many as
/// there are connections that can close under it in a rolling restart, but bounded (gRFC A6 calls
/// these transparent retries).
pub const TRANSPARENT_RETRIES_MAX: u32 = 5;

pub(crate) struct Call<M: MakeEndpoint> {
    pub(crate) listener: Arc<ListenerRuntime<M>>,
    pub(crate) telemetry: Telemetry,
    pub(crate) request: Request<Body>,
}

/// Runs one call.
pub(crate) async fn call<M: MakeEndpoint>(
    call: Call<M>,
) -> Result<Response<ResponseBody<M>>, Error> {
    let Call {
        listener,
        telemetry,
        request,
    } = call;
    let started = Instant::now();
    let protocol = Protocol::of(request.headers());
    let span = telemetry.start_call_span(CallHead::of(listener.name(), &request, protocol));
    let mut record = CallRecord::begin(started.into_std(), protocol, span);
    let setting = Setting {
        listener: &listener,
        protocol,
        started,
    };
    match route_and_send(&setting, request, &mut record).await {
        Ok((mut response, mut in_flight)) => {
            in_flight.observe(record, &response, protocol);
            response.extensions_mut().insert(in_flight.selected());
            Ok(response.map(|body| ResponseBody::new(body, in_flight)))
        }
        Err(error) => {
            record.end(error.kind().into());
            Err(error)
        }
    }
}

/// What does not change during a call.
struct Setting<'c, M: MakeEndpoint> {
    listener: &'c ListenerRuntime<M>,
    protocol: Protocol,
    started: Instant,
}

type Sent<M> = (
    Response<<<M as MakeEndpoint>::Endpoint as EndpointService>::ResponseBody>,
    InFlight<M>,
);

async fn route_and_send<M: MakeEndpoint>(
    setting: &Setting<'_, M>,
    request: Request<Body>,
    record: &mut CallRecord,
) -> Result<Sent<M>, Error> {
    let Setting {
        listener,
        protocol,
        started,
        ..
    } = *setting;
    let asked = asked_deadline(request.headers(), protocol, started);
    let live = within(asked, listener.ready()).await?;
    let Live::Ready(live) = &*live else {
        unreachable!("ready() returns only ready ones")
    };

    let mut rng = rng::fork();
    let (parts, body) = request.into_parts();
    let view = RequestView {
        method: &parts.method,
        path: parts.uri.path(),
        authority: authority(&parts).unwrap_or_else(|| listener.name()),
        headers: &parts.headers,
    };
    let route = live
        .snapshot
        .routes
        .lookup(&view, &mut rng)
        .ok_or_else(|| {
            let host = live.snapshot.routes.virtual_host();
            let RequestView { method, path, .. } = view;
            let name = listener.name();
            Error::new(
                ErrorKind::NoRoute,
                format!("listener {name}: no route of virtual host {host} matches {method} {path}"),
            )
        })?;
    let forward = forward_action(listener.name(), route)?;
    let cluster = &live.clusters[forward.cluster(&mut rng) as usize];
    record.count_in(cluster.name().as_str(), cluster.calls());
    cluster.activate();
    let (permit, limits) = cluster.permit()?;
    let limit = [forward.timeout, forward.stream_limit]
        .into_iter()
        .flatten()
        .min();
    let deadline = earliest(asked, limit.and_then(|limit| started.checked_add(limit)));
    let attempts = Attempts {
        cluster,
        route,
        retry: forward.retry.as_ref(),
        limits,
        protocol,
        deadline,
        record,
        rng,
        previous: Previous::default(),
        made: 0,
    };
    attempts.run(parts, body, permit).await
}

/// The attempts of one call.
struct Attempts<'c, M: MakeEndpoint> {
    cluster: &'c Arc<ClusterRuntime<M>>,
    route: &'c CompiledRoute,
    retry: Option<&'c RetryPolicy>,
    limits: CircuitBreakers,
    protocol: Protocol,
    deadline: Option<Instant>,
    record: &'c CallRecord,
    rng: SplitMix64,
    previous: Previous,
    made: u32,
}

impl<M: MakeEndpoint> Attempts<'_, M> {
    async fn run(
        mut self,
        mut parts: Parts,
        body: Body,
        permit: CircuitPermit,
    ) -> Result<Sent<M>, Error> {
        self.cap_grpc_timeout(&mut parts.headers);
        // Only a call that may be repeated keeps its head and records its body.
        let Some(policy) = self.retry else {
            let request = Request::from_parts(parts, body);
            let (result, picked, span) = self.attempt(request, None).await?;
            let in_flight = self.in_flight(picked, (permit, None), span);
            return self.finish(result, in_flight);
        };
        let replay = body.replayable();
        let mut retry_permit = None;
        let mut retries = 0;
        loop {
            let Some(body) = replay.attempt() else {
                unreachable!("a body that cannot be repeated ends the loop")
            };
            let request = self.repeat(&parts, body, retries);
            let (result, picked, span) = self.attempt(request, policy.per_try_timeout).await?;
            let outcome = self.classify(&result);
            if retries < policy.num_retries
                && is_retriable(policy, outcome)
                && replay.can_repeat()
                && let Some(pause) = self.pause(policy, retries + 1)
            {
                // The permit of an earlier retry ends before the next one asks for its own.
                drop(retry_permit.take());
                if let Some(next) = self.cluster.retry_permit(&self.limits) {
                    span.end(outcome.into());
                    drop((result, picked));
                    retry_permit = Some(next);
                    retries += 1;
                    self.cluster.calls().retry();
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            let in_flight = self.in_flight(picked, (permit, retry_permit), span);
            return self.finish(result, in_flight);
        }
    }

    /// Sends the request to one endpoint, and to another one if it never left.
    async fn attempt(
        &mut self,
        mut request: Request<Body>,
        limit: Option<Duration>,
    ) -> Result<(AttemptResult<M>, Picked<M>, AttemptSpan), Error> {
        let limit = limit.map(|limit| Instant::now() + limit);
        let mut transparent = 0;
        loop {
            let mut picked = self.pick(limit).await?;
            self.previous.push(picked.address());
            self.made += 1;
            let span = self.record.span().start_attempt(
                self.made,
                self.cluster.name().as_str(),
                picked.address(),
                request.headers_mut(),
            );
            let until = earliest(limit, self.deadline);
            let mut result = match within_instant(until, picked.service().dispatch(request)).await {
                Some(Ok(response)) => AttemptResult::Response(response),
                Some(Err(error)) => AttemptResult::Failed(error),
                None => AttemptResult::TimedOut,
            };
            if self.is_failure(&result) {
                picked.fail();
            }
            if let AttemptResult::Failed(error) = &mut result
                && transparent < TRANSPARENT_RETRIES_MAX
                && let Some(unsent) = error.take_request()
            {
                span.end(error.outcome().into());
                transparent += 1;
                request = unsent;
                continue;
            }
            return Ok((result, picked, span));
        }
    }

    /// Picks an endpoint, waiting for one that is connecting, but not without bound.
    async fn pick(&mut self, limit: Option<Instant>) -> Result<Picked<M>, Error> {
        let cluster = Arc::clone(self.cluster);
        let bound = earliest(limit, self.deadline);
        let until = bound.unwrap_or_else(|| Instant::now() + CONNECTING_WAIT_MAX);
        match timeout_at(until, cluster.pick(&mut self.rng, self.previous.as_slice())).await {
            Ok(picked) => {
                picked.map_err(|error| error.with_attempt(self.made, self.previous.last()))
            }
            Err(_) if bound.is_some() && self.deadline == bound => {
                Err(self.deadline_exceeded("while connecting"))
            }
            Err(_) => Err(Error::new(
                ErrorKind::NoEndpoint,
                format!(
                    "cluster {}: still connecting to all of its endpoints",
                    cluster.name()
                ),
            )),
        }
    }

    fn classify(&self, result: &AttemptResult<M>) -> Outcome {
        match result {
            AttemptResult::Response(response) => classify(response, self.protocol),
            AttemptResult::Failed(error) => error.outcome(),
            AttemptResult::TimedOut => Outcome::PerTryTimeout,
        }
    }

    fn is_failure(&self, result: &AttemptResult<M>) -> bool {
        !self.classify(result).is_success()
    }

    /// The pause before the next attempt, `None` when the deadline comes first.
    fn pause(&mut self, policy: &RetryPolicy, retry: u32) -> Option<Duration> {
        let pause = backoff(&policy.backoff, retry, &mut self.rng);
        match self.deadline {
            Some(deadline) if Instant::now() + pause >= deadline => None,
            _ => Some(pause),
        }
    }

    /// The request of an attempt that may be followed by another.
    fn repeat(&self, parts: &Parts, body: Body, retries: u32) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.clone();
        if retries > 0 && self.protocol == Protocol::Grpc {
            request
                .headers_mut()
                .insert(PREVIOUS_ATTEMPTS, HeaderValue::from(retries));
            self.cap_grpc_timeout(request.headers_mut());
        }
        request
    }

    /// Tells a gRPC server how much of the deadline is left.
    fn cap_grpc_timeout(&self, headers: &mut HeaderMap) {
        if let (Protocol::Grpc, Some(deadline)) = (self.protocol, self.deadline) {
            let left = deadline.saturating_duration_since(Instant::now());
            headers.insert(GRPC_TIMEOUT, context::format_grpc_timeout(left));
        }
    }

    fn in_flight(
        &self,
        picked: Picked<M>,
        permits: (CircuitPermit, Option<RetryPermit>),
        span: AttemptSpan,
    ) -> InFlight<M> {
        let selected = SelectedEndpoint {
            address: picked.address(),
            cluster: self.cluster.name().clone(),
            route: Arc::clone(&self.route.name),
            attempts: self.made,
        };
        InFlight::new(picked, permits, span, selected, self.deadline)
    }

    fn finish(&self, result: AttemptResult<M>, in_flight: InFlight<M>) -> Result<Sent<M>, Error> {
        let endpoint = self.previous.last();
        let error = match result {
            AttemptResult::Response(response) => return Ok((response, in_flight)),
            AttemptResult::Failed(error) => error.into_error(self.cluster.name().as_str()),
            AttemptResult::TimedOut
                if self
                    .deadline
                    .is_some_and(|deadline| Instant::now() >= deadline) =>
            {
                self.deadline_exceeded("before the response")
            }
            AttemptResult::TimedOut => Error::new(
                ErrorKind::PerTryTimeout,
                format!(
                    "cluster {}: no response within the per-try timeout",
                    self.cluster.name()
                ),
            ),
        };
        in_flight.fail(&error);
        Err(error.with_attempt(self.made, endpoint))
    }

    fn deadline_exceeded(&self, when: &str) -> Error {
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "cluster {}: route {}: the deadline passed {when}",
                self.cluster.name(),
                self.route.name
            ),
        )
        .with_attempt(self.made, self.previous.last())
    }
}

enum AttemptResult<M: MakeEndpoint> {
    Response(Response<<M::Endpoint as EndpointService>::ResponseBody>),
    Failed(DispatchError),
    TimedOut,
}

/// Endpoints that were tried, the newest last; the oldest are forgotten first.
struct Previous {
    addresses: [SocketAddr; PREVIOUS_MAX],
    count: usize,
}

impl Previous {
    fn push(&mut self, address: SocketAddr) {
        if self.count == PREVIOUS_MAX {
            self.addresses.rotate_left(1);
            self.count -= 1;
        }
        self.addresses[self.count] = address;
        self.count += 1;
    }

    fn last(&self) -> Option<SocketAddr> {
        self.as_slice().last().copied()
    }

    fn as_slice(&self) -> &[SocketAddr] {
        &self.addresses[..self.count]
    }
}

impl Default for Previous {
    fn default() -> Self {
        Self {
            addresses: [SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0); PREVIOUS_MAX],
            count: 0,
        }
    }
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

fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// The deadline that the caller asks for: its own header, and the request it is serving itself.
fn asked_deadline(headers: &HeaderMap, protocol: Protocol, now: Instant) -> Option<Instant> {
    let header = headers
        .get(GRPC_TIMEOUT)
        .filter(|_| protocol == Protocol::Grpc)
        .and_then(context::parse_grpc_timeout)
        .and_then(|timeout| now.checked_add(timeout));
    earliest(header, context::inbound_deadline().map(Instant::from_std))
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn within<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    within_instant(deadline, future).await.unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::DeadlineExceeded,
            "the deadline passed before there was a configuration",
        ))
    })
}

async fn within_instant<T>(until: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, future).await.ok(),
        None => Some(future.await),
    }
}

/// How long the caller waits (gRPC over HTTP/2).
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Endpoints that a retry avoids at most.
const PREVIOUS_MAX: usize = 4;

/// Sent with gRPC retries (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
