//! What a call holds from its first moment to the end of its response, given back exactly once.
//!
//! Stage 13. Permits, the endpoint's load, counters and spans have one owner: whoever drops it ends
//! the call. Dropped without having been ended it means that the caller went away.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::outcome::Outcome;
use tokio::time::Instant;

use crate::{
    Error, SelectedEndpoint,
    cluster::{ClusterRuntime, MakeEndpoint, Picked},
    listener::Local,
    telemetry::{AttemptSpan, CallSpan, Code, Protocol},
};

/// One call.
pub(crate) struct InFlight<M: MakeEndpoint> {
    pub(crate) local: Arc<Local<M>>,
    pub(crate) progress: Progress<M>,
}

/// How far a call has come.
pub(crate) struct Progress<M: MakeEndpoint> {
    pub(crate) started: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) protocol: Protocol,
    pub(crate) span: CallSpan,
    /// Indexes of the route and of the cluster, once a permit is held.
    pub(crate) chosen: Option<(u32, u32)>,
    pub(crate) has_retry_permit: bool,
    pub(crate) attempts: u32,
    pub(crate) attempt: Option<AttemptSpan>,
    pub(crate) picked: Option<Picked<M>>,
    outcome: Outcome,
    /// How the call ended; `None` while its response is not read to the end.
    ended: Option<Code>,
}

impl<M: MakeEndpoint> Progress<M> {
    /// Where the last attempt went.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.picked.as_ref().map(Picked::address)
    }

    /// The attempt failed on its endpoint.
    pub(crate) fn fail_attempt(&mut self) {
        if let Some(picked) = &mut self.picked {
            picked.fail();
        }
    }

    /// The attempt is over, and another follows.
    pub(crate) fn end_attempt(&mut self, code: Code) {
        if let Some(attempt) = self.attempt.take() {
            attempt.end(code);
        }
        self.picked = None;
    }

    /// There is a response.
    pub(crate) fn respond(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl<M: MakeEndpoint> InFlight<M> {
    pub(crate) fn begin(
        local: Arc<Local<M>>,
        started: Instant,
        protocol: Protocol,
        deadline: Option<Instant>,
        span: CallSpan,
    ) -> Self {
        Self {
            local,
            progress: Progress {
                started,
                deadline,
                protocol,
                span,
                chosen: None,
                has_retry_permit: false,
                attempts: 0,
                attempt: None,
                picked: None,
                outcome: Outcome::Reset,
                ended: None,
            },
        }
    }

    fn cluster(&self) -> Option<&ClusterRuntime<M>> {
        let (_, cluster) = self.progress.chosen?;
        Some(&self.local.ready()?.clusters[cluster as usize])
    }

    /// What a caller may want to know of how it was served.
    pub(crate) fn selected(&self) -> Option<SelectedEndpoint> {
        let (route, cluster) = self.progress.chosen?;
        let live = self.local.ready()?;
        Some(SelectedEndpoint {
            address: self.progress.endpoint()?,
            cluster: live.clusters[cluster as usize].name().clone(),
            route: Arc::clone(&live.snapshot.routes.routes()[route as usize].name),
            attempts: self.progress.attempts,
        })
    }

    /// The call ends with an error, which is told where that was.
    pub(crate) fn fail(mut self, error: Error) -> Error {
        let progress = &mut self.progress;
        progress.ended = Some(error.kind().into());
        progress.fail_attempt();
        error.with_attempt(progress.attempts, progress.endpoint())
    }

    /// The response was read to its end, where `status` stood in the trailers.
    pub(crate) fn complete(mut self, status: Option<u32>) {
        let progress = &mut self.progress;
        if let Some(status) = status {
            progress.outcome = Outcome::Grpc(status);
        }
        progress.ended = Some(progress.outcome.into());
        if !progress.outcome.is_success() {
            progress.fail_attempt();
        }
    }
}

impl<M: MakeEndpoint> Drop for InFlight<M> {
    fn drop(&mut self) {
        let code = self.progress.ended.unwrap_or(Code::Cancelled);
        self.progress.end_attempt(code);
        if let Some(cluster) = self.cluster() {
            cluster.release();
            if self.progress.has_retry_permit {
                cluster.release_retry();
            }
            let latency = self.progress.started.elapsed();
            cluster
                .calls()
                .finish(self.progress.protocol, code, latency);
        }
        self.progress.span.end(code);
    }
}
