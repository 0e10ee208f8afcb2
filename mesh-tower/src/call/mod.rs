//! One call, from its request to the head of its response.
//!
//! Stages 8 to 13. The order, outermost first, and why:
//!
//! 1. configuration — everything else reads it; waited for once in a listener's life.
//! 2. route — outside of the limits, because the route carries the timeouts.
//! 3. filters — before the permit, which a request that they answer does not need, and within the
//!    deadline, which covers a delay.
//! 4. circuit permit — once a call, outside of retries: a retry is not a new request (gRFC A32).
//! 5. deadline — outside of attempts: it covers all of them (Envoy `RouteAction.timeout`).
//! 6. attempts — each picks again from the newest endpoints.
//! 7. per-try timeout — inside of an attempt, and outside of the pick: connecting counts.
//!
//! Most calls need one attempt on an endpoint that is ready. These are decided and sent before there
//! is a future ([`start`]), which then holds no more than what waits for the response. Whatever else
//! happens goes on in [`attempts`], in a future of its own.

mod attempts;
mod caller;
mod decided;
mod filtered;
mod future;
mod mirror;
mod redirects;
mod unclaimed;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response};
use mesh_core::{
    config::RetryPolicy,
    filter::{Filters, Session},
    outcome::Outcome,
    rng::SplitMix64,
    route::{CompiledRoute, Decision, ForwardAction, RequestView},
};
use tokio::time::Instant;

pub(crate) use self::redirects::Redirects;
pub use self::{
    attempts::TRANSPARENT_RETRIES_MAX,
    future::ResponseFuture,
    mirror::{MIRROR_RESPONSE_BYTES_MAX, MIRROR_TIMEOUT, MIRRORS_IN_FLIGHT_MAX},
};
use self::{
    attempts::{Again, Attempts, Next},
    unclaimed::Unclaimed,
};
use crate::{
    Body, REPLAY_BYTES_MAX, ResponseBody,
    cluster::{BoundCluster, EndpointService, MakeEndpoint},
    context::{self, GRPC_TIMEOUT},
    error::{AsError, DispatchError, Error, ErrorKind, ShowError},
    headers::find_own,
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot, NAMED_CLUSTER_WAIT_MAX},
    local_reply::LocalReply,
    outgoing::Outgoing,
    rng,
    telemetry::{CallHead, CallSpan, Protocol, grpc_status},
    within::within,
};

/// How long a request without a deadline waits for an endpoint that is connecting.
pub const CONNECTING_WAIT_MAX: Duration = Duration::from_secs(10);

/// How one service makes its calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOptions {
    /// Puts a [`SelectedEndpoint`](crate::SelectedEndpoint) into the response's extensions.
    pub(crate) reports_endpoint: bool,
    /// Does what callers ask for in headers, as Envoy's router does.
    pub(crate) reads_caller_headers: bool,
    /// Bytes of a streaming body that are kept for other attempts, for routes that say nothing.
    pub(crate) replay_bytes_max: u32,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            reports_endpoint: false,
            reads_caller_headers: false,
            replay_bytes_max: REPLAY_BYTES_MAX as u32,
        }
    }
}

type Answer<M> = <<M as MakeEndpoint>::Endpoint as EndpointService>::ResponseBody;
type CallResult<M> = Result<Response<ResponseBody<M>>, Error>;

/// What came of an attempt.
enum AttemptResult<M: MakeEndpoint> {
    Response(Response<Answer<M>>),
    Failed(DispatchError),
    TimedOut,
}

impl<M: MakeEndpoint> AttemptResult<M> {
    /// The call ends with this result.
    fn end(self, mut in_flight: InFlight<M>, outcome: Outcome) -> CallResult<M> {
        in_flight.judge_attempt(outcome);
        let error = match self {
            Self::Response(mut response) => {
                in_flight.respond(&mut response, outcome);
                return Ok(response.map(|body| ResponseBody::new(body, Some(in_flight))));
            }
            Self::Failed(error) => error.into_error(in_flight.state.name().as_str()),
            Self::TimedOut => in_flight.timed_out(),
        };
        Err(in_flight.fail(error))
    }

