//! The attempts of a call that one attempt on a ready endpoint does not answer.
//!
//! Stages 10 to 12: waits for an endpoint that is connecting, sends a request that never left to
//! another endpoint, and repeats what the retry policy says.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Request};
use mesh_core::{
    outcome::Outcome,
    retry::{backoff, is_retriable},
};
use tokio::time::Instant;

use super::{Again, AttemptResult, CONNECTING_WAIT_MAX, CallResult, earlier};
use crate::{
    Body,
    cluster::{EndpointService, Exchange as _, MakeEndpoint, pick_later},
    error::{Error, ErrorKind},
    in_flight::InFlight,
    outgoing::Outgoing,
    rng,
    telemetry::Protocol,
    within::within,
};

/// Times that a request which never left is sent again, outside of the retry policy: as many as
/// there are connections that can close under it in a rolling restart, but bounded (gRFC A6 calls
/// these transparent retries).
pub const TRANSPARENT_RETRIES_MAX: u32 = 5;

/// The attempts of one call.
pub(super) struct Attempts<M: MakeEndpoint> {
    in_flight: InFlight<M>,
    again: Option<Box<Again>>,
    /// When the current attempt ends.
    until: Option<Instant>,
    /// Times that the current attempt went to another endpoint.
    transparent: u32,
    retries: u32,
    /// Endpoints that were tried.
    previous: Vec<SocketAddr>,
}

/// What there is to do.
pub(super) enum Next<M: MakeEndpoint> {
    /// A request to send.
    Send(Request<Body>),
    /// A result to look at.
    Judge(AttemptResult<M>),
}

impl<M: MakeEndpoint> Attempts<M> {
    pub(super) fn new(
        in_flight: InFlight<M>,
        again: Option<Box<Again>>,
        until: Option<Instant>,
    ) -> Self {
        Self {
            in_flight,
            again,
            until,
            transparent: 0,
            retries: 0,
            previous: Vec::new(),
        }
    }

    /// Goes on until there is a response or nothing is left to try.
    pub(super) async fn run(mut self, mut next: Next<M>) -> CallResult<M> {
        loop {
            let result = match next {
                Next::Judge(result) => result,
                Next::Send(request) => match self.send(request).await {
                    Ok(result) => result,
                    Err(error) => return Err(self.in_flight.fail(error)),
                },
            };
            let outcome = result.outcome(self.in_flight.protocol);
            if outcome.is_success() {
                return result.end(self.in_flight, outcome);
            }
            self.in_flight.judge_attempt(outcome);
            self.avoid();
            let result = match self.resend(result, outcome) {
                Ok(request) => {
                    next = Next::Send(request);
                    continue;
                }
                Err(result) => result,
            };
            let Some(pause) = self.permit_retry(outcome) else {
                return result.end(self.in_flight, outcome);
            };
            drop(result);
            self.in_flight.end_attempt(outcome.into());
            self.in_flight.state.calls().retry();
            tokio::time::sleep(pause).await;
            next = Next::Send(self.again());
        }
    }

    /// Sends the request to one endpoint.
    async fn send(&mut self, request: Request<Body>) -> Result<AttemptResult<M>, Error> {
        let endpoint = self.pick().await?;
        let mut outgoing = Outgoing::new(request, None);
        let service = self.in_flight.begin_attempt(endpoint, &mut outgoing);
        let mut exchange = service.dispatch(&mut outgoing);
        // Its future must not hold it: a request may not be shared between threads.
        drop(outgoing);
        let response = std::future::poll_fn(|cx| exchange.poll_response(cx));
        Ok(match within(self.until, response).await {
            Some(Ok(response)) => AttemptResult::Response(response),
            Some(Err(error)) => AttemptResult::Failed(error),
            None => AttemptResult::TimedOut,
        })
    }

    /// The request, when it never left and can go to another endpoint.
    fn resend(
        &mut self,
        result: AttemptResult<M>,
        outcome: Outcome,
    ) -> Result<Request<Body>, AttemptResult<M>> {
        let AttemptResult::Failed(mut error) = result else {
            return Err(result);
        };
        if self.transparent == TRANSPARENT_RETRIES_MAX {
            return Err(AttemptResult::Failed(error));
        }
        let Some(request) = error.take_unsent() else {
            return Err(AttemptResult::Failed(error));
        };
        self.transparent += 1;
        self.in_flight.end_attempt(outcome.into());
        self.renew();
        Ok(request)
    }

    /// Takes a permit for a retry, if the policy wants one; that of an earlier one is given back
    /// before. Returns the pause before it, `None` also when the deadline comes first.
    fn permit_retry(&mut self, outcome: Outcome) -> Option<Duration> {
        let Again { policy, replay, .. } = &**self.again.as_ref()?;
        if self.retries >= policy.num_retries
            || !is_retriable(policy, outcome)
            || !replay.can_repeat()
        {
            return None;
        }
        let pause = backoff(&policy.backoff, self.retries + 1, &mut rng::fork());
        let is_late = |deadline| Instant::now() + pause >= deadline;
        if self.in_flight.deadline.is_some_and(is_late) {
            return None;
        }
        let in_flight = &mut self.in_flight;
        if std::mem::take(&mut in_flight.has_retry_permit) {
            in_flight.state.release_retry();
        }
        in_flight.has_retry_permit = in_flight.state.acquire_retry();
        in_flight.has_retry_permit.then_some(pause)
    }

    /// The request of the next attempt, which begins now.
    fn again(&mut self) -> Request<Body> {
        let Some(again) = &self.again else {
            unreachable!("a retry has a policy")
        };
        let Some(body) = again.replay.attempt() else {
            unreachable!("a body that cannot be repeated is not")
        };
        self.retries += 1;
        self.transparent = 0;
        let now = Instant::now();
        let limit = again.policy.per_try_timeout.map(|limit| now + limit);
        self.until = earlier(limit, self.in_flight.deadline);
        let mut request = again.head.request(body);
        let headers = request.headers_mut();
        self.in_flight.cap_grpc_timeout(headers, now);
        if self.in_flight.protocol == Protocol::Grpc {
            headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(self.retries));
        }
        self.renew();
        request
    }

    /// Takes the newest endpoints for the next attempt.
    fn renew(&mut self) {
        if let Some(newest) = self.in_flight.state.newest() {
            self.in_flight.state = newest;
        }
    }

    /// Later attempts go elsewhere while they can.
    fn avoid(&mut self) {
        if self.previous.len() == PREVIOUS_MAX {
            self.previous.remove(0);
        }
        self.previous.extend(self.in_flight.endpoint());
    }

    /// Picks an endpoint, waiting for one that is connecting, but not without bound.
    async fn pick(&mut self) -> Result<u32, Error> {
        let mut rng = rng::fork();
        let state = &self.in_flight.state;
        if let Some(decided) = state.pick(&mut rng, &self.previous, self.in_flight.affinity()) {
            return decided;
        }
        let until = self.until;
        let bound = until.unwrap_or_else(|| Instant::now() + CONNECTING_WAIT_MAX);
        let affinity = self.in_flight.affinity();
        let later = pick_later(Arc::clone(state), &mut rng, &self.previous, affinity);
        match within(Some(bound), later).await {
            Some(picked) => {
                let (state, endpoint) = picked?;
                self.in_flight.state = state;
                Ok(endpoint)
            }
            None if until.is_some() && until == self.in_flight.deadline => {
                Err(self.in_flight.late("while connecting"))
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
}

/// Endpoints that a retry avoids at most.
const PREVIOUS_MAX: usize = 8;

/// Sent with gRPC retries (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
