//! How long a server's connections and streams may take, and how large heads may be (Envoy
//! `HttpConnectionManager`, `HttpProtocolOptions`).

use std::time::Duration;

/// Limits of one filter chain. `None` is no limit of the chain's own; the server's constants hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpLimits {
    /// Without data in either direction, a stream ends (`stream_idle_timeout`).
    pub stream_idle_timeout: Option<Duration>,
    /// From the request's head to the end of its body (`request_timeout`).
    pub request_timeout: Option<Duration>,
    /// From the first byte of an HTTP/1.1 request's head to its last (`request_headers_timeout`).
    pub request_headers_timeout: Option<Duration>,
    /// From the request's head to the end of its response
    /// (`common_http_protocol_options.max_stream_duration`).
    pub max_stream_duration: Option<Duration>,
    /// Without a request, a connection ends (`common_http_protocol_options.idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// Then a connection takes no more requests
    /// (`common_http_protocol_options.max_connection_duration`).
    pub max_connection_duration: Option<Duration>,
    /// A connection takes no more requests than these
    /// (`common_http_protocol_options.max_requests_per_connection`).
    pub max_requests_per_connection: Option<u32>,
    /// Most bytes of a head's names and values (`max_request_headers_kb`, in bytes).
    pub max_headers_bytes: Option<u32>,
    /// Most headers of a request (`common_http_protocol_options.max_headers_count`).
    pub max_headers_count: Option<u32>,
    /// What becomes of headers with `_` in their names.
    pub underscores: Underscores,
}

/// What becomes of headers with `_` in their names (`headers_with_underscores_action`). Applications
/// that take `_` and `-` for the same can be told a lie by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// They stay.
    #[default]
    Allow,
    /// Their request is refused.
    Reject,
    /// They are left out.
    Drop,
}

impl HttpLimits {
    /// Whether anything is limited.
    pub fn is_any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether anything is limited that a connection must be watched for.
    pub fn watches_connections(&self) -> bool {
        self.request_headers_timeout.is_some()
            || self.idle_timeout.is_some()
            || self.max_connection_duration.is_some()
            || self.max_requests_per_connection.is_some()
    }
}