    /// Whether it is a failure of a request that never left, which is there to be sent elsewhere.
    fn is_unsent(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_unsent())
    }

    fn outcome(&self, protocol: Protocol) -> Outcome {
        match self {
            Self::Response(response) => classify(response, protocol),
            Self::Failed(error) => error.outcome(),
            Self::TimedOut => Outcome::PerTryTimeout,
        }
    }
}

/// Stages 8 to 12: decides where the request goes and, when an endpoint is ready, sends it.
pub(crate) fn start<M: MakeEndpoint, S: ShowError>(
    listener: &Arc<ListenerRuntime<M>>,
    outgoing: &mut Outgoing<'_>,
    options: CallOptions,
) -> ResponseFuture<M, S> {
    let started = Instant::now();
    listener.read(|live| {
        let Some(live) = live.ready() else {
            let listener = Arc::clone(listener);
            let request = outgoing.take_absolute();
            return ResponseFuture::later(start_when_ready(listener, request, started, options));
        };
        start_at(listener, live, outgoing, Beginning::at(started), options)
    })
}

/// What is known of a call when it is decided.
struct Beginning {
    started: Instant,
    /// Later, when it waited for its configuration.
    now: Instant,
    /// Its span, when it was decided before.
    span: Option<CallSpan>,
}

impl Beginning {
    #[inline]
    fn at(started: Instant) -> Self {
        Self {
            started,
            now: started,
            span: None,
        }
    }
}

/// [`start`] once there is a configuration.
fn start_when_ready<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: Request<Body>,
    started: Instant,
    options: CallOptions,
) -> impl Future<Output = CallResult<M>> + Send {
    let (protocol, timeout) = read::<AsError>(request.headers());
    let asked = asked_deadline(timeout, started);
    let outgoing = Outgoing::new(request);
    let head = || CallHead::of(listener.name(), outgoing.head(), protocol);
    let span = listener.telemetry().start_call_span(head);
    let waiting = Unclaimed::new(&listener, span);
    wait_until_ready(listener, outgoing, waiting, (started, asked), options)
}

async fn wait_until_ready<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    mut outgoing: Outgoing<'_>,
    mut waiting: Unclaimed<M>,
    (started, asked): (Instant, Option<Instant>),
    options: CallOptions,
) -> CallResult<M> {
    let failed = match within(asked, listener.ready()).await {
        Some(Ok(live)) => {
            let Some(live) = live.ready() else {
                unreachable!("ready() returns only usable ones")
            };
            let beginning = Beginning {
                started,
                now: Instant::now(),
                span: Some(waiting.claim()),
            };
            return start_at::<M, AsError>(&listener, live, &mut outgoing, beginning, options)
                .await;
        }
        Some(Err(error)) => error,
        None => Error::new(
            ErrorKind::DeadlineExceeded,
            "the deadline passed before there was a configuration",
        ),
    };
    waiting.fail(&failed);
    Err(failed)
}

/// [`start`] once there is the cluster that the request names.
async fn start_when_named<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: Request<Body>,
    cluster: Box<str>,
    (mut beginning, mut waiting): (Beginning, Unclaimed<M>),
    options: CallOptions,
) -> CallResult<M> {
    let (_, timeout) = read::<AsError>(request.headers());
    let asked = asked_deadline(timeout, beginning.started);
    let failed = match within(asked, listener.ready_with(&cluster)).await {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(error),
        None => Some(Error::new(
            ErrorKind::DeadlineExceeded,
            format!("the deadline passed before cluster {cluster:?} was known"),
        )),
    };
    let live = match failed {
        Some(error) => Err(error),
        None => listener.ready().await,
    };
    let live = match live {
        Ok(live) => live,
        Err(error) => {
            waiting.fail(&error);
            return Err(error);
        }
    };
    let Some(live) = live.ready() else {
        unreachable!("ready() returns only usable ones")
    };
    beginning.now = Instant::now();
    beginning.span = Some(waiting.claim());
    let mut outgoing = Outgoing::new(request);
    start_at::<M, AsError>(&listener, live, &mut outgoing, beginning, options).await
}

