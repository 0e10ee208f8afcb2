//! The task of one endpoint: connect, drive, reconnect.

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use mesh_core::{config::HttpVersion, rng::Rng, stats::Connectivity};
use tokio::time::{Instant, sleep};

use super::{dial::Stream, driver::Driver, http1::Pooled, http2, shared::Shared};
use crate::{
    BoxError, rng,
    tls::{Alpn, TlsError, TlsErrorKind},
    within::within,
};

/// First pause after a failed connect; gRPC's connection backoff.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// Growth of the pause.
const BACKOFF_FACTOR: f64 = 1.6;
/// Longest pause: shorter than gRPC's 120 s, because a keeper only connects to endpoints that the
/// control plane still lists.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Share of the pause that is random, each way.
const BACKOFF_JITTER: f64 = 0.2;
/// A connection that lived at least this long, or carried a call that succeeded, is replaced at once
/// when it ends.
const LIVED: Duration = Duration::from_secs(1);

/// Keeps one endpoint connected until it is gone or this is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut failures = 0u32;
    while !shared.is_gone() {
        let (started, succeeded_before) = (Instant::now(), succeeded(&shared));
        let ended = connect(&shared).await;
        let is_lost = matches!(ended, Ok(Ended::Lost));
        match ended {
            Ok(Ended::Asked) => failures = 0,
            Ok(Ended::Lost) if started.elapsed() >= LIVED => failures = 0,
            Ok(Ended::Lost) if succeeded(&shared) != succeeded_before => failures = 0,
            // Accepted and closed at once: as bad as a failure, or it would be tried in a loop.
            Ok(Ended::Lost) => failures += 1,
            Err(error) => {
                failures += 1;
                let error = TlsError::in_chain(&*error).map_or(error, Into::into);
                let is_new = shared.set_unreachable(&*error);
                say(&shared, failures, &*error, is_new);
            }
        }
        if failures > 0 && !shared.is_gone() {
            sleep(pause(failures)).await;
        }
        if is_lost && shared.dialer.context.is_on_demand() {
            shared.sleep_until_wanted().await;
        }
    }
}

