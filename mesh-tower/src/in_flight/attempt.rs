//! Attempts that are not their call's own yet.
//!
//! The first attempt of a call is part of it. Those that follow, and those that run side by side, are
//! counted on their endpoints on their own; the one whose response the caller gets becomes its call's.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::outcome::{Outcome, Verdict};
use tokio::time::Instant;

use super::{Clock, InFlight};
use crate::{
    cluster::{ClusterState, EndpointService, MakeEndpoint},
    outgoing::Outgoing,
    telemetry::{AttemptSpan, Code},
};

/// An attempt that is under way, counted on its endpoint. Dropped, it was given up: another one
/// answered first, or the caller went away.
pub(crate) struct Attempt<M: MakeEndpoint> {
    /// `None` once it has ended or is its call's.
    open: Option<Open<M>>,
}

struct Open<M: MakeEndpoint> {
    state: Arc<ClusterState<M>>,
    endpoint: u32,
    clock: Option<Box<Clock>>,
    span: AttemptSpan,
}

impl<M: MakeEndpoint> Open<M> {
    fn end(mut self, verdict: Verdict, code: Code) {
        let latency = self.clock.take().map(|mut clock| clock.stop());
        self.state
            .end_attempt(self.endpoint, verdict, latency, None);
        self.span.end(code);
    }
}

impl<M: MakeEndpoint> Attempt<M> {
    /// Where it goes.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let open = self.open.as_ref()?;
        Some(open.state.slot(open.endpoint).address())
    }

    /// It came to this, and is over.
    pub(crate) fn end(mut self, outcome: Outcome) {
        if let Some(open) = self.open.take() {
            open.end(outcome.verdict(), outcome.into());
        }
    }
}

impl<M: MakeEndpoint> Drop for Attempt<M> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.end(Verdict::Abandoned, Code::Cancelled);
        }
    }
}

impl<M: MakeEndpoint> InFlight<M> {
    /// Begins an attempt on an endpoint of `state` beside what else is under way, and sends it.
    pub(crate) fn dispatch_beside(
        &mut self,
        state: Arc<ClusterState<M>>,
        endpoint: u32,
        outgoing: &mut Outgoing<'_>,
    ) -> (Attempt<M>, <M::Endpoint as EndpointService>::Exchange) {
        if let Some(extras) = &self.extras {
            extras.change_attempt(outgoing, self.attempts + 1, || state.hostname(endpoint));
        }
        self.attempts += 1;
        let observes = state.observes();
        let slot = state.slot(endpoint);
        state.begin_attempt(endpoint);
        let (name, headers) = (state.name().as_str(), &mut outgoing.head_mut().headers);
        let span = self
            .span
            .start_attempt_beside(self.attempts, name, slot.address(), headers);
        let exchange = slot.service().dispatch(outgoing);
        let open = Some(Open {
            clock: observes.then(|| Box::new(Clock::Began(Instant::now()))),
            state,
            endpoint,
            span,
        });
        (Attempt { open }, exchange)
    }

    /// Takes the call's own attempt out, so that others can follow it.
    pub(crate) fn detach(&mut self) -> Attempt<M> {
        let open = self.endpoint.take().map(|endpoint| Open {
            state: Arc::clone(&self.state),
            endpoint,
            clock: self.clock.take(),
            span: self.span.detach_attempt(),
        });
        Attempt { open }
    }

    /// Makes the attempt the call's own: its response is the call's.
    pub(crate) fn adopt(&mut self, mut attempt: Attempt<M>) {
        if let Some(open) = attempt.open.take() {
            self.end_attempt(Code::Cancelled);
            self.state = open.state;
            self.endpoint = Some(open.endpoint);
            self.clock = open.clock;
            self.verdict = Verdict::Success;
            self.span.adopt_attempt(open.span);
        }
    }
}

/// A permit for an attempt beyond the first, given back when it is dropped.
pub(crate) struct RetryPermit<M: MakeEndpoint> {
    /// `None` when its call holds it.
    state: Option<Arc<ClusterState<M>>>,
}

impl<M: MakeEndpoint> RetryPermit<M> {
    /// `None` when the cluster's budget is used up.
    pub(crate) fn acquire(state: &Arc<ClusterState<M>>) -> Option<Self> {
        state.acquire_retry().then(|| Self {
            state: Some(Arc::clone(state)),
        })
    }
}

impl<M: MakeEndpoint> InFlight<M> {
    /// Holds the permit until the call ends.
    pub(crate) fn keep(&mut self, mut permit: RetryPermit<M>) {
        if !self.has_retry_permit && permit.state.take().is_some() {
            self.has_retry_permit = true;
        }
    }
}

impl<M: MakeEndpoint> Drop for RetryPermit<M> {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.release_retry();
        }
    }
}
