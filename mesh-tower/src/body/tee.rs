//! A body and its copy.
//!
//! The copy gets what the body gives, when it gives it, and never holds it up: a reader that lags
//! behind by more than [`MIRROR_LAG_BYTES_MAX`] is given up, and its request with it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::Body;
use crate::BoxError;

/// Bytes that the reader of a copy may lag behind; then the copy breaks off.
pub const MIRROR_LAG_BYTES_MAX: usize = 1 << 20;

/// `body`, and a copy of it.
pub(super) fn tee(body: Body) -> (Original, Copy) {
    let pipe = Arc::<Pipe>::default();
    let copy = Copy {
        pipe: Arc::clone(&pipe),
    };
    (Original { body, pipe }, copy)
}

/// What the original gave and the copy did not take yet.
#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Piece>,
    bytes: usize,
    end: Option<End>,
    waker: Option<Waker>,
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    /// The original broke off, or its reader did.
    BrokenOff,
    LagsBehind,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Uncontended but for one push or pop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            self.frames.push_back(Piece::Data(data.clone()));
            if self.bytes > MIRROR_LAG_BYTES_MAX {
                self.frames.clear();
                self.finish(End::LagsBehind);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.frames.push_back(Piece::Trailers(trailers.clone()));
        }
        self.wake();
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The body itself.
pub(super) struct Original {
    body: Body,
    pipe: Arc<Pipe>,
}

impl http_body::Body for Original {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let mut state = self.pipe.lock();
        if state.end.is_none() {
            match &frame {
                Some(Ok(frame)) => state.push(frame),
                Some(Err(_)) => state.finish(End::BrokenOff),
                None => state.finish(End::Whole),
            }
            // Nobody may ask again.
            if self.body.is_end_stream() {
                state.finish(End::Whole);
            }
        }
        drop(state);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        let end = match self.body.is_end_stream() {
            true => End::Whole,
            false => End::BrokenOff,
        };
        self.pipe.lock().finish(end);
    }
}

/// Its copy.
pub(super) struct Copy {
    pipe: Arc<Pipe>,
}

impl http_body::Body for Copy {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.pipe.lock();
        if let Some(piece) = state.frames.pop_front() {
            return Poll::Ready(Some(Ok(match piece {
                Piece::Data(data) => {
                    state.bytes -= data.len();
                    Frame::data(data)
                }
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        match state.end {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::BrokenOff) => {
                Poll::Ready(Some(Err("the request that is mirrored broke off".into())))
            }
            Some(End::LagsBehind) => Poll::Ready(Some(Err(format!(
                "the mirror lags more than {MIRROR_LAG_BYTES_MAX} bytes behind"
            )
            .into()))),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.pipe.lock();
        state.frames.is_empty() && matches!(state.end, Some(End::Whole))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut state = self.pipe.lock();
        state.frames.clear();
        state.end = Some(End::BrokenOff);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn body(chunks: &[usize]) -> Body {
        let frames: Vec<Result<_, BoxError>> = chunks
            .iter()
            .map(|n| Ok(Frame::data(Bytes::from(vec![b'x'; *n]))))
            .collect();
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn the_copy_is_whole_however_late_it_is_read() {
        let mut original = body(&[3, 4, 5]);
        let copy = original.tee();
        assert_eq!(original.collect().await.unwrap().to_bytes().len(), 12);
        assert_eq!(copy.collect().await.unwrap().to_bytes().len(), 12);

        let (mut original, mut copy) = tee(body(&[1, 2]));
        assert!(
            copy.frame().now_or_never().is_none(),
            "nothing was sent yet"
        );
        original.frame().await.unwrap().unwrap();
        assert_eq!(
            copy.frame().await.unwrap().unwrap().into_data().unwrap(),
            "x"
        );
        drop(original);
        assert!(copy.frame().await.unwrap().is_err(), "it broke off");
    }

    #[tokio::test]
    async fn a_copy_that_is_not_read_costs_a_bounded_buffer_and_holds_nothing_up() {
        let chunks = [MIRROR_LAG_BYTES_MAX / 2; 5];
        let mut original = body(&chunks);
        let copy = original.tee();
        let sent = original.collect().await.unwrap().to_bytes().len();
        assert_eq!(sent, chunks.iter().sum::<usize>());
        let error = copy.collect().await.unwrap_err();
        assert!(error.to_string().contains("behind"), "{error}");

        // One that is dropped is forgotten.
        let mut original = body(&chunks);
        drop(original.tee());
        assert_eq!(original.collect().await.unwrap().to_bytes().len(), sent);
    }
}
