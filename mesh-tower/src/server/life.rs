//! When a connection ends by itself, where its chain has limits of its own (Envoy `idle_timeout`,
//! `max_connection_duration`, `max_requests_per_connection`, `request_headers_timeout`).
//!
//! A connection without such limits has no [`Life`]. The chain that took the connection decides, to
//! its end.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use mesh_core::config::HttpLimits;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::connection::HTTP1_HEAD_WAIT_MAX;

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Life {
    limits: Arc<HttpLimits>,
    began: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    in_flight: u32,
    served: u32,
    /// When the last request ended.
    idle_since: Instant,
    /// When the head of the next request began.
    head_since: Option<Instant>,
    /// Bytes that are those of an HTTP/2 client, as far as they came.
    preface: usize,
    is_http1: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the last request.
    Gracefully,
    /// Now: what comes is no request.
    AtOnce,
}

impl Life {
    pub(super) fn begin(limits: &Arc<HttpLimits>) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self {
            limits: Arc::clone(limits),
            began,
            state: Mutex::new(State {
                in_flight: 0,
                served: 0,
                idle_since: began,
                head_since: None,
                preface: 0,
                is_http1: false,
            }),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come; it is under way until what is returned is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Alive {
        let mut state = self.state();
        state.in_flight += 1;
        state.served = state.served.saturating_add(1);
        state.head_since = None;
        drop(state);
        self.changed.notify_one();
        Alive(Arc::clone(self))
    }

    /// Bytes have come.
    fn read(&self, bytes: &[u8]) {
        let mut state = self.state();
        if !state.is_http1 && state.preface < PREFACE.len() {
            let expected = &PREFACE[state.preface..];
            let common = bytes.len().min(expected.len());
            state.is_http1 = bytes[..common] != expected[..common];
            state.preface += common;
        }
        let is_http2 = !state.is_http1 && state.preface == PREFACE.len();
        match is_http2 {
            // Heads are told apart from everything else behind this only.
            true if state.head_since.take().is_none() => return,
            false if state.in_flight > 0 || state.head_since.is_some() => return,
            true => {}
            false => state.head_since = Some(Instant::now()),
        }
        drop(state);
        self.changed.notify_one();
    }

    /// When the connection ends if nothing happens, and how.
    fn due(&self, is_draining: bool) -> Option<(Instant, End)> {
        let HttpLimits {
            request_headers_timeout,
            idle_timeout,
            max_connection_duration,
            max_requests_per_connection,
            ..
        } = &*self.limits;
        let state = self.state();
        let used_up = max_requests_per_connection.is_some_and(|max| state.served >= max);
        let used_up = used_up.then_some((self.began, End::Gracefully));
        let after = |from: Option<Instant>, limit: &Option<_>, end| {
            Some((from?.checked_add((*limit)?)?, end))
        };
        let idle_since = (state.in_flight == 0).then_some(state.idle_since);
        // A client that stops within the preface has said nothing that hyper waits for with a limit.
        let head = request_headers_timeout.or(Some(HTTP1_HEAD_WAIT_MAX));
        let all = [
            used_up,
            after(Some(self.began), max_connection_duration, End::Gracefully),
            after(idle_since, idle_timeout, End::Gracefully),
            after(state.head_since, &head, End::AtOnce),
        ];
        let left = all.into_iter().flatten();
        let left = left.filter(|(_, end)| !is_draining || *end == End::AtOnce);
        left.min_by_key(|(at, _)| *at)
    }

    /// Waits until the connection should end. One that drains ends by itself, unless a head trickles in.
    pub(super) async fn end(&self, is_draining: bool) -> End {
        loop {
            let changed = self.changed.notified();
            match self.due(is_draining) {
                Some((at, end)) if at <= Instant::now() => return end,
                Some((at, _)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Alive(Arc<Life>);

impl Drop for Alive {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight -= 1;
        state.idle_since = Instant::now();
        drop(state);
        self.0.changed.notify_one();
    }
}

/// A connection whose life is watched, where it is.
pub(super) struct Watched<I> {
    io: I,
    life: Option<Arc<Life>>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, life: Option<Arc<Life>>) -> Self {
        Self { io, life }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Some(life) = &self.life
            && buf.filled().len() > before
        {
            life.read(&buf.filled()[before..]);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
