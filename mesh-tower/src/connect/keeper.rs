//! The task of one endpoint: connect, drive, reconnect.

use std::{sync::Arc, time::Duration};

use mesh_core::{config::HttpVersion, rng::Rng, stats::Connectivity};
use tokio::time::{Instant, sleep};

use super::{dial::Stream, endpoint::Shared, http1::Pooled, http2};
use crate::{BoxError, rng, tls::Alpn};

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

/// Keeps one endpoint connected until it is gone or this is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut failures = 0u32;
    while !shared.is_gone() {
        let started = Instant::now();
        match connect(&shared).await {
            Ok(Ended::Asked) => failures = 0,
            Ok(Ended::Lost) if started.elapsed() >= LIVED => failures = 0,
            // Accepted and closed at once: as bad as a failure, or it would be tried in a loop.
            Ok(Ended::Lost) => failures += 1,
            Err(error) => {
                failures += 1;
                shared.set_connectivity(Connectivity::TransientFailure);
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
        if failures > 0 && !shared.is_gone() {
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
    shared.set_connectivity(Connectivity::Ready);
    shared.reconnect.notified().await;
    shared.set_connectivity(Connectivity::Connecting);
    Ok(Ended::Asked)
}

async fn keep_http2(shared: &Arc<Shared>, stream: Stream) -> Result<Ended, BoxError> {
    let (connection, driver) = http2::handshake(stream, true).await?;
    let held = shared.put_http2(connection);
    shared.set_connectivity(Connectivity::Ready);
    let mut driver = Box::pin(driver);
    loop {
        tokio::select! {
            ended = &mut driver => {
                if let Err(error) = ended {
                    tracing::debug!(
                        target: "mesh::connect",
                        endpoint = %shared.dialer.context.address,
                        error = &error as &dyn std::error::Error,
                        "connection lost"
                    );
                }
                break;
            }
            () = shared.reconnect.notified() => {
                // Said of an earlier connection, maybe.
                if !shared.is_gone() && held.upgrade().is_some_and(|held| held.is_usable()) {
                    continue;
                }
                // The server takes no more requests here (GOAWAY), or the endpoint left: the
                // streams that are open finish on their own.
                drop(tokio::spawn(driver));
                break;
            }
        }
    }
    shared.set_connectivity(Connectivity::Connecting);
    shared.forget_http2(&held);
    Ok(Ended::Lost)
}

fn pause(failures: u32) -> Duration {
    let nominal = BACKOFF_BASE.mul_f64(BACKOFF_FACTOR.powi(failures.min(32) as i32 - 1));
    let jitter = 1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * rng::fork().unit();
    nominal.min(BACKOFF_MAX).mul_f64(jitter)
}
