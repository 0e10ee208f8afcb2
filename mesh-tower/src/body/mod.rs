//! The request body that every endpoint takes, and what is made of it for more than one of them.
//!
//! Stages 9 to 12. One body type for all callers lets gRPC channels and HTTP clients share
//! connections. A body that is empty or one buffer is sent again, and mirrored, for nothing. One that
//! streams is [recorded](replay) for other attempts, and [teed](tee) for mirrors, while it is sent:
//! its buffers are shared, not copied.

mod activity;
mod replay;
mod tee;

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use self::replay::ReplayAttempt;
pub(crate) use self::{activity::Activity, replay::Replay};
pub use self::{replay::REPLAY_BYTES_MAX, tee::MIRROR_LAG_BYTES_MAX};
use crate::BoxError;

/// A request body.
pub struct Body {
    kind: Kind,
}

type Stream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>;

enum Kind {
    Empty,
    Full(Bytes),
    Stream(Stream),
    /// A stream of which something was read already.
    Begun(VecDeque<Result<Frame<Bytes>, BoxError>>, Stream),
    Replay(ReplayAttempt),
}

/// Why a body cannot be held back.
#[derive(Debug)]
pub(crate) enum HoldBackError {
    /// It is longer than what may be kept of it.
    TooLong,
    /// Whoever gives it failed.
    Failed(BoxError),
}

impl From<BoxError> for HoldBackError {
    fn from(error: BoxError) -> Self {
        match error.is::<LengthLimitError>() {
            true => Self::TooLong,
            false => Self::Failed(error),
        }
    }
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self { kind: Kind::Empty }
    }

    /// Any body. What it has at hand is taken at once: a body that turns out to be one buffer, as
    /// a unary gRPC request's does, is one from then on, and costs nothing to send again.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Bodies that are known keep what is known of them, and their one allocation.
        let mut body = Some(body);
        let known = &mut body as &mut dyn Any;
        if let Some(ours) = known.downcast_mut::<Option<Self>>() {
            return ours.take().unwrap_or_default();
        }
        if let Some(full) = known.downcast_mut::<Option<http_body_util::Full<Bytes>>>() {
            return full.take().map(Self::eager).unwrap_or_default();
        }
        match body {
            Some(body) if !body.is_end_stream() => Self::eager(Box::pin(body)),
            _ => Self::empty(),
        }
    }

    /// [`new`](Self::new) for a body that can be moved: one buffer costs no allocation.
    pub fn eager<B>(mut body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        // Whoever polls later registers a waker of its own.
        let mut cx = Context::from_waker(Waker::noop());
        let mut ahead = None::<Bytes>;
        loop {
            if body.is_end_stream() {
                return ahead.unwrap_or_default().into();
            }
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(None) => return ahead.unwrap_or_default().into(),
                Poll::Ready(Some(Ok(frame))) if frame.is_data() && ahead.is_none() => {
                    ahead = frame.into_data().ok();
                }
                Poll::Ready(Some(other)) => {
                    let second = other.map_err(Into::into);
                    return Self::begun(ahead, Some(second), body);
                }
                Poll::Pending => return Self::begun(ahead, None, body),
            }
        }
    }

    fn begun<B>(
        first: Option<Bytes>,
        second: Option<Result<Frame<Bytes>, BoxError>>,
        rest: B,
    ) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let rest: Stream = Box::pin(http_body_util::BodyExt::map_err(rest, Into::into));
        let first = first.map(|data| Ok(Frame::data(data)));
        let ahead: VecDeque<_> = first.into_iter().chain(second).collect();
        let kind = match ahead.is_empty() {
            true => Kind::Stream(rest),
            false => Kind::Begun(ahead, rest),
        };
        Self { kind }
    }

    /// Waits until all of it is there, `max` bytes at most. A body without trailers is one buffer from
    /// then on.
    pub(crate) async fn hold_back(&mut self, max: usize) -> Result<(), HoldBackError> {
        if let Kind::Empty = &self.kind {
            return Ok(());
        }
        let limited = Limited::new(std::mem::take(self), max);
        let collected = limited.collect().await.map_err(HoldBackError::from)?;
        *self = match collected.trailers() {
            None => collected.to_bytes().into(),
            Some(_) => Self::new(collected),
        };
        Ok(())
    }

    /// The whole body, when it is one buffer or none.
    pub(crate) fn take_buffer(&mut self) -> Option<Bytes> {
        match &mut self.kind {
            Kind::Empty => Some(Bytes::new()),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Makes the body one that may be sent more than once; itself is the first attempt's.
    pub(crate) fn share(&mut self, bytes_max: usize) -> Replay {
        match &self.kind {
            Kind::Empty => Replay::Free(Bytes::new()),
            Kind::Full(bytes) => Replay::Free(bytes.clone()),
            Kind::Stream(_) | Kind::Begun(..) | Kind::Replay(_) => {
                let replay = Replay::record(std::mem::take(self), bytes_max);
                *self = replay.attempt().unwrap_or_default();
                replay
            }
        }
    }

    /// A copy, which gets what this body gives when it gives it.
    pub(crate) fn tee(&mut self) -> Self {
        match &self.kind {
            Kind::Empty => Self::empty(),
            Kind::Full(bytes) => bytes.clone().into(),
            Kind::Stream(_) | Kind::Begun(..) | Kind::Replay(_) => {
                let (body, copy) = tee::tee(std::mem::take(self));
                *self = Self::stream(body);
                Self::stream(copy)
            }
        }
    }

    /// Notes in `activity` when something of the body is sent.
    pub(crate) fn watch(&mut self, activity: &Arc<Activity>) {
        if let Kind::Stream(_) | Kind::Begun(..) | Kind::Replay(_) = &self.kind {
            let body = std::mem::take(self);
            *self = Self::stream(activity::Watched::new(body, Arc::clone(activity)));
        }
    }

    fn stream(body: impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self {
            kind: Kind::Stream(Box::pin(body)),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            kind: if bytes.is_empty() {
                Kind::Empty
            } else {
                Kind::Full(bytes)
            },
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(full)",
            Kind::Stream(_) | Kind::Begun(..) => "Body(stream)",
            Kind::Replay(_) => "Body(replay)",
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(body) => body.as_mut().poll_frame(cx),
            Kind::Begun(ahead, body) => match ahead.pop_front() {
                Some(frame) => Poll::Ready(Some(frame)),
                None => body.as_mut().poll_frame(cx),
            },
            Kind::Replay(attempt) => attempt.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Stream(body) => body.is_end_stream(),
            Kind::Begun(ahead, body) => ahead.is_empty() && body.is_end_stream(),
            Kind::Replay(attempt) => attempt.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(body) => body.size_hint(),
            // A content-length must not be less than what is sent.
            Kind::Begun(..) | Kind::Replay(_) => SizeHint::default(),
        }
    }
}
