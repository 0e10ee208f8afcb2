//! The response's body, which ends the call when it ends.
//!
//! Stage 13. A request counts as in flight until its response was read to the end, so that a long
//! stream is never mistaken for an idle endpoint. Dropping the body ends the call too.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_core::outcome::Outcome;
use tokio::time::{Instant, Sleep};

use crate::{
    Error, SelectedEndpoint,
    call::classify,
    cluster::{CircuitPermit, EndpointService, MakeEndpoint, Picked, RetryPermit},
    error::ErrorKind,
    record::CallRecord,
    telemetry::{AttemptSpan, Code, Protocol, grpc_status},
};

/// The body of a response. Errors are [`Error`].
pub struct ResponseBody<M: MakeEndpoint> {
    inner: <M::Endpoint as EndpointService>::ResponseBody,
    /// `None` once the call has ended.
    in_flight: Option<InFlight<M>>,
    deadline: Option<Instant>,
    /// Made only when the body has to be waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<M: MakeEndpoint> ResponseBody<M> {
    pub(crate) fn new(
        inner: <M::Endpoint as EndpointService>::ResponseBody,
        in_flight: InFlight<M>,
    ) -> Self {
        let mut body = Self {
            deadline: in_flight.deadline,
            inner,
            in_flight: Some(in_flight),
            sleep: None,
        };
        if body.inner.is_end_stream() {
            body.end(None);
        }
        body
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) {
        if let Some(mut in_flight) = self.in_flight.take() {
            if let Some(code) = trailers.and_then(grpc_status) {
                in_flight.outcome = Outcome::Grpc(code);
            }
            in_flight.complete();
        }
    }

    fn fail(&mut self, kind: ErrorKind, message: &str, source: Option<crate::BoxError>) -> Error {
        let mut error = Error::new(kind, message);
        if let Some(source) = source {
            error = error.with_source(source);
        }
        match self.in_flight.take() {
            Some(in_flight) => {
                let error = error.with_attempt(
                    in_flight.selected.attempts,
                    Some(in_flight.selected.address),
                );
                in_flight.fail(&error);
                error
            }
            None => error,
        }
    }

    /// Whether the deadline passed; registers for it otherwise.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline else {
            return false;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        sleep.as_mut().poll(cx).is_ready()
    }
}

impl<M: MakeEndpoint> Body for ResponseBody<M> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.end(Some(trailers));
                } else if this.inner.is_end_stream() {
                    this.end(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(source))) => {
                let source = source.into();
                let error = this.fail(ErrorKind::Reset, "the response broke off", Some(source));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.end(None);
                Poll::Ready(None)
            }
            Poll::Pending if this.is_late(cx) => {
                let message = "the deadline passed before the end of the response";
                let error = this.fail(ErrorKind::DeadlineExceeded, message, None);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<M: MakeEndpoint> std::fmt::Debug for ResponseBody<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody")
            .field("ended", &self.in_flight.is_none())
            .finish()
    }
}

/// What a call holds while it is in flight; dropping it ends the call.
pub(crate) struct InFlight<M: MakeEndpoint> {
    picked: Picked<M>,
    _permit: CircuitPermit,
    _retry: Option<RetryPermit>,
    attempt: Option<AttemptSpan>,
    record: Option<CallRecord>,
    selected: SelectedEndpoint,
    deadline: Option<Instant>,
    outcome: Outcome,
    /// How the call ended; `None` while its response is not read to the end.
    ended: Option<Code>,
}

impl<M: MakeEndpoint> InFlight<M> {
    pub(crate) fn new(
        picked: Picked<M>,
        (permit, retry): (CircuitPermit, Option<RetryPermit>),
        attempt: AttemptSpan,
        selected: SelectedEndpoint,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            picked,
            _permit: permit,
            _retry: retry,
            attempt: Some(attempt),
            record: None,
            selected,
            deadline,
            outcome: Outcome::Reset,
            ended: None,
        }
    }

    /// Takes over the call's record, now that there is a response.
    pub(crate) fn observe<B>(
        &mut self,
        record: CallRecord,
        response: &Response<B>,
        protocol: Protocol,
    ) {
        self.outcome = classify(response, protocol);
        self.record = Some(record);
    }

    pub(crate) fn selected(&self) -> SelectedEndpoint {
        self.selected.clone()
    }

    /// The call ends with an error.
    pub(crate) fn fail(mut self, error: &Error) {
        self.ended = Some(error.kind().into());
        self.picked.fail();
    }

    /// The response was read to its end.
    fn complete(mut self) {
        self.ended = Some(self.outcome.into());
        if !self.outcome.is_success() {
            self.picked.fail();
        }
    }
}

impl<M: MakeEndpoint> Drop for InFlight<M> {
    fn drop(&mut self) {
        let code = self.ended.unwrap_or(Code::Cancelled);
        if let Some(attempt) = self.attempt.take() {
            attempt.end(code);
        }
        if let Some(record) = self.record.take() {
            record.end(code);
        }
    }
}
