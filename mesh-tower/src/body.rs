//! The request body that every endpoint takes, and its replay for retries.
//!
//! Stages 9 to 12. One body type for all callers lets gRPC channels and HTTP clients share
//! connections. A body that is empty or one buffer replays for free; a streaming body is recorded
//! while its first attempt sends it, without a copy, up to [`REPLAY_BYTES_MAX`].

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::BoxError;

/// Most bytes of a streaming body that are kept for a retry. A longer body is sent once.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

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
    pub(crate) fn share(&mut self) -> Replay {
        match &self.kind {
            Kind::Empty => return Replay::Free(Bytes::new()),
            Kind::Full(bytes) => return Replay::Free(bytes.clone()),
            Kind::Stream(_) | Kind::Begun(..) | Kind::Replay(_) => {}
        }
        let replay = Replay::Recorded(Arc::new(Mutex::new(Recording {
            source: std::mem::take(self),
            data: Vec::new(),
            trailers: None,
            bytes: 0,
            attempt: 0,
            ended: false,
            overflowed: false,
        })));
        *self = replay.attempt().unwrap_or_default();
        replay
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

/// A body that gives one [`Body`] for each attempt.
#[derive(Debug)]
pub(crate) enum Replay {
    /// Cloned for each attempt.
    Free(Bytes),
    /// Recorded while it is sent.
    Recorded(Arc<Mutex<Recording>>),
}

impl Replay {
    /// The body of the next attempt, from its beginning; `None` when it was too long to keep.
    pub(crate) fn attempt(&self) -> Option<Body> {
        match self {
            Self::Free(bytes) => Some(bytes.clone().into()),
            Self::Recorded(recording) => {
                let mut held = recording.lock().unwrap_or_else(PoisonError::into_inner);
                if held.overflowed {
                    return None;
                }
                held.attempt += 1;
                let attempt = held.attempt;
                drop(held);
                let attempt = ReplayAttempt {
                    recording: Arc::clone(recording),
                    attempt,
                    sent: 0,
                };
                Some(Body {
                    kind: Kind::Replay(attempt),
                })
            }
        }
    }

    /// Whether another attempt would have its body.
    pub(crate) fn can_repeat(&self) -> bool {
        match self {
            Self::Free(_) => true,
            Self::Recorded(recording) => {
                !recording
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .overflowed
            }
        }
    }
}

/// What was read of a streaming body so far.
#[derive(Debug)]
pub(crate) struct Recording {
    source: Body,
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    /// The newest attempt; bodies of older ones end with an error.
    attempt: u32,
    ended: bool,
    overflowed: bool,
}

struct ReplayAttempt {
    recording: Arc<Mutex<Recording>>,
    attempt: u32,
    sent: usize,
}

impl ReplayAttempt {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Uncontended: one attempt polls, and an older one only learns that it is older.
        let mut held = self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if held.attempt != self.attempt {
            return Poll::Ready(Some(Err(
                "a newer attempt took the request body over".into()
            )));
        }
        if let Some(data) = held.data.get(self.sent) {
            let data = data.clone();
            self.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if held.ended {
            let trailers = held
                .trailers
                .clone()
                .filter(|_| self.sent == held.data.len());
            self.sent = held.data.len() + 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        match ready!(Pin::new(&mut held.source).poll_frame(cx)) {
            None => {
                held.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                held.overflowed = true;
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                match frame.data_ref() {
                    Some(data) if held.overflowed || held.bytes + data.len() > REPLAY_BYTES_MAX => {
                        held.overflowed = true;
                        held.data = Vec::new();
                        self.sent = 0;
                    }
                    Some(data) => {
                        let data = data.clone();
                        held.bytes += data.len();
                        held.data.push(data);
                        self.sent += 1;
                    }
                    None => {
                        held.trailers = frame.trailers_ref().cloned();
                        held.ended = true;
                        self.sent = held.data.len() + 1;
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let held = self
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.attempt == self.attempt
            && self.sent >= held.data.len()
            && (held.ended && (held.trailers.is_none() || self.sent > held.data.len())
                || held.source.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn stream(chunks: &[usize], trailers: bool) -> Body {
        let mut frames: Vec<Result<_, BoxError>> = chunks
            .iter()
            .map(|n| Ok(Frame::data(Bytes::from(vec![b'x'; *n]))))
            .collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("t", http::HeaderValue::from_static("1"));
            frames.push(Ok(Frame::trailers(map)));
        }
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn length(body: Body) -> (usize, bool) {
        let all = body.collect().await.unwrap();
        let has_trailers = all.trailers().is_some();
        (all.to_bytes().len(), has_trailers)
    }

    #[tokio::test]
    async fn each_attempt_sends_the_whole_body_even_after_a_partial_one() {
        let mut first = stream(&[3, 4, 5], true);
        let replay = first.share();
        assert_eq!(
            first
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len(),
            3
        );
        let second = replay.attempt().unwrap();
        assert_eq!(length(second).await, (12, true));
        assert!(
            first.frame().await.unwrap().is_err(),
            "an older attempt may not go on"
        );
        assert_eq!(length(replay.attempt().unwrap()).await, (12, true));

        // One frame, however it comes, is one buffer.
        for mut body in [Body::from("abc"), stream(&[3], false)] {
            assert!(matches!(body.kind, Kind::Full(_)));
            let free = body.share();
            assert_eq!(length(body).await, (3, false));
            assert_eq!(length(free.attempt().unwrap()).await, (3, false));
        }
    }

    #[tokio::test]
    async fn a_body_at_the_bound_repeats_and_one_byte_more_does_not() {
        let mut body = stream(&[REPLAY_BYTES_MAX - 1, 1], false);
        let replay = body.share();
        assert_eq!(length(body).await.0, REPLAY_BYTES_MAX);
        assert!(replay.can_repeat());

        let mut body = stream(&[REPLAY_BYTES_MAX, 1, 1], false);
        let replay = body.share();
        assert_eq!(length(body).await.0, REPLAY_BYTES_MAX + 2);
        assert!(!replay.can_repeat() && replay.attempt().is_none());
    }
}
