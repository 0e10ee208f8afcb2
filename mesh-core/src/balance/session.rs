//! The endpoint that a session sticks to (gRFC A55, A60, A75).
//!
//! The cookie names addresses and the cluster that chose them. An override is taken when its endpoint
//! is still there with a health that the cluster allows; otherwise the request is balanced as any.

use std::{fmt, net::SocketAddr};

use super::{ClusterEndpoint, PickResult};
use crate::{config::HealthStatus, stats::Connectivity};

/// What a session remembers: where its requests went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCookie {
    /// Addresses of the endpoint, the first one is its identity.
    pub addresses: Vec<SocketAddr>,
    /// The cluster, where it was said.
    pub cluster: Option<String>,
}

/// The value of a session cookie cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCookieError;

impl fmt::Display for SessionCookieError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is not base64 of ADDRESS:PORT[,ADDRESS:PORT...][;CLUSTER]")
    }
}

impl std::error::Error for SessionCookieError {}

impl SessionCookie {
    /// Reads the value of a cookie. The two spellings of gRFC A60, `;NAME` and `;cluster:NAME`, with
    /// and without quotes, mean the same.
    ///
    /// # Errors
    /// When it is none; the request is then one without a session.
    pub fn parse(value: &str) -> Result<Self, SessionCookieError> {
        let value = value.trim_matches('"');
        let text = decode_base64(value).ok_or(SessionCookieError)?;
        let text = String::from_utf8(text).map_err(|_| SessionCookieError)?;
        let (addresses, cluster) = match text.split_once(';') {
            None => (text.as_str(), None),
            Some((addresses, cluster)) => (addresses, Some(cluster.trim_matches('"'))),
        };
        let addresses = addresses
            .trim_matches('"')
            .split(',')
            .map(|address| address.parse().map_err(|_| SessionCookieError))
            .collect::<Result<Vec<_>, _>>()?;
        let cluster = cluster
            .map(|cluster| cluster.strip_prefix("cluster:").unwrap_or(cluster))
            .map(|cluster| cluster.trim_matches('"').to_owned())
            .filter(|cluster| !cluster.is_empty());
        Ok(Self { addresses, cluster })
    }

    /// Reads the value of a header, which is one address alone (Envoy `HeaderBasedSessionState`).
    ///
    /// # Errors
    /// When it is none; the request is then one without a session.
    pub fn parse_address(value: &str) -> Result<Self, SessionCookieError> {
        match Self::parse(value) {
            Ok(found) if found.addresses.len() == 1 && found.cluster.is_none() => Ok(found),
            _ => Err(SessionCookieError),
        }
    }

    /// Whether a value is base64 of anything, as Envoy reads it: whole words, and no bits over.
    pub(crate) fn says_something(value: &str) -> bool {
        let value = value.trim_matches('"');
        let digits = value.strip_suffix('=').unwrap_or(value);
        let digits = digits.strip_suffix('=').unwrap_or(digits);
        let last = digits.bytes().last().and_then(digit);
        let spare = match digits.len() % 4 {
            2 => 15,
            3 => 3,
            _ => 0,
        };
        !value.is_empty()
            && value.len().is_multiple_of(4)
            && digits.bytes().all(|byte| digit(byte).is_some())
            && last.is_some_and(|last| last & spare == 0)
    }

    /// The value to set.
    pub fn format(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let mut text = addresses.join(",");
        if let Some(cluster) = &self.cluster {
            text.push_str(";cluster:");
            text.push_str(cluster);
        }
        encode_base64(text.as_bytes())
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) as usize & 63;
            let is_padding = place > chunk.len();
            text.push(if is_padding {
                '='
            } else {
                ALPHABET[digit].into()
            });
        }
    }
    text
}

/// The six bits of a letter.
fn digit(letter: u8) -> Option<usize> {
    ALPHABET.iter().position(|held| *held == letter)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut word, mut bits) = (0u32, 0);
    for digit in text.bytes() {
        let digit = match digit {
            // As in URLs.
            b'-' => 62,
            b'_' => 63,
            letter => self::digit(letter)?,
        };
        word = word << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    Some(bytes)
}

/// What the override of a request comes to; `None`: it is balanced as any.
pub(crate) fn resolve(
    endpoints: &[ClusterEndpoint],
    index: Option<usize>,
    allowed: &[HealthStatus],
) -> Option<PickResult> {
    let index = index?;
    let endpoint = &endpoints[index];
    let is_allowed = match allowed {
        [] => endpoint.health.is_healthy(),
        allowed => allowed.contains(&endpoint.health),
    };
    if !is_allowed {
        return None;
    }
    match endpoint.stats.availability() {
        Connectivity::Ready => Some(PickResult::Endpoint(index)),
        Connectivity::Idle => {
            endpoint.stats.want();
            Some(PickResult::Queue)
        }
        Connectivity::Connecting => Some(PickResult::Queue),
        Connectivity::TransientFailure => None,
    }
}