/// [`start`] with a configuration. A call may have begun earlier, and waited for it.
fn start_at<M: MakeEndpoint, S: ShowError>(
    listener: &Arc<ListenerRuntime<M>>,
    live: &LiveSnapshot<M>,
    outgoing: &mut Outgoing<'_>,
    beginning: Beginning,
    options: CallOptions,
) -> ResponseFuture<M, S> {
    start_drawn(listener, live, outgoing, beginning, options, rng::fork())
}

/// [`start_at`] with these draws.
#[inline]
fn start_drawn<M: MakeEndpoint, S: ShowError>(
    listener: &Arc<ListenerRuntime<M>>,
    live: &LiveSnapshot<M>,
    outgoing: &mut Outgoing<'_>,
    beginning: Beginning,
    options: CallOptions,
    mut rng: SplitMix64,
) -> ResponseFuture<M, S> {
    let (started, now) = (beginning.started, beginning.now);
    let drawn = rng.clone();
    let permitted = permit::<M, S>(listener, live, outgoing, beginning, &mut rng);
    let (in_flight, chosen) = match permitted {
        Ok(permitted) => permitted,
        Err((Stop::Filtered, span)) => {
            let waiting = Unclaimed::new(listener, span);
            let listener = Arc::clone(listener);
            let request = outgoing.take_absolute();
            let times = [started, now];
            let filtered = filtered::send(listener, request, (times, waiting), options, drawn);
            return ResponseFuture::later(filtered);
        }
        Err((Stop::Failed(error), _)) => return ResponseFuture::failed(error),
        Err((Stop::Answered(reply), _)) => return ResponseFuture::answered(reply.into_response()),
        // One that was known for a moment is not waited for again and again.
        Err((Stop::Unknown(cluster), mut span))
            if now.duration_since(started) >= NAMED_CLUSTER_WAIT_MAX =>
        {
            let reason = format!("cluster {cluster:?}, which a header names, does not stay known");
            let error = Error::new(ErrorKind::NoRoute, reason);
            listener.fail(&mut span, &error);
            return ResponseFuture::failed(error);
        }
        Err((Stop::Unknown(cluster), span)) => {
            let waiting = Unclaimed::new(listener, span);
            let listener = Arc::clone(listener);
            let request = outgoing.take_absolute();
            let span = None;
            let beginning = (Beginning { started, now, span }, waiting);
            let named = start_when_named(listener, request, cluster, beginning, options);
            return ResponseFuture::later(named);
        }
    };
    let permitted = (in_flight, chosen);
    proceed(listener, live, outgoing, now, options, permitted, &mut rng)
}

/// Stages 11 and 12: sends a request that has its permit, at `now`.
#[inline]
fn proceed<M: MakeEndpoint, S>(
    listener: &Arc<ListenerRuntime<M>>,
    live: &LiveSnapshot<M>,
    outgoing: &mut Outgoing<'_>,
    now: Instant,
    options: CallOptions,
    (mut in_flight, chosen): (InFlight<M>, Chosen<'_, M>),
    rng: &mut SplitMix64,
) -> ResponseFuture<M, S> {
    if options.reads_caller_headers {
        let permitted = (in_flight, chosen);
        return caller::proceed(listener, live, outgoing, now, options, permitted, rng);
    }
    let (route, forward) = (chosen.route, chosen.forward);
    if let Some(decision) = chosen.decision {
        match decided::prepare(decision, chosen.session, listener, live, outgoing) {
            Ok(extras) => in_flight.extras = Some(extras),
            Err(error) => return ResponseFuture::failed(in_flight.fail(error)),
        }
    }
    let sending = Sending {
        route,
        forward,
        policy: forward.retry.as_deref(),
        options,
        now,
    };
    sending.send(listener, live, outgoing, in_flight, rng)
}

/// A request whose head is as it goes out.
struct Sending<'l> {
    route: &'l CompiledRoute,
    forward: &'l ForwardAction,
    /// When it is tried again.
    policy: Option<&'l RetryPolicy>,
    options: CallOptions,
    now: Instant,
}

