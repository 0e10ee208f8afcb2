//! Connections: accepted, kept alive, and ended in good order when they are old.
//!
//! A connection ends after a while so that clients spread over the replicas again; the age differs
//! from connection to connection, so that those who came together do not come back together. The
//! streams on it end first, which no xDS client counts as an error (gRFC A57).

use std::time::Duration;

use axum::extract::ConnectInfo;
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
};
use tonic::{body::Body, service::Routes};
use tower::ServiceBuilder;

use super::ServerTls;
use crate::ca::ConnectionPeer;

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

/// Most connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 50_000;

/// Serves `routes` until `shutdown` becomes true and all connections ended; over TLS if there is any.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    tls: Option<ServerTls>,
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
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!("a connection was closed: {CONNECTIONS_MAX} are open");
            }
            Ok((socket, address)) => {
                // Without it a small message could wait for the acknowledgement of another.
                _ = socket.set_nodelay(true);
                let mut bytes = [0; 4];
                // Without randomness the age is the shortest.
                _ = random.fill(&mut bytes);
                let age = age(age_max, u32::from_le_bytes(bytes));
                let shutdown = shutdown.clone();
                let (routes, tls) = (routes.clone(), tls.clone());
                connections.spawn(async move {
                    let Some(tls) = tls else {
                        let identity = None;
                        let peer = ConnectionPeer { address, identity };
                        return connection(socket, peer, routes, age, shutdown).await;
                    };
                    match tls.accept(socket).await {
                        Ok((stream, identity)) => {
                            let peer = ConnectionPeer { address, identity };
                            connection(stream, peer, routes, age, shutdown).await;
                        }
                        Err(reason) => {
                            tracing::info!(target: "audit", %address, reason, "connection refused");
                        }
                    }
                });
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
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: ConnectionPeer,
    routes: Routes,
    age: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let (end, ends) = watch::channel(false);
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectionEnd(ends.clone()));
            request.extensions_mut().insert(peer.clone());
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

/// Serves HTTP/1.1 and HTTP/2 over TLS until it is dropped.
pub async fn serve_https(listener: TcpListener, router: axum::Router, tls: ServerTls) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {}
            Ok((socket, address)) => {
                let (router, tls) = (router.clone(), tls.clone());
                connections.spawn(async move {
                    let (stream, identity) = match tls.accept(socket).await {
                        Ok(accepted) => accepted,
                        Err(reason) => {
                            tracing::info!(target: "audit", %address, reason, "connection refused");
                            return;
                        }
                    };
                    let peer = ConnectionPeer { address, identity };
                    let service = ServiceBuilder::new()
                        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                            let extensions = request.extensions_mut();
                            extensions.insert(ConnectInfo(peer.address));
                            extensions.insert(peer.clone());
                            request
                        })
                        .service(router);
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder.http1().timer(TokioTimer::new());
                    let service = TowerToHyperService::new(service);
                    _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
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
