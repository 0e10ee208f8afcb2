//! How long a served stream may take, where its chain has limits of its own (Envoy
//! `stream_idle_timeout`, `request_timeout`).
//!
//! Data in either direction counts as it is handed over: by the connection to whoever reads the body,
//! and by the application to the connection.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use mesh_core::config::HttpLimits;
use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal::Refusal;
use crate::body::Activity;

/// What is known of a stream in time.
#[derive(Debug)]
pub(super) struct StreamWatch {
    limits: Arc<HttpLimits>,
    began: Instant,
    activity: Arc<Activity>,
    is_request_read: AtomicBool,
}

impl StreamWatch {
    /// `None` where nothing is limited.
    pub(super) fn begin(limits: &Arc<HttpLimits>) -> Option<Arc<Self>> {
        let HttpLimits {
            stream_idle_timeout,
            request_timeout,
            ..
        } = &**limits;
        stream_idle_timeout.or(*request_timeout)?;
        let began = Instant::now();
        Some(Arc::new(Self {
            limits: Arc::clone(limits),
            began,
            activity: Activity::begin(began),
            is_request_read: AtomicBool::new(false),
        }))
    }

    /// Something was read or written.
    pub(super) fn touch(&self) {
        self.activity.touch();
    }

    /// The request was read to its end.
    pub(super) fn end_request(&self) {
        self.touch();
        self.is_request_read.store(true, Relaxed);
    }

    /// When it ends if nothing happens, and with what.
    fn due(&self) -> Option<(Instant, Refusal)> {
        let is_read = self.is_request_read.load(Relaxed);
        let at = |from: Instant, limit| from.checked_add(limit);
        let idle = self.limits.stream_idle_timeout;
        let idle = idle.and_then(|limit| at(self.activity.last(), limit));
        let idle = idle.map(|at| match is_read {
            // As in Envoy: who did not go on, the caller or the application.
            true => (at, Refusal::STREAM_IDLE),
            false => (at, Refusal::REQUEST_IDLE),
        });
        let request = self.limits.request_timeout.filter(|_| !is_read);
        let request = request.and_then(|limit| at(self.began, limit));
        let request = request.map(|at| (at, Refusal::REQUEST_TIMEOUT));
        idle.into_iter().chain(request).min_by_key(|(at, _)| *at)
    }

    /// Waits until something took too long; forever if nothing can any more.
    pub(super) async fn late(&self) -> Refusal {
        loop {
            // A request that is read later ends a limit, and never begins one.
            let Some((at, refusal)) = self.due() else {
                return std::future::pending().await;
            };
            if at <= Instant::now() {
                return refusal;
            }
            sleep_until(at).await;
        }
    }
}

/// The watch of a stream that is answered.
pub(super) struct Watching {
    watch: Arc<StreamWatch>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watching {
    pub(super) fn new(watch: Arc<StreamWatch>) -> Self {
        watch.touch();
        Self { watch, sleep: None }
    }

    /// Something of the response was sent.
    pub(super) fn touch(&self) {
        self.watch.touch();
    }

    /// Whether something takes too long.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        loop {
            let Some((at, refusal)) = self.watch.due() else {
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if at <= Instant::now() && self.watch.due().is_some_and(|(now, _)| now == at) {
                return Poll::Ready(refusal);
            }
        }
    }
}
