//! The attempts of a call that one attempt on a ready endpoint does not answer.
//!
//! Stages 10 to 12: waits for an endpoint that is connecting, sends a request that never left to
//! another endpoint, repeats what the retry policy says, and begins attempts side by side where the
//! hedge policy wants them. One attempt after the other is the case of one lane. The first good
//! response wins; a failure is the answer only when nothing else is under way or to come.

mod again;
mod begin;
mod hedge;
mod lane;
mod previous;

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use mesh_core::{outcome::Outcome, retry::Attempted};
use tokio::time::{Instant, Sleep};

pub(super) use self::again::Again;
use self::{
    again::attempted,
    hedge::Hedge,
    lane::{Lane, LaneResult, Stage, Terms},
    previous::Previous,
};
use super::{AttemptResult, CallResult, earlier};
use crate::{
    Body,
    cluster::MakeEndpoint,
    error::{Error, ErrorKind},
    in_flight::{Attempt, InFlight, RetryPermit},
};

/// Times that a request which never left is sent again, outside of the retry policy: as many as
/// there are connections that can close under it in a rolling restart, but bounded (gRFC A6 calls
/// these transparent retries).
pub const TRANSPARENT_RETRIES_MAX: u32 = 5;

/// The attempts of one call.
pub(super) struct Attempts<M: MakeEndpoint> {
    call: InFlight<M>,
    again: Option<Box<Again>>,
    hedge: Option<Hedge>,
    /// Those under way, the oldest first.
    lanes: Vec<Lane<M>>,
    /// The retry that is to come.
    planned: Option<Planned<M>>,
    /// When the first attempt ends.
    until: Option<Instant>,
    retries: u32,
    /// Retries since a server said when to come.
    backoffs: u32,
    previous: Previous,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A retry that waits for its time.
struct Planned<M: MakeEndpoint> {
    at: Instant,
    body: Body,
    permit: RetryPermit<M>,
}

/// What there is to do first.
pub(super) enum Next<M: MakeEndpoint> {
    /// A request to send.
    Send(Request<Body>),
    /// A result of the call's own attempt to look at.
    Judge(AttemptResult<M>),
}

/// How it all ended.
enum Ended<M: MakeEndpoint> {
    Attempt(
        Attempt<M>,
        Option<RetryPermit<M>>,
        AttemptResult<M>,
        Outcome,
    ),
    Failed(Error),
}

/// A call whose attempts have come to something.
pub(super) struct Finished<M: MakeEndpoint> {
    pub(super) call: InFlight<M>,
    pub(super) again: Option<Box<Again>>,
    pub(super) result: Result<(AttemptResult<M>, Outcome), Error>,
}

impl<M: MakeEndpoint> Finished<M> {
    /// The call ends with it.
    pub(super) fn end(self) -> CallResult<M> {
        match self.result {
            Ok((result, outcome)) => result.end(self.call, outcome),
            Err(error) => Err(self.call.fail(error)),
        }
    }

    /// The call ends with the head of its response, which somebody else goes on with.
    pub(super) fn end_with_head(mut self) {
        if let Ok((AttemptResult::Response(mut response), outcome)) = self.result {
            self.call.respond(&mut response, outcome);
            self.call.complete(None);
        }
    }
}

/// What time brings.
#[derive(Clone, Copy)]
enum Due {
    Idle,
    Late(usize),
    Retry,
    Hedge,
}

impl<M: MakeEndpoint> Attempts<M> {
    pub(super) fn new(
        call: InFlight<M>,
        again: Option<Box<Again>>,
        until: Option<Instant>,
    ) -> Self {
        let hedge = call.extras.as_ref().and_then(|extras| extras.hedge);
        let policy = again.as_ref().and_then(|again| again.extras().cloned());
        Self {
            call,
            again,
            hedge: hedge.map(Hedge::new),
            lanes: Vec::new(),
            planned: None,
            until,
            retries: 0,
            backoffs: 0,
            previous: Previous::new(policy),
            timer: None,
        }
    }