impl Sending<'_> {
    // Always: it is the rest of its callers, of which the other one is cold.
    #[inline(always)]
    fn send<M: MakeEndpoint, S>(
        self,
        listener: &Arc<ListenerRuntime<M>>,
        live: &LiveSnapshot<M>,
        outgoing: &mut Outgoing<'_>,
        mut in_flight: InFlight<M>,
        rng: &mut SplitMix64,
    ) -> ResponseFuture<M, S> {
        let Self { options, now, .. } = self;
        if let Some(extras) = &mut in_flight.extras
            && !extras.mirrors.is_empty()
        {
            let mirrors = std::mem::take(&mut extras.mirrors);
            mirror::send_all(listener, live, &mirrors, &in_flight, outgoing);
        }
        if options.reports_endpoint {
            let extras = in_flight.extras.get_or_insert_default();
            extras.route = Some(Arc::clone(&self.route.name));
        }
        in_flight.cap_grpc_timeout(&mut outgoing.head_mut().headers, now);
        // Only a call that may be repeated keeps its head and records its body.
        let mut again = None;
        let mut until = in_flight.deadline;
        if let Some(policy) = self.policy {
            in_flight.watch_attempts(policy, outgoing);
            again = Some(Box::new(Again::keep(
                Some(policy),
                self.replay_bytes_max(),
                outgoing,
            )));
            until = earlier(policy.per_try_timeout.map(|limit| now + limit), until);
        }
        if let Some(extras) = &in_flight.extras
            && extras.is_watched()
        {
            if extras.repeats() && again.is_none() {
                again = Some(Box::new(Again::keep(
                    None,
                    self.replay_bytes_max(),
                    outgoing,
                )));
            }
            let redirects = in_flight
                .extras
                .as_mut()
                .and_then(|extras| extras.redirects.take());
            let request = outgoing.take_absolute();
            let attempts = Attempts::new(in_flight, again, until);
            return match redirects {
                None => ResponseFuture::later(attempts.run(Next::Send(request))),
                Some(redirects) => {
                    let listener = Arc::clone(listener);
                    ResponseFuture::later(redirects.follow(listener, attempts, request, options))
                }
            };
        }
        match in_flight.state.pick(rng, &[], in_flight.affinity()) {
            Some(Ok(endpoint)) => {
                let exchange = in_flight
                    .begin_attempt(endpoint, outgoing)
                    .dispatch(outgoing);
                ResponseFuture::sent(in_flight, exchange, until, again)
            }
            Some(Err(error)) => ResponseFuture::failed(in_flight.fail(error)),
            None => {
                let request = outgoing.take_absolute();
                let attempts = Attempts::new(in_flight, again, until);
                ResponseFuture::later(attempts.run(Next::Send(request)))
            }
        }
    }

    fn replay_bytes_max(&self) -> usize {
        let own = self.options.replay_bytes_max as usize;
        self.forward.body_buffer_limit(own)
    }
}

/// A route, its action, and the cluster that it is sent to.
struct Chosen<'l, M: MakeEndpoint> {
    route: &'l CompiledRoute,
    forward: &'l ForwardAction,
    cluster: &'l BoundCluster<M>,
    /// Made where the route asks for more.
    decision: Option<Box<Decision<'l>>>,
    session: Option<Box<Session>>,
    /// What the request meets before it is sent.
    filters: Option<&'l Filters>,
}

/// A call ends before anybody is asked, or cannot go on yet.
enum Stop {
    Failed(Error),
    Answered(Box<LocalReply>),
    /// It names a cluster that is not known yet.
    Unknown(Box<str>),
    /// Its route has filters: it goes on in a future of its own.
    Filtered,
}

impl Stop {
    fn end<M: MakeEndpoint>(
        &self,
        listener: &ListenerRuntime<M>,
        span: &mut CallSpan,
        protocol: Protocol,
    ) {
        match self {
            Self::Failed(error) => listener.fail(span, error),
            Self::Answered(reply) => {
                listener.end_locally(span, reply.reason, reply.code(protocol));
            }
            Self::Unknown(_) | Self::Filtered => {}
        }
    }
}

