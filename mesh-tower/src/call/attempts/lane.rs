//! One of the attempts of a call, from its request to the head of its response.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Request;
use tokio::time::Instant;

use super::{
    super::{AttemptResult, CONNECTING_WAIT_MAX},
    previous::Previous,
};
use crate::{
    Body,
    cluster::{ClusterState, EndpointService, Exchange as _, MakeEndpoint, pick_later},
    error::Error,
    in_flight::{Attempt, InFlight, RetryPermit},
    outgoing::Outgoing,
};

type Exchange<M> = <<M as MakeEndpoint>::Endpoint as EndpointService>::Exchange;
type Picked<M> = Result<(Arc<ClusterState<M>>, u32), Error>;

/// On what terms an attempt is made.
pub(super) struct Terms<M: MakeEndpoint> {
    pub(super) began: Instant,
    /// When it is given up.
    pub(super) until: Option<Instant>,
    /// That of an attempt beyond the first.
    pub(super) permit: Option<RetryPermit<M>>,
    /// Times that it went to another endpoint because it never left.
    pub(super) transparent: u32,
    /// Limit without data in either direction.
    pub(super) idle: Option<Duration>,
    /// Whether it is the call's first.
    pub(super) is_first: bool,
}

/// An attempt that is under way.
pub(super) struct Lane<M: MakeEndpoint> {
    pub(super) stage: Stage<M>,
    pub(super) terms: Terms<M>,
}

/// How far it is.
pub(super) enum Stage<M: MakeEndpoint> {
    /// Its endpoints are connecting.
    Waiting {
        request: Option<Box<Request<Body>>>,
        picked: Pin<Box<dyn Future<Output = Picked<M>> + Send>>,
        until: Instant,
    },
    /// It was sent.
    Sent {
        attempt: Attempt<M>,
        exchange: Exchange<M>,
    },
    /// There is no endpoint.
    Failed(Option<Error>),
}

/// How an attempt ended: `Err` when there was none.
pub(super) type LaneResult<M> = Result<(Attempt<M>, AttemptResult<M>), Error>;

impl<M: MakeEndpoint> Lane<M> {
    /// Begins an attempt with `request` on the newest endpoints, and what `previous` does not avoid.
    pub(super) fn begin(
        call: &mut InFlight<M>,
        request: Request<Body>,
        terms: Terms<M>,
        previous: &mut Previous,
    ) -> Self {
        let newest = call.state.newest();
        let state = newest.unwrap_or_else(|| Arc::clone(&call.state));
        let is_retry = !terms.is_first;
        let stage = match previous.pick(&state, call.affinity(), is_retry) {
            Some(Ok(endpoint)) => Stage::send(call, state, endpoint, request, previous),
            Some(Err(error)) => Stage::Failed(Some(error)),
            None => {
                let (previous, affinity) = (previous.clone(), call.affinity().clone());
                let pick = move |state: &ClusterState<M>| previous.pick(state, &affinity, is_retry);
                Stage::Waiting {
                    request: Some(Box::new(request)),
                    picked: Box::pin(pick_later(state, pick)),
                    until: terms.began + CONNECTING_WAIT_MAX,
                }
            }
        };
        Self { stage, terms }
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { until, .. } => self.terms.until.or(Some(*until)),
            Stage::Sent { .. } | Stage::Failed(_) => self.terms.until,
        }
    }

    /// Whether its response, or the reason why there is none, is there. Not polled again then.
    pub(super) fn poll(
        &mut self,
        call: &mut InFlight<M>,
        previous: &mut Previous,
        cx: &mut Context<'_>,
    ) -> Poll<Result<AttemptResult<M>, Error>> {
        loop {
            match &mut self.stage {
                Stage::Waiting {
                    request, picked, ..
                } => {
                    let (state, endpoint) = ready!(picked.as_mut().poll(cx))?;
                    let Some(request) = request.take() else {
                        unreachable!("it is sent once")
                    };
                    self.stage = Stage::send(call, state, endpoint, *request, previous);
                }
                Stage::Sent { exchange, .. } => {
                    return Poll::Ready(Ok(match ready!(exchange.poll_response(cx)) {
                        Ok(response) => AttemptResult::Response(response),
                        Err(error) => AttemptResult::Failed(error),
                    }));
                }
                Stage::Failed(error) => {
                    return match error.take() {
                        Some(error) => Poll::Ready(Err(error)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl<M: MakeEndpoint> Stage<M> {
    fn send(
        call: &mut InFlight<M>,
        state: Arc<ClusterState<M>>,
        endpoint: u32,
        request: Request<Body>,
        previous: &mut Previous,
    ) -> Self {
        let mut outgoing = Outgoing::new(request);
        let (attempt, exchange) = call.dispatch_beside(state, endpoint, &mut outgoing);
        previous.extend(attempt.address());
        Self::Sent { attempt, exchange }
    }
}
