//! The body of a served response.
//!
//! It keeps what must outlive the response's head: the deadline of a stream, the context that the
//! application's stream runs in, and the record that ends with the last byte.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use mesh_core::filter::ConcurrencyPermit;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::{record::Record, refusal::Refusal, stream_watch::Watching};
use crate::{
    BoxError,
    context::RequestContext,
    telemetry::{Code, Protocol, grpc_status},
};

pin_project! {
    /// The body of a served response: the application's, or a refusal's.
    pub struct ServedBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        Full { bytes: Bytes },
        Streaming {
            #[pin]
            inner: B,
            guard: Option<Box<Guard>>,
        },
    }
}

/// What accompanies a stream until its end.
pub(super) struct Guard {
    pub(super) record: Record,
    pub(super) context: RequestContext,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// Where the stream's chain limits it.
    pub(super) watching: Option<Watching>,
    /// Given back with the last byte.
    pub(super) permits: Vec<ConcurrencyPermit>,
}

impl Guard {
    /// Whether the stream has to end, and how.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Some(Refusal::DEADLINE);
        }
        match self.watching.as_mut()?.poll_late(cx) {
            Poll::Ready(refusal) => Some(refusal),
            Poll::Pending => None,
        }
    }
}

impl Guard {
    /// The response was sent to its end.
    fn finish(&mut self) {
        if !self.permits.is_empty() {
            let now = tokio::time::Instant::now().into_std();
            self.permits.drain(..).for_each(|permit| permit.finish(now));
        }
    }

    fn end(mut self, code: Code) {
        self.finish();
        self.record.end(code);
    }
}

impl<B> ServedBody<B> {
    pub(super) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(super) fn full(bytes: Bytes) -> Self {
        Self {
            kind: Kind::Full { bytes },
        }
    }
}

impl<B: Body> ServedBody<B> {
    /// Wraps the application's body. `head` holds the headers of its response.
    pub(super) fn streaming(inner: B, head: &HeaderMap, status: u16, mut guard: Guard) -> Self {
        let code = match guard.record.protocol() {
            Protocol::Http => Some(Code::Http(status)),
            Protocol::Grpc => grpc_status(head).map(Code::Grpc),
        };
        if let (Protocol::Http, Some(code)) = (guard.record.protocol(), code) {
            guard.record.head(code);
        }
        if inner.is_end_stream() {
            // Hyper does not poll a body that has already ended.
            guard.end(code.unwrap_or(NO_STATUS));
            return Self {
                kind: Kind::Streaming { inner, guard: None },
            };
        }
        Self {
            kind: Kind::Streaming {
                inner,
                guard: Some(Box::new(guard)),
            },
        }
    }
}

impl<B> Body for ServedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProjection::Full { bytes } if bytes.is_empty() => Poll::Ready(None),
            KindProjection::Full { bytes } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            KindProjection::Streaming { inner, guard } => poll_streaming(inner, guard, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full { bytes } => bytes.is_empty(),
            Kind::Streaming { guard, .. } => guard.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streaming { inner, .. } => inner.size_hint(),
        }
    }
}

/// A stream without its guard has ended.
fn poll_streaming<B>(
    mut inner: Pin<&mut B>,
    held: &mut Option<Box<Guard>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let Some(guard) = held.as_deref_mut() else {
        return Poll::Ready(None);
    };
    let protocol = guard.record.protocol();
    if let Some(refusal) = guard.poll_late(cx) {
        end(held, refusal.code(protocol));
        return Poll::Ready(Some(match protocol {
            Protocol::Grpc => Ok(Frame::trailers(refusal.trailers())),
            Protocol::Http => Err(refusal.message().into()),
        }));
    }
    let polled = RequestContext::sync_scope(guard.context.clone(), || {
        let _current = guard.record.span().map(|span| span.enter());
        inner.as_mut().poll_frame(cx)
    });
    match ready!(polled) {
        None => {
            end_by_head(held, NO_STATUS);
            Poll::Ready(None)
        }
        Some(Err(error)) => {
            end(held, Code::Reset);
            Poll::Ready(Some(Err(error.into())))
        }
        Some(Ok(frame)) => {
            if let Some(watching) = &guard.watching {
                watching.touch();
            }
            if let Some(trailers) = frame.trailers_ref() {
                match (protocol, grpc_status(trailers)) {
                    (Protocol::Grpc, status) => {
                        end(held, status.map_or(NO_STATUS, Code::Grpc));
                    }
                    (Protocol::Http, _) => end_by_head(held, NO_STATUS),
                }
            } else if inner.is_end_stream() {
                end_by_head(held, NO_STATUS);
            }
            Poll::Ready(Some(Ok(frame)))
        }
    }
}

fn end(held: &mut Option<Box<Guard>>, code: Code) {
    if let Some(guard) = held.take() {
        guard.end(code);
    }
}

/// HTTP ends with the code of its head, gRPC with `code`.
fn end_by_head(held: &mut Option<Box<Guard>>, code: Code) {
    match held.take() {
        Some(guard) if guard.record.protocol() == Protocol::Grpc => guard.end(code),
        // The head's code is already noted.
        Some(mut guard) => guard.finish(),
        None => {}
    }
}

impl<B> fmt::Debug for ServedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Full { .. } => "ServedBody(full)",
            Kind::Streaming { .. } => "ServedBody(stream)",
        })
    }
}

/// A gRPC stream that ends without a status (gRPC: `UNKNOWN`).
const NO_STATUS: Code = Code::Grpc(2);