/// A peer that cannot be trusted is somebody's mistake; one that is away comes back.
fn say(shared: &Shared, failures: u32, error: &(dyn Error + 'static), is_new: bool) {
    let context = &shared.dialer.context;
    let (endpoint, cluster) = (context.address, &context.cluster.name);
    match error.downcast_ref::<TlsError>() {
        Some(refused) if is_new && refused.kind() != TlsErrorKind::Io => {
            let reason = refused.kind().as_str();
            tracing::warn!(target: "mesh::connect", %endpoint, %cluster, reason, %error, "TLS failed");
        }
        _ => {
            tracing::debug!(target: "mesh::connect", %endpoint, %cluster, failures, %error, "cannot connect");
        }
    }
}

fn succeeded(shared: &Shared) -> u64 {
    shared.dialer.context.stats.succeeded()
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
    let permit = shared.dialer.connections.permit_kept();
    let stream = shared.dialer.dial(alpn, permit).await?;
    let is_http2 = match context.cluster.http_version {
        HttpVersion::Http2 => true,
        HttpVersion::Http1 => false,
        HttpVersion::ByRequest => stream.negotiated_http2().unwrap_or(false),
    };
    if is_http2 {
        return keep_http2(shared, stream, alpn).await;
    }
    // HTTP/1.1 connections come and go with requests: the first one only shows that the endpoint
    // takes connections. A request that cannot connect asks for the next look.
    shared.http1.put(Pooled::handshake(stream).await?);
    shared.set_connectivity(Connectivity::Ready);
    loop {
        let look_again = shared.http1.reap().map(|pause| Instant::now() + pause);
        if within(look_again, shared.reconnect.notified())
            .await
            .is_some()
        {
            break;
        }
    }
    shared.set_connectivity(Connectivity::Connecting);
    Ok(Ended::Asked)
}

/// How often an idle timeout looks at its connection.
const IDLE_LOOKS: u32 = 4;

async fn keep_http2(shared: &Arc<Shared>, stream: Stream, alpn: Alpn) -> Result<Ended, BoxError> {
    let cluster = &shared.dialer.context.cluster;
    let options = &cluster.connection;
    let (connection, driver) = http2::handshake(stream, true, cluster).await?;
    let mut held = shared.put_http2(connection);
    shared.set_connectivity(Connectivity::Ready);
    let mut driver = Box::pin(driver);
    let mut renewal = None;
    let aged = |from: Instant| options.max_connection_duration.map(|age| from + age);
    let mut due = aged(Instant::now());
    let idle_timeout = options.idle_timeout.filter(|timeout| !timeout.is_zero());
    let mut idle = Idle::new(shared);
    loop {
        tokio::select! {
            ended = &mut driver => {
                if let Err(error) = ended {
                    if let Some(refused) = TlsError::in_chain(&*error) {
                        let is_new = shared.set_unreachable(&refused);
                        say(shared, 1, &refused, is_new);
                    }
                    tracing::debug!(
                        target: "mesh::connect",
                        endpoint = %shared.dialer.context.address,
                        error = &*error as &dyn Error,
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
            () = sleep_until(due), if renewal.is_none() => {
                renewal = Some(Box::pin(another(shared, alpn)));
            }
            () = shared.renew.notified(), if renewal.is_none() => {
                renewal = Some(Box::pin(another(shared, alpn)));
            }
            made = poll_some(&mut renewal) => {
                renewal = None;
                let Ok((connection, its_driver)) = made else {
                    due = Some(Instant::now() + pause(1));
                    continue;
                };
                // The old one is left to its streams only now that there is another.
                held = shared.put_http2(connection);
                drop(tokio::spawn(std::mem::replace(&mut driver, Box::pin(its_driver))));
                due = aged(Instant::now());
            }
            () = sleep_until(idle_timeout.map(|timeout| Instant::now() + timeout / IDLE_LOOKS)) => {
                if idle.is_over(shared) {
                    shared.rest(&held);
                    drop(tokio::spawn(driver));
                    shared.reconnect.notified().await;
                    shared.set_connectivity(Connectivity::Connecting);
                    return Ok(Ended::Asked);
                }
            }
        }
    }
    shared.set_connectivity(Connectivity::Connecting);
    shared.forget_http2(&held);
    Ok(Ended::Lost)
}

/// A connection that takes the place of one that is still good.
async fn another(
    shared: &Arc<Shared>,
    alpn: Alpn,
) -> Result<(http2::Connection, Driver), BoxError> {
    let permit = shared.dialer.connections.permit_kept();
    let stream = shared.dialer.dial(alpn, permit).await?;
    http2::handshake(stream, true, &shared.dialer.context.cluster).await
}

/// Tells whether requests have come.
struct Idle {
    seen: u64,
    /// Looks in a row that saw none.
    looks: u32,
}

impl Idle {
    fn new(shared: &Shared) -> Self {
        Self {
            seen: Self::ended(shared),
            looks: 0,
        }
    }

    fn ended(shared: &Shared) -> u64 {
        let stats = &shared.dialer.context.stats;
        stats.succeeded() + stats.failed()
    }

    fn is_over(&mut self, shared: &Shared) -> bool {
        let ended = Self::ended(shared);
        let is_used = shared.in_flight() > 0 || ended != self.seen;
        self.looks = if is_used { 0 } else { self.looks + 1 };
        self.seen = ended;
        self.looks >= IDLE_LOOKS
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn poll_some<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn pause(failures: u32) -> Duration {
    let nominal = BACKOFF_BASE.mul_f64(BACKOFF_FACTOR.powi(failures.min(32) as i32 - 1));
    let jitter = 1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * rng::fork().unit();
    nominal.min(BACKOFF_MAX).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound_and_is_spread() {
        for (failures, nominal) in [(1, 1.0), (2, 1.6), (3, 2.56), (40, 15.0), (u32::MAX, 15.0)] {
            let pauses: Vec<_> = (0..200).map(|_| pause(failures).as_secs_f64()).collect();
            let within = |pause: &f64| (0.8 * nominal..=1.2 * nominal).contains(pause);
            assert!(pauses.iter().all(within), "{failures}: {pauses:?}");
            // Processes that lost the same server do not come back at the same moment.
            let (low, high) = (0.9 * nominal, 1.1 * nominal);
            assert!(pauses.iter().any(|pause| *pause < low), "{failures}");
            assert!(pauses.iter().any(|pause| *pause > high), "{failures}");
        }
    }
}
