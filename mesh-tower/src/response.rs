//! The response's body, which ends the call when it ends.
//!
//! Stage 13. A request counts as in flight until its response was read to the end, so that a long
//! stream is never mistaken for an idle endpoint. Dropping the body ends the call too.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use mesh_core::filter::ConcurrencyPermit;
use tokio::time::Sleep;

use crate::{
    Error,
    cluster::{EndpointService, MakeEndpoint},
    error::{AsError, ErrorKind, ShowError},
    in_flight::InFlight,
};

/// The body of a response. Errors are [`Error`], or what a [`ShowError`] makes of them.
pub struct ResponseBody<M: MakeEndpoint, S = AsError> {
    inner: Source<<M::Endpoint as EndpointService>::ResponseBody>,
    /// `None` once the call has ended.
    in_flight: Option<InFlight<M>>,
    /// Made only when the body has to be waited for.
    sleep: Option<Pin<Box<Sleep>>>,
    show: PhantomData<S>,
}

/// Where a body comes from.
enum Source<B> {
    Endpoint(B),
    /// This process, which has it whole.
    Local(Full<Bytes>),
}

impl<M: MakeEndpoint> ResponseBody<M> {
    /// The body of an answer that no endpoint gave.
    pub(crate) fn local(body: Bytes) -> Self {
        Self {
            inner: Source::Local(Full::new(body)),
            in_flight: None,
            sleep: None,
            show: PhantomData,
        }
    }

    /// Keeps permits until the call ends.
    pub(crate) fn hold(&mut self, permits: Vec<ConcurrencyPermit>) {
        match &mut self.in_flight {
            _ if permits.is_empty() => {}
            Some(in_flight) => in_flight.extras.get_or_insert_default().permits = permits,
            None => {
                let now = tokio::time::Instant::now().into_std();
                permits.into_iter().for_each(|permit| permit.finish(now));
            }
        }
    }

    /// The same body with its errors shown otherwise.
    pub(crate) fn shown_as<S>(self) -> ResponseBody<M, S> {
        ResponseBody {
            inner: self.inner,
            in_flight: self.in_flight,
            sleep: self.sleep,
            show: PhantomData,
        }
    }
}

impl<M: MakeEndpoint, S: ShowError> ResponseBody<M, S> {
    /// The body of a call's response, which ends here when there is nothing to read.
    #[inline]
    pub(crate) fn new(
        inner: <M::Endpoint as EndpointService>::ResponseBody,
        mut in_flight: Option<InFlight<M>>,
    ) -> Self {
        if inner.is_end_stream() {
            complete(&mut in_flight, None);
        }
        Self {
            inner: Source::Endpoint(inner),
            in_flight,
            sleep: None,
            show: PhantomData,
        }
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) {
        complete(&mut self.in_flight, trailers);
    }

    fn fail(
        &mut self,
        kind: ErrorKind,
        message: &str,
        source: Option<crate::BoxError>,
    ) -> S::Error {
        let mut error = Error::new(kind, message);
        if let Some(source) = source {
            error = error.with_source(source);
        }
        S::show(match self.in_flight.take() {
            Some(in_flight) => in_flight.fail(error),
            None => error,
        })
    }

    /// What passed, of the deadline and the limit without data; registers for both otherwise.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let Some(call) = &self.in_flight else {
            return Poll::Pending;
        };
        loop {
            let idle_at = call.idle_at(true);
            let all = [
                call.deadline.map(|at| (at, ErrorKind::DeadlineExceeded)),
                idle_at.map(|at| (at, ErrorKind::IdleTimeout)),
            ];
            let Some((at, kind)) = all.into_iter().flatten().min_by_key(|(at, _)| *at) else {
                return Poll::Pending;
            };
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // Data may have moved the limit.
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            std::task::ready!(sleep.as_mut().poll(cx));
            // Something may have been sent in between.
            if kind == ErrorKind::DeadlineExceeded || call.idle_at(true) == idle_at {
                return Poll::Ready(kind);
            }
        }
    }
}

/// The response was read to its end. The call ends where it is: moving it costs more than that.
#[inline]
fn complete<M: MakeEndpoint>(in_flight: &mut Option<InFlight<M>>, trailers: Option<&HeaderMap>) {
    if let Some(call) = in_flight {
        call.complete(trailers);
        *in_flight = None;
    }
}

impl<M: MakeEndpoint, S: ShowError> Body for ResponseBody<M, S> {
    type Data = Bytes;
    type Error = S::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, S::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.inner {
            Source::Endpoint(body) => Pin::new(body).poll_frame(cx),
            Source::Local(body) => {
                let polled = Pin::new(body).poll_frame(cx);
                return polled.map_err(|never| match never {});
            }
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(call) = &this.in_flight {
                    call.touch();
                }
                if let Some(trailers) = frame.trailers_ref() {
                    this.end(Some(trailers));
                } else if this.is_end_stream() {
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
            Poll::Pending => {
                let kind = std::task::ready!(this.poll_late(cx));
                let message = match kind {
                    ErrorKind::IdleTimeout => {
                        "nothing was sent or received within the idle timeout"
                    }
                    _ => "the deadline passed before the end of the response",
                };
                Poll::Ready(Some(Err(this.fail(kind, message, None))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Source::Endpoint(body) => body.is_end_stream(),
            Source::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Source::Endpoint(body) => body.size_hint(),
            Source::Local(body) => body.size_hint(),
        }
    }
}

impl<M: MakeEndpoint, S> std::fmt::Debug for ResponseBody<M, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody")
            .field("ended", &self.in_flight.is_none())
            .finish()
    }
}
