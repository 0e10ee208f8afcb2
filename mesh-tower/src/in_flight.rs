//! What a call holds from its permit to the end of its response, given back exactly once.
//!
//! Stage 13. The permits, the endpoint's load, counters and spans have one owner: whoever drops it
//! ends the call. Dropped without having been ended it means that the caller went away.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::outcome::Outcome;
use tokio::time::Instant;

use crate::{
    Error, SelectedEndpoint,
    cluster::{ClusterState, MakeEndpoint},
    telemetry::{AttemptSpan, CallSpan, Code, Protocol},
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
    /// The route's name, when it is to be reported.
    pub(crate) route: Option<Arc<str>>,
    span: CallSpan,
    attempt: Option<Attempt>,
    outcome: Outcome,
    /// How the call ended; `None` while its response is not read to the end.
    ended: Option<Code>,
}

/// One request on one endpoint.
struct Attempt {
    /// Of the endpoint in the cluster's state.
    endpoint: u32,
    is_failed: bool,
    span: AttemptSpan,
}

impl<M: MakeEndpoint> InFlight<M> {
    /// A call that was permitted by `state`.
    pub(crate) fn begin(
        state: Arc<ClusterState<M>>,
        started: Instant,
        deadline: Option<Instant>,
        protocol: Protocol,
        span: CallSpan,
    ) -> Self {
        span.set_cluster(state.name().as_str());
        state.calls().start();
        Self {
            state,
            started,
            deadline,
            protocol,
            has_retry_permit: false,
            attempts: 0,
            route: None,
            span,
            attempt: None,
            outcome: Outcome::Reset,
            ended: None,
        }
    }

    /// Begins an attempt on an endpoint of the state.
    pub(crate) fn begin_attempt(&mut self, endpoint: u32, headers: &mut http::HeaderMap) {
        self.attempts += 1;
        let slot = self.state.slot(endpoint);
        slot.begin();
        let name = self.state.name().as_str();
        let span = &self.span;
        self.attempt = Some(Attempt {
            endpoint,
            is_failed: false,
            span: span.start_attempt(self.attempts, name, slot.address(), headers),
        });
    }

    /// What sends the current attempt.
    pub(crate) fn service(&self) -> Option<&M::Endpoint> {
        let attempt = self.attempt.as_ref()?;
        Some(self.state.slot(attempt.endpoint).service())
    }

    /// Where the current attempt goes.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        let attempt = self.attempt.as_ref()?;
        Some(self.state.slot(attempt.endpoint).address())
    }

    /// The attempt failed on its endpoint.
    pub(crate) fn fail_attempt(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.is_failed = true;
        }
    }

    /// The attempt is over.
    pub(crate) fn end_attempt(&mut self, code: Code) {
        if let Some(attempt) = self.attempt.take() {
            self.state.slot(attempt.endpoint).end(!attempt.is_failed);
            attempt.span.end(code);
        }
    }

    /// There is a response.
    pub(crate) fn respond(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// What a caller may want to know of how it was served, if it does.
    pub(crate) fn selected(&self) -> Option<SelectedEndpoint> {
        Some(SelectedEndpoint {
            route: Arc::clone(self.route.as_ref()?),
            address: self.endpoint()?,
            cluster: self.state.name().clone(),
            attempts: self.attempts,
        })
    }

    /// The call ends with an error, which is told where that was.
    pub(crate) fn fail(mut self, error: Error) -> Error {
        self.ended = Some(error.kind().into());
        self.fail_attempt();
        error.with_attempt(self.attempts, self.endpoint())
    }

    /// The response was read to its end, where `status` stood in the trailers.
    pub(crate) fn complete(mut self, status: Option<u32>) {
        if let Some(status) = status {
            self.outcome = Outcome::Grpc(status);
        }
        self.ended = Some(self.outcome.into());
        if !self.outcome.is_success() {
            self.fail_attempt();
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
