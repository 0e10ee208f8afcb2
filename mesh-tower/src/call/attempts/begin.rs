//! What begins an attempt after the first: the retry policy, the hedge policy, or a request that
//! never left.

use std::time::{Duration, SystemTime};

use http::Request;
use mesh_core::{
    outcome::Outcome,
    retry::{Attempted, Pause, is_retriable, pause},
};
use tokio::time::Instant;

use super::{
    Attempts, Planned,
    lane::{Lane, Terms},
};
use crate::{
    Body,
    cluster::MakeEndpoint,
    in_flight::RetryPermit,
    rng,
    telemetry::{Code, Extra},
};

impl<M: MakeEndpoint> Attempts<M> {
    /// Begins the first attempt, and those that the hedge policy wants at once beside it.
    pub(super) fn begin_first(&mut self, request: Request<Body>) {
        let terms = self.first_terms(Instant::now());
        self.begin(request, terms);
        let hedge = self.hedge.as_ref();
        let more = hedge.map_or(0, |hedge| hedge.initial(&mut rng::fork()));
        for _ in 0..more {
            self.begin_beside();
        }
    }

    pub(super) fn first_terms(&self, began: Instant) -> Terms<M> {
        Terms {
            began,
            until: self.until,
            permit: None,
            transparent: 0,
            idle: self.again.as_ref().and_then(|again| again.idle_timeout()),
            is_first: true,
        }
    }

    fn begin(&mut self, request: Request<Body>, terms: Terms<M>) {
        let began = terms.began;
        let lane = Lane::begin(&mut self.call, request, terms, &mut self.previous);
        self.lanes.push(lane);
        if let Some(hedge) = &mut self.hedge {
            hedge.began(&self.call.state, began);
        }
    }

    /// Sends a request that never left to another endpoint, on the same terms.
    pub(super) fn begin_elsewhere(&mut self, request: Request<Body>, mut terms: Terms<M>) {
        terms.transparent += 1;
        self.call.state.calls().extra(Extra::Transparent);
        self.begin(request, terms);
    }

    /// The request again, when its server says that it did not look at it and did not give it back.
    pub(super) fn resend(&self, outcome: Outcome) -> Option<Request<Body>> {
        let is_refused = matches!(outcome, Outcome::Refused | Outcome::ConnectFailure);
        let again = self.again.as_ref().filter(|_| is_refused)?;
        let body = again.body(!self.lanes.is_empty())?;
        Some(again.request(body, &self.call, Instant::now()))
    }

    /// Begins the retry that was planned.
    pub(super) fn begin_retry(&mut self, planned: Planned<M>) {
        self.begin_with(planned.body, planned.permit);
    }

    /// Begins another attempt beside those under way, if the budget has room for it.
    pub(super) fn begin_beside(&mut self) {
        let Some(hedge) = &mut self.hedge else { return };
        if !hedge.take() {
            return;
        }
        let Some(again) = self
            .again
            .as_ref()
            .filter(|again| again.replay.can_repeat())
        else {
            return;
        };
        let Some(permit) = RetryPermit::acquire(&self.call.state) else {
            return self.call.state.calls().extra(Extra::OverBudget);
        };
        if let Some(body) = again.body(true) {
            self.call.note_extra(Extra::Hedge, "no response yet");
            self.begin_with(body, permit);
        }
    }

    fn begin_with(&mut self, body: Body, permit: RetryPermit<M>) {
        let Some(again) = &self.again else {
            unreachable!("a body to send again was kept")
        };
        let began = Instant::now();
        let terms = Terms {
            began,
            until: again.until(began, self.call.deadline),
            permit: Some(permit),
            transparent: 0,
            idle: again.idle_timeout(),
            is_first: false,
        };
        let request = again.request(body, &self.call, began);
        self.begin(request, terms);
    }

    /// When to try again after an attempt; `None` when the policy does not want to, or the deadline
    /// comes first. A policy `is_asked` also when it names no condition that holds.
    pub(super) fn retry_at(
        &mut self,
        attempted: &Attempted<'_>,
        is_asked: bool,
    ) -> Option<Instant> {
        let again = self.again.as_ref()?;
        let policy = &again.policy;
        if self.planned.is_some()
            || self.retries >= policy.num_retries
            || !is_asked && !is_retriable(policy, attempted)
            || !again.replay.can_repeat()
        {
            return None;
        }
        let rng = &mut rng::fork();
        let (wait, backoffs) = match pause(policy, self.backoffs + 1, attempted, unix_time(), rng) {
            Pause::Backoff(wait) => (wait, self.backoffs + 1),
            Pause::Asked(wait) => (wait, 0),
            Pause::Never => return None,
        };
        let at = Instant::now().checked_add(wait)?;
        if self.call.deadline.is_some_and(|deadline| at >= deadline) {
            return None;
        }
        self.backoffs = backoffs;
        Some(at)
    }

    /// Plans a retry, if the budget has room for it.
    pub(super) fn plan(&mut self, at: Instant, after: Outcome) {
        let Some(permit) = RetryPermit::acquire(&self.call.state) else {
            return self.call.state.calls().extra(Extra::OverBudget);
        };
        // From here on an attempt that has ended does not read the body any more.
        let beside = !self.lanes.is_empty();
        let body = self.again.as_ref().and_then(|again| again.body(beside));
        if let Some(body) = body {
            self.retries += 1;
            self.call
                .note_extra(Extra::Retry, Code::from(after).label());
            self.planned = Some(Planned { at, body, permit });
        }
    }
}

fn unix_time() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
}
