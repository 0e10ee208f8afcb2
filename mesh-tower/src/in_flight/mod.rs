//! What a call holds from its permit to the end of its response, given back exactly once.
//!
//! Stage 13. The permits, the endpoint's load, counters and spans have one owner: whoever drops it
//! ends the call. Dropped without having been ended it means that the caller went away.

mod attempt;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response};
use mesh_core::{
    config::RetryPolicy,
    observed::LoadReport,
    outcome::{Outcome, Verdict},
};
use opentelemetry::Context;
use tokio::time::Instant;

pub(crate) use self::attempt::{Attempt, RetryPermit};

use crate::{
    Error, ErrorKind, SelectedEndpoint,
    cluster::{Affinity, ClusterState, MakeEndpoint},
    context::{self, GRPC_TIMEOUT},
    extras::{CallExtras, Idle},
    orca::load_report,
    outgoing::Outgoing,
    telemetry::{CallSpan, Code, Extra, Protocol, grpc_status},
};

/// One call that holds a permit.
pub(crate) struct InFlight<M: MakeEndpoint> {
    /// The cluster, as it was when the last attempt was made.
    pub(crate) state: Arc<ClusterState<M>>,
    pub(crate) started: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) protocol: Protocol,
    pub(crate) has_retry_permit: bool,
    pub(crate) attempts: u32,
    /// What few calls have. Boxed, as the clock is: each byte here is moved with every response.
    pub(crate) extras: Option<Box<CallExtras>>,
    span: CallSpan,
    /// The endpoint of the current attempt, in the cluster's state.
    endpoint: Option<u32>,
    verdict: Verdict,
    /// Runs where the cluster's policy wants to know how long attempts take.
    clock: Option<Box<Clock>>,
    outcome: Outcome,
    /// How the call ended; `None` while its response is not read to the end.
    ended: Option<Code>,
}

/// How long an attempt takes, to the head of its response.
#[derive(Clone, Copy)]
enum Clock {
    Began(Instant),
    Took(Duration),
}

impl Clock {
    #[cold]
    fn stop(&mut self) -> Duration {
        let latency = match self {
            Self::Took(latency) => *latency,
            Self::Began(at) => at.elapsed(),
        };
        *self = Self::Took(latency);
        latency
    }
}

impl<M: MakeEndpoint> InFlight<M> {
    /// A call that was permitted by `state`.
    #[inline]
    pub(crate) fn begin(
        state: Arc<ClusterState<M>>,
        started: Instant,
        deadline: Option<Instant>,
        protocol: Protocol,
        span: CallSpan,
    ) -> Self {
        if span.is_some() {
            span.set_cluster(state.name().as_str());
        }
        Self {
            state,
            started,
            deadline,
            protocol,
            has_retry_permit: false,
            attempts: 0,
            extras: None,
            span,
            endpoint: None,
            verdict: Verdict::Success,
            clock: None,
            outcome: Outcome::Reset,
            ended: None,
        }
    }

    /// Begins an attempt on an endpoint of the state; returns what sends it.
    #[inline]
    pub(crate) fn begin_attempt(
        &mut self,
        endpoint: u32,
        outgoing: &mut Outgoing<'_>,
    ) -> &M::Endpoint {
        if let Some(extras) = &self.extras {
            extras.change_attempt(outgoing, self.attempts + 1, || {
                self.state.hostname(endpoint)
            });
        }
        self.attempts += 1;
        self.endpoint = Some(endpoint);
        self.verdict = Verdict::Success;
        if self.state.observes() {
            self.clock = Some(Box::new(Clock::Began(Instant::now())));
        }
        let slot = self.state.slot(endpoint);
        self.state.begin_attempt(endpoint);
        if self.span.is_some() {
            let name = self.state.name().as_str();
            let headers = &mut outgoing.head_mut().headers;
            self.span
                .start_attempt(self.attempts, name, slot.address(), headers);
        }
        slot.service()
    }

