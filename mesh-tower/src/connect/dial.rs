//! One connection: TCP, then TLS where the cluster asks for it.
//!
//! A peer that vanished is found by TCP, not by HTTP/2 pings: gRPC servers answer pings that they
//! find too frequent with GOAWAY (gRFC A8), and nobody minds a kernel's probes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    BoxError,
    cluster::EndpointContext,
    identity::Identity,
    tls::{Alpn, client::ClientTls},
};

/// Sent data that stays unacknowledged this long ends the connection (`TCP_USER_TIMEOUT`), as gRPC
/// sets it beside its keepalive.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
/// Idle time after which a connection is probed (`TCP_KEEPIDLE`).
pub const KEEPALIVE_TIME: Duration = Duration::from_secs(20);
/// Time between probes (`TCP_KEEPINTVL`); as many as the kernel says go unanswered before the end.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How to reach one endpoint.
pub(super) struct Dialer {
    pub(super) context: EndpointContext,
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
    pub(super) fn new(context: EndpointContext, identity: Option<&Identity>) -> Self {
        let tls = match (&context.cluster.tls, identity) {
            (None, _) => Tls::Off,
            (Some(_), None) => Tls::Unusable,
            (Some(settings), Some(identity)) => {
                let sessions = [Alpn::Http2, Alpn::Http1, Alpn::Either]
                    .map(|alpn| (alpn, ClientTls::new(settings, identity.clone(), alpn)));
                Tls::On(Box::new(sessions))
            }
        };
        Self { context, tls }
    }

    /// Connects within the cluster's connect timeout. `alpn` is offered where there is TLS.
    ///
    /// # Errors
    /// When the connection or the handshake fails; never falls back to plaintext.
    pub(super) async fn dial(&self, alpn: Alpn) -> Result<Stream, BoxError> {
        let limit = self.context.cluster.connect_timeout;
        timeout(limit, self.connect(alpn))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {limit:?}").into()))
    }

    async fn connect(&self, alpn: Alpn) -> Result<Stream, BoxError> {
        let tcp = TcpStream::connect(self.context.address).await?;
        tcp.set_nodelay(true)?;
        find_the_dead(&tcp);
        match &self.tls {
            Tls::Off => Ok(Stream::Plain(tcp)),
            Tls::Unusable => Err(
                "the cluster asks for mTLS and this process has no identity: configure the \
                     certificate provider `default` in the bootstrap"
                    .into(),
            ),
            Tls::On(sessions) => {
                let session = sessions.iter().find(|(offered, _)| *offered == alpn);
                let (_, tls) = session.ok_or("no TLS session for the protocol")?;
                Ok(Stream::Tls(Box::new(
                    tls.connect(tcp, self.context.address).await?,
                )))
            }
        }
    }
}

/// Lets the kernel find out that the peer vanished. A kernel that cannot is worse, not wrong.
fn find_the_dead(tcp: &TcpStream) {
    let socket = socket2::SockRef::from(tcp);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    }
}

/// A connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the peer chose HTTP/2 in the handshake; `None` without TLS.
    pub(super) fn negotiated_http2(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(b"h2")),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
