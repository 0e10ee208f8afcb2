//! One body for several attempts.
//!
//! A body that is empty or one buffer is cloned for each attempt. A streaming body is recorded while
//! it is sent, up to a limit; attempts side by side read one recording, each at its pace,
//! and whichever is first reads on from the source. A body that gets longer is sent to its end by the
//! attempt that is ahead, and by no other.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};

use super::{Body, Kind};
use crate::BoxError;

/// Most bytes of a streaming body that are kept for other attempts, unless the client or the route
/// say otherwise. A longer body is sent once.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A body that gives one [`Body`] for each attempt.
#[derive(Debug)]
pub(crate) enum Replay {
    /// Cloned for each attempt.
    Free(Bytes),
    /// Recorded while it is sent.
    Recorded(Arc<Mutex<Recording>>),
}

impl Replay {
    pub(super) fn record(source: Body, bytes_max: usize) -> Self {
        Self::Recorded(Arc::new(Mutex::new(Recording {
            source,
            bytes_max,
            data: Vec::new(),
            trailers: None,
            bytes: 0,
            newest: 0,
            live_from: 0,
            is_ended: false,
            is_overflowed: false,
            waiting: Vec::new(),
        })))
    }

    /// The body of the next attempt, from its beginning; `None` when it was too long to keep.
    /// Earlier attempts are over.
    pub(crate) fn attempt(&self) -> Option<Body> {
        self.next(true)
    }

    /// The same beside earlier attempts, which go on.
    pub(crate) fn attempt_beside(&self) -> Option<Body> {
        self.next(false)
    }

    fn next(&self, is_only: bool) -> Option<Body> {
        let recording = match self {
            Self::Free(bytes) => return Some(bytes.clone().into()),
            Self::Recorded(recording) => recording,
        };
        let mut held = lock(recording);
        if held.is_overflowed {
            return None;
        }
        held.newest += 1;
        if is_only {
            held.live_from = held.newest;
            held.wake();
        }
        let number = held.newest;
        drop(held);
        let recording = Arc::clone(recording);
        Some(Body {
            kind: Kind::Replay(ReplayAttempt {
                recording,
                number,
                sent: 0,
            }),
        })
    }

