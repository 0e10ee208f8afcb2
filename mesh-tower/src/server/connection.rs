//! One connection: which filter chain takes it, its handshake, and its HTTP.
//!
//! A connection that is refused is closed without a byte of HTTP. The handshake timeout bounds
//! everything before the first request, so that a silent client costs a socket for seconds only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use mesh_core::config::HttpLimits;
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    MeshApplication, Shared,
    client_cert::ClientCert,
    inbound::{Inbound, Security, Seen, Transport},
    life::{End, Life, Watched},
    request,
};
use crate::{
    identity::PeerIdentity,
    tls::{TlsError, server::ServerTls},
};

/// First byte of a TLS record that holds a handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// Longest time an HTTP/1.1 connection waits for the whole head of its next request. Longer than
/// hyper's clients keep idle connections (90 s), so that it is the client who closes them.
pub(super) const HTTP1_HEAD_WAIT_MAX: Duration = Duration::from_secs(120);
/// An HTTP/2 peer that is silent for so long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// And so long it may take to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a head may have besides its names and values: line ends, HTTP/2's 32 bytes for each header
/// (RFC 9113 §6.5.2); and the least that hyper takes for its buffer.
const HEAD_OVERHEAD: usize = 8192;

/// The connection a request came on. Every served request's extensions hold one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The caller's address.
    pub remote: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// Whether it is encrypted.
    pub is_tls: bool,
}

/// An established connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) seen: Seen,
    pub(super) peer: Option<PeerIdentity>,
    pub(super) info: ConnectionInfo,
    /// The name that the caller asked for in its handshake.
    pub(super) server_name: Option<String>,
    /// What requests say of who called.
    pub(super) client_cert: ClientCert,
    /// Watched where the chain that took the connection limits it.
    pub(super) life: Option<Arc<Life>>,
}

/// Why a connection is not served.
#[derive(Debug)]
pub(super) struct Refused {
    reason: &'static str,
    error: Option<TlsError>,
}

impl Refused {
    pub(super) fn new(reason: &'static str) -> Self {
        Self {
            reason,
            error: None,
        }
    }

    pub(super) fn reason(&self) -> &'static str {
        self.reason
    }
}

impl From<TlsError> for Refused {
    fn from(error: TlsError) -> Self {
        Self {
            reason: error.kind().as_str(),
            error: Some(error),
        }
    }
}

enum Stream {
    Plain(TcpStream, Seen),
    Tls(Box<TlsStream<TcpStream>>, Option<PeerIdentity>, Seen),
    /// The client closed before it said anything, like a health check does.
    Silent,
}

/// Serves one connection to its end.
pub(super) async fn serve<A: MeshApplication>(
    shared: Arc<Shared>,
    application: A,
    stream: TcpStream,
    remote: SocketAddr,
    mut drain: watch::Receiver<bool>,
) {
    let local = stream.local_addr().unwrap_or(shared.local);
    let established = tokio::select! {
        established = establish(&shared, stream, (remote, local)) => established,
        _ = drain.wait_for(|drain| *drain) => return,
    };
    let connection =
        |seen: Seen, peer, server_name, client_cert, limits: Option<&Arc<HttpLimits>>| {
            let info = ConnectionInfo {
                remote,
                local,
                is_tls: seen.transport == Transport::Tls,
            };
            Arc::new(Connection {
                shared: Arc::clone(&shared),
                seen,
                peer,
                info,
                server_name,
                client_cert,
                life: limits
                    .filter(|limits| limits.watches_connections())
                    .map(Life::begin),
            })
        };
    match established {
        Ok(Stream::Silent) => {}
        Ok(Stream::Plain(stream, seen)) => {
            shared.accepted("none");
            // Who is left to move before a port can be STRICT.
            if shared.inbound.load().is_mutual_over_tls(&seen) {
                tracing::info!(target: "mesh::server", %remote, %local, "plaintext, where mTLS is taken");
            }
            let limits = shared.limits(&seen);
            let client_cert = shared.client_cert(&seen, None);
            let connection = connection(seen, None, None, client_cert, limits.as_ref());
            drive(connection, limits, application, stream, drain).await;
        }
        Ok(Stream::Tls(stream, peer, seen)) => {
            shared.accepted(if peer.is_some() { "mutual_tls" } else { "tls" });
            let server_name = stream.get_ref().1.server_name().map(str::to_owned);
            let limits = shared.limits(&seen);
            let client_cert = shared.client_cert(&seen, stream.get_ref().1.peer_certificates());
            let connection = connection(seen, peer, server_name, client_cert, limits.as_ref());
            drive(connection, limits, application, stream, drain).await;
        }
        Err(refused) => {
            shared.refused(&refused);
            let error = refused.error.as_ref().map(tracing::field::display);
            let reason = refused.reason;
            tracing::info!(target: "mesh::server", %remote, %local, reason, error, "refused");
        }
    }
}

