//! What drives an HTTP/2 connection: its frames, its pings, and what the server says it may do.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Ping, PingPong, client};
use mesh_core::{config::Http2Keepalive, rng::Rng};
use tokio::time::{Instant, Sleep, sleep_until};

use super::dial::Stream;
use crate::{BoxError, rng};

/// Must be polled for anything to happen on its connection; ends with it, or after the last stream
/// once nobody holds the other half.
pub(super) struct Driver {
    connection: client::Connection<Stream, Bytes>,
    keepalive: Option<Keepalive>,
    streams: Arc<Streams>,
}

/// How many streams a connection may have at a time.
pub(super) struct Streams {
    /// What the server allows, or we if that is less.
    max: AtomicU32,
    /// What we allow.
    own_max: u32,
}

impl Streams {
    pub(super) fn new(own_max: Option<u32>) -> Arc<Self> {
        let own_max = own_max.unwrap_or(u32::MAX);
        Arc::new(Self {
            max: AtomicU32::new(own_max),
            own_max,
        })
    }

    #[inline]
    pub(super) fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    fn follow(&self, of_server: usize) {
        let max = u32::try_from(of_server)
            .unwrap_or(u32::MAX)
            .min(self.own_max);
        if self.max.load(Relaxed) != max {
            self.max.store(max, Relaxed);
        }
    }
}

impl Driver {
    pub(super) fn new(
        mut connection: client::Connection<Stream, Bytes>,
        keepalive: Option<Http2Keepalive>,
        streams: Arc<Streams>,
    ) -> Self {
        let keepalive = keepalive.and_then(|config| Keepalive::new(config, &mut connection));
        Self {
            connection,
            keepalive,
            streams,
        }
    }

    /// Ready when the server's first SETTINGS are there. Before, it may have `untold` streams.
    pub(super) fn poll_begun(
        &mut self,
        cx: &mut Context<'_>,
        untold: usize,
    ) -> Poll<Result<(), BoxError>> {
        if let Poll::Ready(ended) = Pin::new(&mut *self).poll(cx) {
            ended?;
            return Poll::Ready(Err("the server ended the connection at once".into()));
        }
        if self.connection.max_concurrent_send_streams() == untold {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Future for Driver {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(keepalive) = &mut self.keepalive
            && let Poll::Ready(ended) = keepalive.poll(cx)
        {
            // The streams learn of it when the connection is dropped.
            return Poll::Ready(Err(ended));
        }
        let ended = Pin::new(&mut self.connection).poll(cx);
        if ended.is_pending() {
            let of_server = self.connection.max_concurrent_send_streams();
            self.streams.follow(of_server);
        }
        ended.map_err(Into::into)
    }
}

/// Pings (Envoy `connection_keepalive`).
struct Keepalive {
    config: Http2Keepalive,
    ping_pong: PingPong,
    /// Whether an answer is waited for.
    is_waiting: bool,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    fn new(
        config: Http2Keepalive,
        connection: &mut client::Connection<Stream, Bytes>,
    ) -> Option<Self> {
        Some(Self {
            ping_pong: connection.ping_pong()?,
            is_waiting: false,
            timer: Box::pin(sleep_until(next_ping(&config))),
            config,
        })
    }

    /// Ready when the peer has not answered in time.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        loop {
            if self.is_waiting
                && let Poll::Ready(answer) = self.ping_pong.poll_pong(cx)
            {
                if let Err(error) = answer {
                    return Poll::Ready(error.into());
                }
                self.is_waiting = false;
                self.timer.as_mut().reset(next_ping(&self.config));
            }
            ready!(self.timer.as_mut().poll(cx));
            let timeout = self.config.timeout;
            if self.is_waiting {
                return Poll::Ready(format!("no answer to a ping within {timeout:?}").into());
            }
            if let Err(error) = self.ping_pong.send_ping(Ping::opaque()) {
                return Poll::Ready(error.into());
            }
            self.is_waiting = true;
            self.timer.as_mut().reset(Instant::now() + timeout);
        }
    }
}

fn next_ping(config: &Http2Keepalive) -> Instant {
    let jitter = f64::from(config.interval_jitter_percent) / 100.0 * rng::fork().unit();
    Instant::now() + config.interval.mul_f64(1.0 + jitter)
}
