//! What a decision is made about.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::config::DynamicMetadata;

/// What a decision is made about.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'r> {
    /// The caller's names: its URI subject alternative names; without any its DNS names; without
    /// any its subject. Empty for a caller without a certificate.
    pub principals: &'r [String],
    /// Whether the caller proved its names with a certificate that we trust.
    pub authenticated: bool,
    /// Method.
    pub method: &'r str,
    /// Path without query, normalised.
    pub path: &'r str,
    /// Authority or host header.
    pub authority: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
    /// The address at the other end of the connection.
    pub source: IpAddr,
    /// The address the request arrived on.
    pub destination: SocketAddr,
    /// The name that the caller asked for in its TLS handshake; empty without one.
    pub server_name: &'r str,
    /// What filters before this one found out.
    pub metadata: Option<&'r DynamicMetadata>,
    /// What conditions may ask for besides.
    pub details: RequestDetails<'r>,
}

/// What only conditions ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestDetails<'r> {
    /// What follows the first `?`; `None` without one.
    pub query: Option<&'r str>,
    /// `http` or `https`.
    pub scheme: &'r str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'r str,
    /// The port at the other end of the connection.
    pub source_port: u16,
}
