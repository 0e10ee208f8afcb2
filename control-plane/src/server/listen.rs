//! Connections: accepted, kept alive, and ended in good order when they are old.
//!
//! A connection ends after a while so that clients spread over the replicas again; the age differs
//! from connection to connection, so that those who came together do not come back together. The
//! streams on it end first, which no xDS client counts as an error (gRFC A57).

use std::{net::SocketAddr, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tonic::{body::Body, service::Routes};
use tower::ServiceBuilder;

/// Default of the longest life of a connection.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// A connection ends between this share of the longest life and all of it.
const CONNECTION_AGE_MIN: f64 = 0.8;
/// What is left on an old connection gets so long to end.
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// A client that is silent for so long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// A client that does not answer that within so long is gone.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of responses that wait in a stream for a slow client.
const SEND_BUFFER: usize = 64 * 1024;
/// After an error of accepting, such as too many open files, nothing is accepted for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Becomes true when the connection that a request came on is to end.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionEnd(pub(crate) watch::Receiver<bool>);

/// Serves `routes` until `shutdown` becomes true and all connections ended.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    age_max: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let random = SystemRandom::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = shutdown.wait_for(|shutdown| *shutdown) => break,
        };
        match accepted {
            Ok((socket, peer)) => {
                // Without it a small message could wait for the acknowledgement of another.
                _ = socket.set_nodelay(true);
                let mut bytes = [0; 4];
                // Without randomness the age is the shortest.
                _ = random.fill(&mut bytes);
                let age = age(age_max, u32::from_le_bytes(bytes));
                let shutdown = shutdown.clone();
                connections.spawn(connection((socket, peer), routes.clone(), age, shutdown));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// How long a connection lives.
fn age(max: Duration, random: u32) -> Duration {
    let share = f64::from(random) / f64::from(u32::MAX);
    max.mul_f64(CONNECTION_AGE_MIN + (1.0 - CONNECTION_AGE_MIN) * share)
}

async fn connection(
    (socket, peer): (TcpStream, SocketAddr),
    routes: Routes,
    age: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let (end, ends) = watch::channel(false);
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectionEnd(ends.clone()));
            request.extensions_mut().insert(peer);
            request.map(Body::new)
        })
        .service(routes);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_send_buf_size(SEND_BUFFER);
    let served = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = &mut served => return,
        () = tokio::time::sleep(age) => {}
        _ = shutdown.wait_for(|shutdown| *shutdown) => {}
    }
    end.send_replace(true);
    served.as_mut().graceful_shutdown();
    if tokio::time::timeout(CONNECTION_GRACE, served)
        .await
        .is_err()
    {
        tracing::debug!("a connection was cut, because its calls did not end in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_within_bounds() {
        let max = Duration::from_secs(100);
        let (youngest, oldest) = (age(max, 0), age(max, u32::MAX));
        assert_eq!((youngest.as_secs(), oldest.as_secs()), (80, 100));
    }
}
