//! One connection: TCP, then TLS where the cluster asks for it.
//!
//! A peer that vanished is found by TCP, not by HTTP/2 pings: gRPC servers answer pings that they
//! find too frequent with GOAWAY (gRFC A8), and nobody minds a kernel's probes.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_core::config::TcpKeepalive;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::permit::{ConnectionPermit, Connections};
use crate::{
    BoxError,
    cluster::{EndpointContext, Signals},
    happy_eyeballs::Addresses,
    identity::Identity,
    tls::{self, Alpn, TlsError, client::ClientTls, material::Materials},
};

/// Sent data that stays unacknowledged this long ends the connection (`TCP_USER_TIMEOUT`), as gRPC
/// sets it beside its keepalive.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// How to reach one endpoint.
pub(super) struct Dialer {
    pub(super) context: EndpointContext,
    pub(super) connections: Connections,
    addresses: Addresses,
    tls: Tls,
}

/// TLS of an endpoint; one set of sessions for each protocol that is asked for.
enum Tls {
    Off,
    /// The cluster asks for it, and this process has nothing to do it with.
    Unusable,
    On(Box<[(Alpn, ClientTls); 3]>),
}

impl Dialer {
    pub(super) fn new(
        context: EndpointContext,
        identity: Option<&Identity>,
        materials: &Arc<Materials>,
    ) -> Self {
        let tls = match (&context.cluster.tls, identity) {
            (None, _) => Tls::Off,
            (Some(settings), None) if settings.needs_identity() => Tls::Unusable,
            (Some(settings), identity) => {
                let session = |alpn| {
                    let identity = identity.cloned().unwrap_or_else(Identity::none);
                    let identity = identity.with_secrets(materials.secrets().clone());
                    let materials = Arc::clone(materials);
                    (
                        alpn,
                        ClientTls::sharing(settings, identity, alpn, materials),
                    )
                };
                Tls::On(Box::new(
                    [Alpn::Http2, Alpn::Http1, Alpn::Either].map(session),
                ))
            }
        };
        Self {
            connections: Connections::new(Arc::clone(&context.signals)),
            addresses: Addresses::new(context.address, context.additional_addresses.as_ref()),
            context,
            tls,
        }
    }

    /// Connects within the cluster's connect timeout. `alpn` is offered where there is TLS.
    ///
    /// # Errors
    /// When the connection or the handshake fails; never falls back to plaintext.
    pub(super) async fn dial(
        &self,
        alpn: Alpn,
        permit: ConnectionPermit,
    ) -> Result<Stream, BoxError> {
        let limit = self.context.cluster.connect_timeout;
        let io = timeout(limit, self.connect(alpn))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {limit:?}").into()))
            .inspect_err(|error| self.count(&**error))?;
        Ok(Stream {
            io,
            signals: Arc::clone(&self.context.signals),
            _permit: permit,
        })
    }

    fn count(&self, error: &(dyn Error + 'static)) {
        if let Some(error) = error.downcast_ref::<TlsError>() {
            let handshakes = &self.context.signals.handshakes;
            handshakes.count(error.kind(), error.is_refused_by_peer());
        }
    }

    async fn connect(&self, alpn: Alpn) -> Result<Io, BoxError> {
        let (tcp, address) = self.addresses.connect().await?;
        tcp.set_nodelay(true)?;
        let keepalive = self.context.cluster.connection.tcp_keepalive;
        find_the_dead(&tcp, keepalive.unwrap_or_default());
        match &self.tls {
            Tls::Off => Ok(Io::Plain(tcp)),
            Tls::Unusable => Err(
                "the cluster asks for mTLS and this process has no identity: configure the \
                     certificate provider `default` in the bootstrap"
                    .into(),
            ),
            Tls::On(sessions) => {
                let session = sessions.iter().find(|(offered, _)| *offered == alpn);
                let (_, tls) = session.ok_or("no TLS session for the protocol")?;
                Ok(Io::Tls(Box::new(tls.connect(tcp, address).await?)))
            }
        }
    }
}

/// Lets the kernel find out that the peer vanished. A kernel that cannot is worse, not wrong.
fn find_the_dead(tcp: &TcpStream, config: TcpKeepalive) {
    let socket = socket2::SockRef::from(tcp);
    let mut keepalive = socket2::TcpKeepalive::new()
        .with_time(config.time)
        .with_interval(config.interval);
    if let Some(probes) = config.probes {
        keepalive = keepalive.with_retries(probes);
    }
    _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    }
}

/// A connection, with its permit.
pub(super) struct Stream {
    io: Io,
    signals: Arc<Signals>,
    _permit: ConnectionPermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Counts a server that refuses our certificate, of which TLS 1.3 tells by the first reading.
    #[cold]
    fn refused(&self, error: &io::Error) {
        if let Some((kind, true)) = tls::reason(error) {
            self.signals.handshakes.count(kind, true);
        }
    }

    /// Whether the peer chose HTTP/2 in the handshake; `None` without TLS.
    pub(super) fn negotiated_http2(&self) -> Option<bool> {
        match &self.io {
            Io::Plain(_) => None,
            Io::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(b"h2")),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match &mut this.io {
            Io::Plain(stream) => return Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Poll::Ready(Err(error)) = &read {
            this.refused(error);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
