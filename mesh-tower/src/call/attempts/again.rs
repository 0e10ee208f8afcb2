//! What a call needs to send its request more than once.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Request, Response, uri::Scheme};
use mesh_core::{
    config::{RetryExtras, RetryPolicy},
    outcome::Outcome,
    retry::{Attempted, is_retriable, may_retry},
};
use tokio::time::Instant;

use crate::{
    Body, body::Replay, cluster::MakeEndpoint, head::Head, in_flight::InFlight, outgoing::Outgoing,
    telemetry::Protocol,
};

/// Sent with gRPC attempts that follow others (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// What a call needs to send its request more than once. Only a call that may do so has it.
pub(in crate::call) struct Again {
    pub(super) policy: RetryPolicy,
    head: Head,
    pub(super) replay: Replay,
}

impl Again {
    /// Keeps the head of a request and makes its body one that can be sent again, unless more than
    /// `bytes_max` of it were sent. Without a policy nothing is tried again.
    pub(in crate::call) fn keep(
        policy: Option<&RetryPolicy>,
        bytes_max: usize,
        outgoing: &mut Outgoing<'_>,
    ) -> Self {
        outgoing.make_absolute(Scheme::HTTP, || None);
        let mut policy = policy.cloned().unwrap_or_default();
        if policy.retry_on.is_empty() || !may_retry(&policy, &outgoing.head().headers) {
            policy.num_retries = 0;
        }
        Self {
            policy,
            head: Head::of(outgoing.head()),
            replay: outgoing.body_mut().share(bytes_max),
        }
    }

    /// Whether another attempt is wanted after this response.
    #[inline]
    pub(in crate::call) fn rejects<B>(
        &self,
        response: &Response<B>,
        outcome: Outcome,
        protocol: Protocol,
    ) -> bool {
        self.policy.num_retries > 0
            && is_retriable(&self.policy, &attempted(Some(response), outcome, protocol))
    }

    /// When an attempt that begins now is given up.
    pub(super) fn until(&self, now: Instant, deadline: Option<Instant>) -> Option<Instant> {
        let limit = self.policy.per_try_timeout.map(|limit| now + limit);
        super::super::earlier(limit, deadline)
    }

    /// What few policies ask for.
    pub(super) fn extras(&self) -> Option<&Arc<RetryExtras>> {
        self.policy.extras.as_ref()
    }

    /// Limit of each attempt without data in either direction.
    pub(in crate::call) fn idle_timeout(&self) -> Option<Duration> {
        self.extras()?.per_try_idle_timeout
    }

    /// The body of another attempt; those under way go on `beside` it or end.
    pub(in crate::call) fn body(&self, beside: bool) -> Option<Body> {
        match beside {
            true => self.replay.attempt_beside(),
            false => self.replay.attempt(),
        }
    }

    /// The request again as it was kept, without its body; `None` when that was not sent to its end
    /// and kept.
    pub(in crate::call) fn whole_request(&self) -> Option<Request<Body>> {
        self.replay
            .is_whole()
            .then(|| self.head.request(Body::empty()))
    }

    /// The request again.
    pub(super) fn request<M: MakeEndpoint>(
        &self,
        body: Body,
        call: &InFlight<M>,
        now: Instant,
    ) -> Request<Body> {
        let mut request = self.head.request(body);
        let headers = request.headers_mut();
        call.cap_grpc_timeout(headers, now);
        if call.protocol == Protocol::Grpc && call.attempts > 0 {
            headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(call.attempts));
        }
        request
    }
}

/// An attempt as the policy sees it.
pub(super) fn attempted<B>(
    response: Option<&Response<B>>,
    outcome: Outcome,
    protocol: Protocol,
) -> Attempted<'_> {
    Attempted {
        outcome,
        headers: response.map(Response::headers),
        is_grpc: protocol == Protocol::Grpc,
    }
}
