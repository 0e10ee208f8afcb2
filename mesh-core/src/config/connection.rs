//! How connections to a cluster's endpoints are made, kept and ended (Envoy `HttpProtocolOptions`,
//! `UpstreamConnectionOptions`).

use std::time::Duration;

/// Settings of each connection. How many there may be is in
/// [`CircuitBreakers`](super::CircuitBreakers).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// A connection without requests ends after this time; zero is never. Default none: HTTP/1.1
    /// connections after 50 s, HTTP/2 connections never
    /// (`common_http_protocol_options.idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// A connection takes no new requests after this time and ends when the last one has. Default
    /// none: no limit (`common_http_protocol_options.max_connection_duration`).
    pub max_connection_duration: Option<Duration>,
    /// Requests that a connection takes before it ends; not 0. Default none: no limit
    /// (`common_http_protocol_options.max_requests_per_connection`).
    pub max_requests_per_connection: Option<u32>,
    /// Probes of the kernel. Default none: [`TcpKeepalive::default`]
    /// (`upstream_connection_options.tcp_keepalive`).
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// What HTTP/2 connections have besides.
    pub http2: Http2Options,
}

/// Probes by which the kernel finds out that a peer has vanished (`core.v3.TcpKeepalive`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Idle time after which probes begin. Default 20 s.
    pub time: Duration,
    /// Time between probes. Default 5 s.
    pub interval: Duration,
    /// Probes without an answer that end the connection. Default none: as many as the kernel says.
    pub probes: Option<u32>,
}

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(20),
            interval: Duration::from_secs(5),
            probes: None,
        }
    }
}

/// Settings of HTTP/2 connections (`core.v3.Http2ProtocolOptions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Requests that this process has in flight on one connection, 1 to 2^31 - 1; the server's own
    /// limit holds as well. Default none: the server's.
    pub max_concurrent_streams: Option<u32>,
    /// Flow-control window of a stream, 65,535 to 2^31 - 1 bytes. Default none: 1 MiB.
    pub initial_stream_window_size: Option<u32>,
    /// Flow-control window of a connection, 65,535 to 2^31 - 1 bytes. Default none: 4 MiB.
    pub initial_connection_window_size: Option<u32>,
    /// Pings. Default none: a peer that vanished is found by TCP.
    pub keepalive: Option<Http2Keepalive>,
}

/// Pings of an HTTP/2 connection (`core.v3.KeepaliveSettings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Time between pings; at least [`HTTP2_KEEPALIVE_MIN`].
    pub interval: Duration,
    /// A ping that is not answered in this time ends the connection; at least
    /// [`HTTP2_KEEPALIVE_MIN`].
    pub timeout: Duration,
    /// Random part of the interval, 0 to 100. Default 15.
    pub interval_jitter_percent: u32,
}

/// Shortest time of [`Http2Keepalive`] (Envoy: 1 ms).
pub const HTTP2_KEEPALIVE_MIN: Duration = Duration::from_millis(1);