/// Stages 8 to 10: the route, a permit of its cluster, and the deadline.
#[inline]
fn permit<'l, M: MakeEndpoint, S: ShowError>(
    listener: &ListenerRuntime<M>,
    live: &'l LiveSnapshot<M>,
    outgoing: &Outgoing<'_>,
    beginning: Beginning,
    rng: &mut SplitMix64,
) -> Result<(InFlight<M>, Chosen<'l, M>), (Stop, CallSpan)> {
    let Beginning { started, now, span } = beginning;
    let (protocol, timeout) = read::<S>(&outgoing.head().headers);
    let begin = || {
        listener.telemetry().start_call_span(|| {
            let name = listener.name();
            let mut head = CallHead::of(name, outgoing.head(), protocol);
            head.authority = outgoing.authority_or(name);
            head
        })
    };
    let mut span = span.unwrap_or_else(begin);
    let permitted = choose(listener, live, outgoing, protocol, rng).and_then(|chosen| {
        if chosen.filters.is_some() {
            return Err(Stop::Filtered);
        }
        let state = chosen.cluster.load();
        state.acquire(rng).map_err(Stop::Failed)?;
        Ok((chosen, state))
    });
    let (chosen, state) = match permitted {
        Ok(permitted) => permitted,
        Err(stop) => {
            stop.end(listener, &mut span, protocol);
            return Err((stop, span));
        }
    };
    let deadline = deadline(chosen.forward, protocol, timeout, [started, now]);
    let in_flight = InFlight::begin(state, started, deadline, protocol, span);
    Ok((in_flight, chosen))
}

/// When a call ends: the caller's deadline, or the route's limit from `now` on.
#[inline]
fn deadline(
    forward: &ForwardAction,
    protocol: Protocol,
    timeout: Option<&HeaderValue>,
    [started, now]: [Instant; 2],
) -> Option<Instant> {
    let limit = match protocol {
        Protocol::Grpc => forward.grpc_limit,
        Protocol::Http => forward.http_limit,
    };
    let of_route = limit.and_then(|limit| now.checked_add(limit));
    earlier(asked_deadline(timeout, started), of_route)
}

fn choose<'l, M: MakeEndpoint>(
    listener: &ListenerRuntime<M>,
    live: &'l LiveSnapshot<M>,
    outgoing: &Outgoing<'_>,
    protocol: Protocol,
    rng: &mut SplitMix64,
) -> Result<Chosen<'l, M>, Stop> {
    let routes = &live.snapshot.routes;
    let head = outgoing.head();
    let name = listener.name();
    let authority = outgoing.authority_or(name);
    let view = RequestView::new(&head.method, &head.uri, authority, &head.headers);
    let Some((number, route)) = routes.lookup(&view, rng) else {
        let host = routes.virtual_host();
        let RequestView { method, path, .. } = view;
        return Err(Stop::Failed(Error::new(
            ErrorKind::NoRoute,
            format!("listener {name}: no route of virtual host {host} matches {method} {path}"),
        )));
    };
    let plain = route.plain().filter(|_| live.sessions(number).is_none());
    match plain {
        Some(forward) => {
            let cluster = forward.cluster(rng);
            Ok(Chosen {
                route,
                forward,
                cluster: live.clusters.get(cluster),
                decision: None,
                session: None,
                filters: live.filters(number, cluster),
            })
        }
        None => decided::decide(listener, live, number, &view, protocol, rng),
    }
}

/// What a response's head says of its attempt.
fn classify<B>(response: &Response<B>, protocol: Protocol) -> Outcome {
    if protocol == Protocol::Grpc
        && let Some(code) = grpc_status(response.headers())
    {
        return Outcome::Grpc(code);
    }
    Outcome::Http(response.status().as_u16())
}

/// What a request speaks, and how long a gRPC caller waits.
#[inline]
fn read<S: ShowError>(headers: &HeaderMap) -> (Protocol, Option<&HeaderValue>) {
    let protocol = S::PROTOCOL.unwrap_or_else(|| Protocol::of(headers));
    match protocol {
        Protocol::Grpc if headers.len() > 1 => {
            let timeout = find_own(headers, &GRPC_TIMEOUT, b"grpc-timeout");
            (protocol, timeout)
        }
        _ => (protocol, None),
    }
}

/// The deadline that the caller asks for: its own header, and the request it is serving itself.
#[inline]
fn asked_deadline(timeout: Option<&HeaderValue>, now: Instant) -> Option<Instant> {
    let header = timeout
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