    /// Goes on until there is a response or nothing is left to try.
    pub(super) async fn run(self, next: Next<M>) -> CallResult<M> {
        self.finish(next).await.end()
    }

    /// The same, before the call ends with it.
    pub(super) async fn finish(mut self, next: Next<M>) -> Finished<M> {
        let ended = match next {
            Next::Send(request) => match self.call.name_destination(&request) {
                Ok(()) => {
                    self.begin_first(request);
                    None
                }
                Err(error) => Some(Ended::Failed(error)),
            },
            Next::Judge(result) => {
                let attempt = self.call.detach();
                self.previous.extend(attempt.address());
                let terms = self.first_terms(Instant::now());
                self.ended(Ok((attempt, result)), terms)
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => std::future::poll_fn(|cx| self.poll(cx)).await,
        };
        let Self {
            mut call,
            again,
            lanes,
            ..
        } = self;
        // Resets their streams, and gives their permits back.
        drop(lanes);
        let result = match ended {
            Ended::Attempt(attempt, permit, result, outcome) => {
                call.adopt(attempt);
                if let Some(permit) = permit {
                    call.keep(permit);
                }
                Ok((result, outcome))
            }
            Ended::Failed(error) => Err(error),
        };
        Finished {
            call,
            again,
            result,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended<M>> {
        loop {
            let ended = match self.poll_lanes(cx) {
                Some((result, terms)) => self.ended(result, terms),
                None => match self.next_due() {
                    Some((at, due)) if at <= Instant::now() => self.act(due),
                    Some((at, _)) => {
                        if self.poll_timer(at, cx).is_pending() {
                            return Poll::Pending;
                        }
                        None
                    }
                    None => return Poll::Pending,
                },
            };
            if let Some(ended) = ended {
                return Poll::Ready(ended);
            }
        }
    }

    fn poll_timer(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }

    /// The first lane that has come to something.
    fn poll_lanes(&mut self, cx: &mut Context<'_>) -> Option<(LaneResult<M>, Terms<M>)> {
        let (call, previous) = (&mut self.call, &mut self.previous);
        let mut lanes = self.lanes.iter_mut().enumerate();
        let (index, result) =
            lanes.find_map(|(index, lane)| match lane.poll(call, previous, cx) {
                Poll::Ready(result) => Some((index, result)),
                Poll::Pending => None,
            })?;
        let Lane { stage, terms } = self.lanes.remove(index);
        let result = result.map(|result| match stage {
            Stage::Sent { attempt, .. } => (attempt, result),
            Stage::Waiting { .. } | Stage::Failed(_) => {
                unreachable!("only what was sent ends well")
            }
        });
        Some((result, terms))
    }

    /// What comes next if nobody answers.
    fn next_due(&self) -> Option<(Instant, Due)> {
        let idle = self.call.idle_at(false).map(|at| (at, Due::Idle));
        let lanes = self.lanes.iter().enumerate();
        let late = lanes.filter_map(|(index, lane)| {
            let idle = self.call.attempt_idle_at(lane.terms.idle, lane.terms.began);
            Some((earlier(lane.until(), idle)?, Due::Late(index)))
        });
        let retry = self.planned.as_ref().map(|retry| (retry.at, Due::Retry));
        let hedge = self.hedge.as_ref().and_then(|hedge| hedge.at);
        let hedge = hedge.map(|at| (at, Due::Hedge));
        let all = late.chain(idle).chain(retry).chain(hedge);
        all.min_by_key(|(at, _)| *at)
    }

    fn act(&mut self, due: Due) -> Option<Ended<M>> {
        match due {
            Due::Idle => return self.idle(),
            Due::Late(index) => return self.late(index),
            Due::Retry => {
                if let Some(planned) = self.planned.take() {
                    self.begin_retry(planned);
                }
            }
            Due::Hedge => self.begin_beside(),
        }
        None
    }

    /// Nothing was sent or received for too long.
    fn idle(&mut self) -> Option<Ended<M>> {
        let error = self.call.idle_error();
        let Lane { stage, .. } = match self.lanes.is_empty() {
            true => return Some(Ended::Failed(error)),
            false => self.lanes.remove(0),
        };
        match stage {
            // Its endpoint is the one that did not answer.
            Stage::Sent { attempt, .. } => self.call.adopt(attempt),
            Stage::Waiting { .. } | Stage::Failed(_) => {}
        }
        Some(Ended::Failed(error))
    }

    /// A lane took too long.
    fn late(&mut self, index: usize) -> Option<Ended<M>> {
        let deadline = self.call.deadline;
        let lane = &mut self.lanes[index];
        let is_last_word = deadline.is_some() && lane.terms.until == deadline;
        let goes_on = self
            .hedge
            .as_ref()
            .is_some_and(Hedge::is_on_per_try_timeout);
        if goes_on && !is_last_word && matches!(lane.stage, Stage::Sent { .. }) {
            lane.terms.until = deadline;
            lane.terms.idle = None;
            let outcome = Outcome::PerTryTimeout;
            if let Some(at) = self.retry_at(&Attempted::without_headers(outcome), true) {
                self.plan(at, outcome);
            }
            return None;
        }
        let Lane { stage, terms } = self.lanes.remove(index);
        let result = match stage {
            Stage::Sent { attempt, .. } => Ok((attempt, AttemptResult::TimedOut)),
            Stage::Waiting { .. } | Stage::Failed(_) if is_last_word => {
                Err(self.call.late("while connecting"))
            }
            Stage::Waiting { .. } | Stage::Failed(_) => {
                let name = self.call.state.name();
                let reason = format!("cluster {name}: still connecting to all of its endpoints");
                Err(Error::new(ErrorKind::NoEndpoint, reason))
            }
        };
        self.ended(result, terms)
    }

    /// An attempt has come to something; `None` when the call goes on.
    fn ended(&mut self, result: LaneResult<M>, terms: Terms<M>) -> Option<Ended<M>> {
        let is_last = |this: &Self| this.lanes.is_empty() && this.planned.is_none();
        let (attempt, mut result) = match result {
            Ok(ended) => ended,
            Err(error) => return is_last(self).then_some(Ended::Failed(error)),
        };
        let protocol = self.call.protocol;
        let outcome = result.outcome(protocol);
        let response = match &result {
            AttemptResult::Response(response) => Some(response),
            AttemptResult::Failed(_) | AttemptResult::TimedOut => None,
        };
        let is_rejected = match (&self.again, response) {
            (Some(again), Some(response)) => again.rejects(response, outcome, protocol),
            _ => false,
        };
        if response.is_some() && outcome.is_success() && !is_rejected {
            self.learn(&terms);
            return Some(Ended::Attempt(attempt, terms.permit, result, outcome));
        }
        let unsent = match &mut result {
            AttemptResult::Failed(error) if terms.transparent < TRANSPARENT_RETRIES_MAX => {
                error.take_unsent().or_else(|| self.resend(outcome))
            }
            _ => None,
        };
        if let Some(request) = unsent {
            attempt.end(outcome);
            self.begin_elsewhere(request, terms);
            return None;
        }
        // That of an earlier attempt is given back before another one is taken.
        drop(terms.permit);
        let response = match &result {
            AttemptResult::Response(response) => Some(response),
            AttemptResult::Failed(_) | AttemptResult::TimedOut => None,
        };
        let at = self.retry_at(&attempted(response, outcome, protocol), false);
        if let Some(at) = at {
            self.plan(at, outcome);
        }
        if is_last(self) {
            return Some(Ended::Attempt(attempt, None, result, outcome));
        }
        drop(result);
        attempt.end(outcome);
        None
    }

    /// Learns from the call's first attempt, which answered with `terms` or is under way still.
    fn learn(&self, terms: &Terms<M>) {
        let Some(hedge) = &self.hedge else { return };
        let mut all = self.lanes.iter().map(|lane| &lane.terms).chain([terms]);
        if let Some(first) = all.find(|terms| terms.is_first) {
            hedge.learn(&self.call.state, first.began);
        }
    }
}