    /// Where the current attempt goes.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        Some(self.state.slot(self.endpoint?).address())
    }

    /// The attempt came to this on its endpoint.
    pub(crate) fn judge_attempt(&mut self, outcome: Outcome) {
        self.verdict = outcome.verdict();
    }

    /// The attempt is over.
    pub(crate) fn end_attempt(&mut self, code: Code) {
        self.end_attempt_with(code, None);
    }

    #[inline]
    fn end_attempt_with(&mut self, code: Code, report: Option<&LoadReport>) {
        if let Some(endpoint) = self.endpoint.take() {
            let latency = self.clock.take().map(|mut clock| clock.stop());
            self.state
                .end_attempt(endpoint, self.verdict, latency, report);
            self.span.end_attempt(code);
        }
    }

    /// Tells a gRPC server how much of the deadline is left.
    #[inline]
    pub(crate) fn cap_grpc_timeout(&self, headers: &mut HeaderMap, now: Instant) {
        if let (Protocol::Grpc, Some(deadline)) = (self.protocol, self.deadline) {
            let left = deadline.saturating_duration_since(now);
            headers.insert(GRPC_TIMEOUT.clone(), context::format_grpc_timeout(left));
        }
    }

    /// There is a response: the call goes on until it is [read](crate::ResponseBody::new).
    #[inline]
    pub(crate) fn respond<B>(&mut self, response: &mut Response<B>, outcome: Outcome) {
        self.outcome = outcome;
        // Its head is what counts if nobody reads on.
        self.judge_attempt(outcome);
        if let Some(clock) = &mut self.clock {
            clock.stop();
        }
        if self.extras.is_some() {
            self.finish_head(response);
        }
    }

    /// Makes the changes that the call's extras ask for.
    #[cold]
    fn finish_head<B>(&self, response: &mut Response<B>) {
        self.touch();
        if let Some(extras) = &self.extras {
            extras.apply(response, self.attempts, self.endpoint(), self.state.name());
        }
        if let Some(selected) = self.selected() {
            response.extensions_mut().insert(selected);
        }
    }

    /// Watches the request's body where the policy limits attempts without data.
    #[inline]
    pub(crate) fn watch_attempts(&mut self, policy: &RetryPolicy, outgoing: &mut Outgoing<'_>) {
        let limit = policy.extras.as_ref();
        if let Some(limit) = limit.and_then(|extras| extras.per_try_idle_timeout) {
            let idle = &mut self.extras.get_or_insert_default().idle;
            let idle = idle.get_or_insert_with(|| Idle::watch(outgoing));
            idle.attempt = Some(limit);
        }
    }

    fn idle(&self) -> Option<&Idle> {
        self.extras.as_ref()?.idle.as_ref()
    }

    /// Something was received.
    #[inline]
    pub(crate) fn touch(&self) {
        if let Some(idle) = self.idle() {
            idle.activity.touch();
        }
    }

    /// When the call ends if nothing is sent or received.
    #[inline]
    pub(crate) fn idle_at(&self, is_responding: bool) -> Option<Instant> {
        self.idle()?.stream_at(is_responding)
    }

    /// When an attempt with this limit ends if nothing is sent or received.
    pub(crate) fn attempt_idle_at(
        &self,
        limit: Option<Duration>,
        began: Instant,
    ) -> Option<Instant> {
        let last = self.idle()?.activity.last();
        last.max(began).checked_add(limit?)
    }

    /// Nothing was sent or received for too long.
    pub(crate) fn idle_error(&self) -> Error {
        let name = self.state.name();
        let reason =
            format!("cluster {name}: nothing was sent or received within the idle timeout");
        Error::new(ErrorKind::IdleTimeout, reason)
    }

    /// Counts an attempt beyond the first, and notes it in the call's span.
    pub(crate) fn note_extra(&self, extra: Extra, reason: &'static str) {
        self.state.calls().extra(extra);
        self.span.note_extra(extra, reason);
    }

    /// Runs `f` with the call's span as the current one, whose trace is recorded as `sampled` says, if
    /// it says so.
    pub(crate) fn within_span<T>(&self, sampled: Option<bool>, f: impl FnOnce() -> T) -> T {
        let _current = self.span.context_sampled(sampled).map(Context::attach);
        f()
    }

    /// What decides about the endpoint besides the cluster's policy.
    #[inline]
    pub(crate) fn affinity(&self) -> &Affinity {
        match &self.extras {
            Some(extras) => &extras.affinity,
            None => Affinity::NONE,
        }
    }

    /// Has the call go to the address that its request names, where the cluster's requests do.
    pub(crate) fn name_destination<B>(&mut self, request: &Request<B>) -> Result<(), Error> {
        if let Some(address) = self.state.name_destination(request)? {
            let affinity = &mut self.extras.get_or_insert_default().affinity;
            affinity.override_host = Some((address, true));
        }
        Ok(())
    }

    /// No response came in time.
    pub(crate) fn timed_out(&self) -> Error {
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return self.late("before the response");
        }
        let name = self.state.name();
        Error::new(
            ErrorKind::PerTryTimeout,
            format!("cluster {name}: no response within the per-try timeout"),
        )
    }

    /// The deadline passed.
    pub(crate) fn late(&self, when: &str) -> Error {
        let name = self.state.name();
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!("cluster {name}: the deadline passed {when}"),
        )
    }

    /// What a caller may want to know of how it was served, if it does.
    fn selected(&self) -> Option<SelectedEndpoint> {
        Some(SelectedEndpoint {
            route: Arc::clone(self.extras.as_ref()?.route.as_ref()?),
            address: self.endpoint()?,
            cluster: self.state.name().clone(),
            attempts: self.attempts,
        })
    }

    /// The call ends with an error, which is told where that was.
    pub(crate) fn fail(mut self, error: Error) -> Error {
        self.ended = Some(error.kind().into());
        if self.verdict == Verdict::Success {
            self.verdict = Verdict::LocalFailure;
        }
        error.with_attempt(self.attempts, self.endpoint())
    }

    /// The call ends with an answer of this process.
    pub(crate) fn answer(mut self, code: Code) {
        self.ended = Some(code);
    }

    /// The response was read to its end, with these trailers.
    pub(crate) fn complete(&mut self, trailers: Option<&HeaderMap>) {
        let status = trailers.and_then(grpc_status);
        if let Some(status) = status {
            self.outcome = Outcome::Grpc(status);
        }
        let code = self.outcome.into();
        if let Some(extras) = &mut self.extras {
            let now = Instant::now().into_std();
            extras
                .permits
                .drain(..)
                .for_each(|permit| permit.finish(now));
        }
        self.ended = Some(code);
        self.judge_attempt(self.outcome);
        // Most say nothing but the status.
        if let Some(trailers) = trailers
            && trailers.len() > usize::from(status.is_some())
            && self.state.wants_report()
        {
            let report = load_report(trailers);
            self.end_attempt_with(code, report.as_ref());
        }
    }
}

impl<M: MakeEndpoint> Drop for InFlight<M> {
    fn drop(&mut self) {
        let code = self.ended.unwrap_or(Code::Cancelled);
        self.end_attempt(code);
        self.state.release();
        if self.has_retry_permit {
            self.state.release_retry();
        }
        let latency = self.started.elapsed();
        self.state.calls().finish(self.protocol, code, latency);
        self.span.end(code);
    }
}
