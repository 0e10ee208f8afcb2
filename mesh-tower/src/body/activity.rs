//! When something of a stream was last sent or received.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::Body;
use crate::BoxError;

/// When something of a stream was last sent or received, in either direction.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Nanoseconds after `began`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn begin(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            began: now,
            last: AtomicU64::new(0),
        })
    }

    pub(crate) fn touch(&self) {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Relaxed);
    }

    pub(crate) fn last(&self) -> Instant {
        self.began + Duration::from_nanos(self.last.load(Relaxed))
    }
}

/// A body that notes when it gives something.
pub(super) struct Watched {
    body: Body,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(body: Body, activity: Arc<Activity>) -> Self {
        Self { body, activity }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.activity.touch();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