async fn establish(
    shared: &Shared,
    stream: TcpStream,
    (source, destination): (SocketAddr, SocketAddr),
) -> Result<Stream, Refused> {
    wait_for_config(shared).await?;
    let handshake = async {
        // Latency is lost without it, and a socket that cannot do it is about to fail anyway.
        _ = stream.set_nodelay(true);
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) => {}
            Ok(_) | Err(_) => return Ok(Stream::Silent),
        }
        let is_tls = first[0] == TLS_HANDSHAKE;
        let transport = if is_tls {
            Transport::Tls
        } else {
            Transport::Raw
        };
        let mut seen = Seen {
            source,
            destination,
            transport,
            server_name: None,
            application_protocols: Vec::new(),
        };
        if is_tls && shared.inbound.load().needs_hello() {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
            let started = hello.await.map_err(TlsError::from_io)?;
            let said = started.client_hello();
            seen.server_name = said.server_name().map(str::to_owned);
            let offered = said.alpn().into_iter().flatten();
            seen.application_protocols = offered.map(<[u8]>::to_vec).collect();
            let tls = admit(&shared.inbound.load(), &seen)?;
            let tls = tls.ok_or_else(|| Refused::new("tls_not_configured"))?;
            let (stream, peer) = tls.accept_started(started).await?;
            return Ok(Stream::Tls(Box::new(stream), peer, seen));
        }
        let tls = admit(&shared.inbound.load(), &seen)?;
        match tls {
            None => Ok(Stream::Plain(stream, seen)),
            Some(tls) => {
                let (stream, peer) = tls.accept(stream).await?;
                Ok(Stream::Tls(Box::new(stream), peer, seen))
            }
        }
    };
    let limit = shared.options.handshake_timeout;
    timeout(limit, handshake)
        .await
        .unwrap_or_else(|_| Err(Refused::new("handshake_timeout")))
}

async fn wait_for_config(shared: &Shared) -> Result<(), Refused> {
    let is_pending = || matches!(**shared.inbound.load(), Inbound::Pending);
    let mut generation = shared.generation.subscribe();
    let ready = async {
        while is_pending() {
            // The sender lives in `shared`.
            _ = generation.changed().await;
        }
    };
    let limit = shared.options.config_timeout;
    timeout(limit, ready)
        .await
        .map_err(|_| Refused::new("no_config"))
}

/// The TLS of a new connection, `None` for plaintext.
fn admit(inbound: &Inbound, seen: &Seen) -> Result<Option<Arc<ServerTls>>, Refused> {
    if let Inbound::Refusing(_) = inbound {
        return Err(Refused::new("config"));
    }
    let chain = inbound
        .chain(seen)
        .ok_or_else(|| Refused::new(inbound.why_no_chain(seen)))?;
    match (&chain.security, seen.transport) {
        (Security::Plaintext, Transport::Raw) => Ok(None),
        (Security::Tls(tls), Transport::Tls) => Ok(Some(Arc::clone(tls))),
        (Security::Tls(_), Transport::Raw) => Err(Refused::new("plaintext")),
        (Security::Plaintext, Transport::Tls) => Err(Refused::new("tls_not_configured")),
        (Security::Unusable, _) => Err(Refused::new("config")),
    }
}

async fn drive<A, I>(
    connection: Arc<Connection>,
    limits: Option<Arc<HttpLimits>>,
    application: A,
    io: I,
    mut drain: watch::Receiver<bool>,
) where
    A: MeshApplication,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut changes = connection.shared.generation.subscribe();
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request| request::serve(Arc::clone(&connection), application.clone(), request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_HEAD_WAIT_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    if let Some(limits) = &limits {
        bound_heads(&mut builder, limits);
    }
    let io = Watched::new(io, connection.life.clone());
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    tokio::pin!(serving);
    let mut is_draining = !connection.is_admitted();
    if is_draining {
        serving.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    let remote = connection.info.remote;
                    tracing::debug!(target: "mesh::server", %remote, error, "connection ended");
                }
                return;
            }
            _ = drain.wait_for(|drain| *drain), if !is_draining => {}
            Ok(()) = changes.changed(), if !is_draining => {
                if connection.is_admitted() {
                    continue;
                }
            }
            end = connection.end(is_draining) => {
                let remote = connection.info.remote;
                tracing::debug!(target: "mesh::server", %remote, ?end, "limits of its connection");
                if end == End::AtOnce {
                    return;
                }
            }
        }
        is_draining = true;
        serving.as_mut().graceful_shutdown();
    }
}

/// Bounds what hyper keeps of a head that comes; [`request`] looks at it in detail.
fn bound_heads(builder: &mut auto::Builder<TokioExecutor>, limits: &HttpLimits) {
    if let Some(count) = limits.max_headers_count {
        builder.http1().max_headers(count as usize);
    }
    if let Some(bytes) = limits.max_headers_bytes {
        let whole = (bytes as usize).saturating_add(HEAD_OVERHEAD);
        builder.http1().max_buf_size(whole);
        let list = bytes.saturating_add(HEAD_OVERHEAD as u32);
        builder.http2().max_header_list_size(list);
    }
    if let Some(idle) = limits.idle_timeout {
        let wait = idle.max(HTTP1_HEAD_WAIT_MAX);
        builder.http1().header_read_timeout(wait);
    }
}

impl Connection {
    /// Waits until its own limits end it.
    async fn end(&self, is_draining: bool) -> End {
        match &self.life {
            Some(life) => life.end(is_draining).await,
            None => std::future::pending().await,
        }
    }

    /// Whether the connection still fits the configuration.
    fn is_admitted(&self) -> bool {
        let inbound = self.shared.inbound.load();
        inbound
            .chain_of_live(&self.seen, self.peer.is_some())
            .is_some()
    }
}
