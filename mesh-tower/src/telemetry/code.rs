//! How a call ended, as one of a fixed set of labels.
//!
//! Stage 13. The set is fixed so that counters are found by index and a series never grows with
//! traffic. Words are those of gRPC and HTTP; local ends have words of their own.

use http::HeaderMap;
use mesh_core::outcome::Outcome;

use crate::headers::{find, find_own};

/// What is spoken: decides names of spans and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Any other HTTP.
    Http,
}

impl Protocol {
    /// Reads it from the content type of a request or response.
    #[inline]
    pub fn of(headers: &HeaderMap) -> Self {
        const GRPC: &[u8] = b"application/grpc";
        let rest = find(headers, &http::header::CONTENT_TYPE)
            .and_then(|value| value.as_bytes().strip_prefix(GRPC));
        // `application/grpc-web` is a protocol of its own.
        match rest {
            Some([] | [b'+' | b';' | b' ', ..]) => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// How a call, an attempt or a served request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// An HTTP status, not gRPC.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
    /// No connection could be made.
    ConnectFailure,
    /// The server did not take the request.
    Refused,
    /// It ended without a response.
    Reset,
    /// The deadline or a limit passed without a response.
    Timeout,
    /// The caller went away.
    Cancelled,
    /// A limit of this process was reached.
    Overload,
    /// No route, cluster or endpoint.
    Unroutable,
}

/// Number of different [`Code::index`] values.
pub(crate) const CODES: usize = GRPC.len() + HTTP.len() + 8;

/// How a gRPC call ended (gRPC over HTTP/2).
static GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

const HTTP: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Code {
    /// The label: a gRPC status name, an HTTP status class, or a word for a local end.
    pub fn label(self) -> &'static str {
        match self {
            Self::Http(status) => usize::from(status / 100)
                .checked_sub(1)
                .and_then(|i| HTTP.get(i))
                .unwrap_or(&"other"),
            Self::Grpc(code) => grpc_name(code),
            Self::ConnectFailure => "connect_failure",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Overload => "overload",
            Self::Unroutable => "unroutable",
        }
    }

    /// A number below [`CODES`], the same for equal labels.
    pub(crate) fn index(self) -> usize {
        const LOCAL: usize = GRPC.len() + HTTP.len();
        match self {
            Self::Grpc(code) => usize::try_from(code)
                .ok()
                .filter(|c| *c < GRPC.len())
                .unwrap_or(2),
            Self::Http(status @ 100..=599) => GRPC.len() + usize::from(status / 100) - 1,
            Self::Http(_) => LOCAL,
            Self::ConnectFailure => LOCAL + 1,
            Self::Refused => LOCAL + 2,
            Self::Reset => LOCAL + 3,
            Self::Timeout => LOCAL + 4,
            Self::Cancelled => LOCAL + 5,
            Self::Overload => LOCAL + 6,
            Self::Unroutable => LOCAL + 7,
        }
    }

    /// The label of an index.
    pub(crate) fn label_of(index: usize) -> &'static str {
        const LOCAL: [&str; 8] = [
            "other",
            "connect_failure",
            "refused",
            "reset",
            "timeout",
            "cancelled",
            "overload",
            "unroutable",
        ];
        let all = GRPC.iter().chain(&HTTP).chain(&LOCAL);
        all.copied().nth(index).unwrap_or("other")
    }

    /// Whether a client should see it as an error.
    pub(crate) fn is_client_error(self) -> bool {
        match self {
            Self::Http(status) => status >= 400,
            Self::Grpc(code) => code != 0,
            _ => true,
        }
    }

    /// Whether it is the server's own fault (OpenTelemetry: span status of servers).
    pub(crate) fn is_server_error(self) -> bool {
        match self {
            Self::Http(status) => status >= 500,
            // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
            Self::Grpc(code) => matches!(code, 2 | 4 | 12 | 13 | 14 | 15),
            Self::Cancelled => false,
            _ => true,
        }
    }
}

impl From<Outcome> for Code {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Http(status) => Self::Http(status),
            Outcome::Grpc(code) => Self::Grpc(code),
            Outcome::ConnectFailure => Self::ConnectFailure,
            Outcome::Refused => Self::Refused,
            Outcome::Reset => Self::Reset,
            Outcome::PerTryTimeout => Self::Timeout,
            Outcome::Overflow => Self::Overload,
        }
    }
}

/// The name of a gRPC status; an unknown one is `UNKNOWN`.
pub(crate) fn grpc_name(code: u32) -> &'static str {
    usize::try_from(code)
        .ok()
        .and_then(|code| GRPC.get(code))
        .unwrap_or(&GRPC[2])
}

/// The `grpc-status` among headers or trailers; a malformed one is `UNKNOWN`.
#[inline]
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    let value = find_own(headers, &GRPC_STATUS, b"grpc-status")?;
    let code = match value.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(u32::from(digit - b'0')),
        _ => value.to_str().ok().and_then(|text| text.parse().ok()),
    };
    Some(code.unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn index_and_label_agree() {
        let mut seen = HashMap::new();
        let local = [
            Code::ConnectFailure,
            Code::Refused,
            Code::Reset,
            Code::Timeout,
            Code::Cancelled,
            Code::Overload,
            Code::Unroutable,
        ];
        let all = (0..20)
            .map(Code::Grpc)
            .chain((0..=999).map(Code::Http))
            .chain(local);
        for code in all {
            assert!(code.index() < CODES, "{code:?}");
            let label = *seen.entry(code.index()).or_insert_with(|| code.label());
            assert_eq!(label, code.label(), "{code:?}");
            assert_eq!(Code::label_of(code.index()), label, "{code:?}");
        }
        assert_eq!(seen.len(), CODES);
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", Protocol::Grpc),
            ("application/grpc+proto", Protocol::Grpc),
            ("application/grpc;x", Protocol::Grpc),
            ("application/grpc-web", Protocol::Http),
            ("application/json", Protocol::Http),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", http::HeaderValue::from_static(value));
            assert_eq!(Protocol::of(&headers), expected, "{value}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Http);
    }
}