    /// Whether all of the body was sent and kept.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Free(_) => true,
            Self::Recorded(recording) => {
                let held = lock(recording);
                !held.is_overflowed && (held.is_ended || held.source.is_end_stream())
            }
        }
    }

    /// Whether another attempt would have its body.
    pub(crate) fn can_repeat(&self) -> bool {
        match self {
            Self::Free(_) => true,
            Self::Recorded(recording) => !lock(recording).is_overflowed,
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
    /// Most that is kept.
    bytes_max: usize,
    /// The number of the newest attempt, counted from 1.
    newest: u32,
    /// Bodies of attempts before this one end with an error.
    live_from: u32,
    is_ended: bool,
    /// Something is missing at its beginning, or its source failed.
    is_overflowed: bool,
    /// Attempts that wait for the source, which knows but the last one that asked.
    waiting: Vec<(u32, Waker)>,
}

impl Recording {
    fn wait(&mut self, number: u32, waker: &Waker) {
        match self.waiting.iter_mut().find(|(held, _)| *held == number) {
            Some((_, held)) => held.clone_from(waker),
            None => self.waiting.push((number, waker.clone())),
        }
    }

    fn wake(&mut self) {
        for (_, waker) in self.waiting.drain(..) {
            waker.wake();
        }
    }

    /// Keeps a frame, which the attempt `number` sends first.
    fn keep(&mut self, number: u32, frame: &Frame<Bytes>, is_alone: bool) {
        match frame.data_ref() {
            Some(data) => {
                self.bytes += data.len();
                if is_alone || self.bytes > self.bytes_max {
                    self.is_overflowed = true;
                    self.live_from = number;
                    // Those that are newer are behind it.
                    self.newest = number;
                    self.data = Vec::new();
                } else {
                    self.data.push(data.clone());
                }
            }
            None => {
                self.trailers = frame.trailers_ref().cloned();
                self.is_ended = true;
            }
        }
    }

    fn is_live(&self, number: u32) -> bool {
        (self.live_from..=self.newest).contains(&number)
    }
}

fn lock(recording: &Mutex<Recording>) -> MutexGuard<'_, Recording> {
    // Attempts side by side meet here for the length of one poll.
    recording.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of one attempt.
pub(super) struct ReplayAttempt {
    recording: Arc<Mutex<Recording>>,
    number: u32,
    /// Buffers of the recording that were sent; one more with its trailers.
    sent: usize,
}

impl Drop for ReplayAttempt {
    fn drop(&mut self) {
        let mut held = lock(&self.recording);
        held.waiting.retain(|(number, _)| *number != self.number);
        // It may be the one whom the source would have woken.
        held.wake();
    }
}

impl ReplayAttempt {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Nobody can ask for another attempt any more: nothing needs to be kept.
        let is_alone = Arc::strong_count(&self.recording) == 1;
        let mut held = lock(&self.recording);
        if !held.is_live(self.number) {
            return Poll::Ready(Some(Err(
                "another attempt took the request body over".into()
            )));
        }
        if let Some(data) = held.data.get(self.sent) {
            let data = data.clone();
            self.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if held.is_ended {
            let trailers = held
                .trailers
                .clone()
                .filter(|_| self.sent == held.data.len());
            self.sent = held.data.len() + 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Poll::Ready(frame) = Pin::new(&mut held.source).poll_frame(cx) else {
            held.wait(self.number, cx.waker());
            return Poll::Pending;
        };
        match &frame {
            None => held.is_ended = true,
            Some(Err(_)) => {
                held.is_overflowed = true;
                held.live_from = self.number;
                held.newest = self.number;
            }
            Some(Ok(frame)) => {
                held.keep(self.number, frame, is_alone);
                self.sent = held.data.len() + usize::from(held.is_ended);
            }
        }
        held.waiting.retain(|(number, _)| *number != self.number);
        held.wake();
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let held = lock(&self.recording);
        held.is_live(self.number)
            && self.sent >= held.data.len()
            && (held.is_ended && (held.trailers.is_none() || self.sent > held.data.len())
                || !held.is_ended && held.source.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
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
        let replay = first.share(REPLAY_BYTES_MAX);
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
            let free = body.share(REPLAY_BYTES_MAX);
            assert_eq!(length(body).await, (3, false));
            assert_eq!(length(free.attempt().unwrap()).await, (3, false));
        }
    }

    #[tokio::test]
    async fn a_body_at_the_bound_repeats_and_one_byte_more_does_not() {
        let mut body = stream(&[REPLAY_BYTES_MAX - 1, 1], false);
        let replay = body.share(REPLAY_BYTES_MAX);
        assert_eq!(length(body).await.0, REPLAY_BYTES_MAX);
        assert!(replay.can_repeat());

        let mut body = stream(&[REPLAY_BYTES_MAX, 1, 1], false);
        let replay = body.share(REPLAY_BYTES_MAX);
        assert_eq!(length(body).await.0, REPLAY_BYTES_MAX + 2);
        assert!(!replay.can_repeat() && replay.attempt().is_none());
    }

    /// A body that a test feeds.
    fn fed() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Body) {
        let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel();
        let frames = futures_util::stream::poll_fn(move |cx| {
            let data = fed.poll_recv(cx);
            data.map(|data| data.map(|data: Bytes| Ok::<_, BoxError>(Frame::data(data))))
        });
        (feed, Body::new(StreamBody::new(frames)))
    }

    async fn next(body: &mut Body) -> Bytes {
        let frame = body.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    #[tokio::test]
    async fn attempts_side_by_side_read_at_their_own_pace() {
        let (feed, mut first) = fed();
        let replay = first.share(REPLAY_BYTES_MAX);
        feed.send("a".into()).unwrap();
        assert_eq!(next(&mut first).await, "a");
        let mut second = replay.attempt_beside().unwrap();
        feed.send("b".into()).unwrap();
        assert_eq!(next(&mut second).await, "a");
        assert_eq!(next(&mut second).await, "b");
        assert_eq!(next(&mut first).await, "b");

        // Both wait, the second asked last, and goes away: the first must learn of what comes.
        let waiting = tokio::spawn(async move { (next(&mut first).await, first) });
        tokio::task::yield_now().await;
        assert!(second.frame().now_or_never().is_none());
        drop(second);
        feed.send("c".into()).unwrap();
        let woken = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        let (read, mut first) = woken.expect("it is woken").unwrap();
        assert_eq!(read, "c");

        // What ends them is that an attempt takes over.
        let third = replay.attempt().unwrap();
        assert!(first.frame().await.unwrap().is_err());
        drop(feed);
        assert_eq!(third.collect().await.unwrap().to_bytes(), "abc");
    }

    #[tokio::test]
    async fn a_body_too_long_to_keep_goes_on_where_it_is_ahead() {
        let (feed, mut first) = fed();
        let replay = first.share(REPLAY_BYTES_MAX);
        let mut second = replay.attempt_beside().unwrap();
        let long = Bytes::from(vec![b'x'; REPLAY_BYTES_MAX]);
        feed.send(long.clone()).unwrap();
        feed.send("y".into()).unwrap();
        assert_eq!(next(&mut second).await, long);
        assert_eq!(next(&mut second).await, "y");
        assert!(first.frame().await.unwrap().is_err(), "it is behind");
        feed.send("z".into()).unwrap();
        drop(feed);
        assert_eq!(second.collect().await.unwrap().to_bytes(), "z");
        assert!(replay.attempt().is_none() && replay.attempt_beside().is_none());
    }

    #[tokio::test]
    async fn nothing_is_kept_once_no_attempt_can_follow() {
        let mut only = stream(&[REPLAY_BYTES_MAX / 2; 2], false);
        let replay = only.share(REPLAY_BYTES_MAX);
        next(&mut only).await;
        let Replay::Recorded(recording) = &replay else {
            panic!("it streams")
        };
        let held = Arc::downgrade(recording);
        drop(replay);
        next(&mut only).await;
        assert!(lock(&held.upgrade().unwrap()).data.is_empty());
        assert!(only.frame().await.is_none());
    }
}
