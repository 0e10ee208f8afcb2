//! The task of one endpoint: connect, drive, reconnect.

use std::{future::Future, sync::Arc, time::Duration};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::{config::HttpVersion, rng::Rng, stats::Connectivity};
use tokio::time::{Instant, sleep};

use super::{dial::Stream, endpoint::Shared, http1::Pooled};
use crate::{Body, BoxError, rng, tls::Alpn};

/// First pause after a failed connect; gRPC's connection backoff.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// Growth of the pause.
const BACKOFF_FACTOR: f64 = 1.6;
/// Longest pause: shorter than gRPC's 120 s, because a keeper only connects to endpoints that the
/// control plane still lists.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Share of the pause that is random, each way.
const BACKOFF_JITTER: f64 = 0.2;
/// A connection that lived at least this long is replaced at once when it ends.
const LIVED: Duration = Duration::from_secs(1);
/// Idle time after which an HTTP/2 connection with open streams is pinged.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// A ping without an answer closes the connection after this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Flow-control windows; the default of 64 KiB stalls bodies larger than that on a real network.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Keeps one endpoint connected until aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut failures = 0u32;
    loop {
        let started = Instant::now();
        match connect(&shared).await {
            Ok(Ended::Asked) => failures = 0,
            Ok(Ended::Lost) if started.elapsed() >= LIVED => failures = 0,
            // Accepted and closed at once: as bad as a failure, or it would be tried in a loop.
            Ok(Ended::Lost) => failures += 1,
            Err(error) => {
                failures += 1;
                shared
                    .dialer
                    .context
                    .set_connectivity(Connectivity::TransientFailure);
                tracing::debug!(
                    target: "mesh::connect",
                    endpoint = %shared.dialer.context.address,
                    cluster = %shared.dialer.context.cluster.name,
                    failures,
                    error = %error,
                    "cannot connect"
                );
            }
        }
        if failures > 0 {
            sleep(pause(failures)).await;
        }
    }
}

/// Why [`connect`] returned.
enum Ended {
    /// A request could not use what there was.
    Asked,
    /// The connection ended.
    Lost,
}

/// Connects once and returns when the connection has ended or another one is wanted.
async fn connect(shared: &Arc<Shared>) -> Result<Ended, BoxError> {
    let context = &shared.dialer.context;
    let alpn = match context.cluster.http_version {
        HttpVersion::Http2 => Alpn::Http2,
        HttpVersion::Http1 => Alpn::Http1,
        HttpVersion::ByRequest => Alpn::Either,
    };
    let stream = shared.dialer.dial(alpn).await?;
    let is_http2 = match context.cluster.http_version {
        HttpVersion::Http2 => true,
        HttpVersion::Http1 => false,
        HttpVersion::ByRequest => stream.negotiated_http2().unwrap_or(false),
    };
    if is_http2 {
        return keep_http2(shared, stream).await;
    }
    // HTTP/1.1 connections come and go with requests: the first one only shows that the endpoint
    // takes connections. A request that cannot connect asks for the next look.
    shared.http1.put(Pooled::handshake(stream).await?);
    context.set_connectivity(Connectivity::Ready);
    shared.reconnect.notified().await;
    context.set_connectivity(Connectivity::Connecting);
    Ok(Ended::Asked)
}

async fn keep_http2(shared: &Arc<Shared>, stream: Stream) -> Result<Ended, BoxError> {
    let context = &shared.dialer.context;
    let (sender, connection) = handshake_http2(stream).await?;
    let sender = Arc::new(sender);
    let held = Arc::downgrade(&sender);
    shared.http2.store(Some(sender));
    context.set_connectivity(Connectivity::Ready);
    let mut connection = Box::pin(connection);
    tokio::select! {
        ended = &mut connection => if let Err(error) = ended {
            tracing::debug!(
                target: "mesh::connect",
                endpoint = %context.address,
                error = &error as &dyn std::error::Error,
                "connection lost"
            );
        },
        // The server takes no more requests here (GOAWAY): those in flight finish on their own.
        () = shared.reconnect.notified() => drop(tokio::spawn(connection)),
    }
    context.set_connectivity(Connectivity::Connecting);
    shared.forget_http2(&held);
    Ok(Ended::Lost)
}

/// Speaks HTTP/2 on `stream`; the returned future drives the connection.
pub(super) async fn handshake_http2(
    stream: Stream,
) -> Result<
    (
        http2::SendRequest<Body>,
        impl Future<Output = hyper::Result<()>> + Send + 'static,
    ),
    BoxError,
> {
    let connected = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await?;
    Ok(connected)
}

fn pause(failures: u32) -> Duration {
    let nominal = BACKOFF_BASE.mul_f64(BACKOFF_FACTOR.powi(failures.min(32) as i32 - 1));
    let jitter = 1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * rng::fork().unit();
    nominal.min(BACKOFF_MAX).mul_f64(jitter)
}
