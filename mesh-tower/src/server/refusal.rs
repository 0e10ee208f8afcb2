//! Answers that the application does not give.
//!
//! A gRPC caller gets a trailers-only response, every other an HTTP status. The text never says
//! which policy refused: that is for the audit record.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::ServedBody;
use crate::telemetry::{Code, Protocol};

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    grpc: u32,
    message: Cow<'static, str>,
    hint: Hint,
}

/// What the caller may do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hint {
    None,
    /// Send a better token (RFC 6750 §3).
    Challenge,
    /// Go there.
    Location(HeaderValue),
}

impl Refusal {
    const fn new(status: StatusCode, grpc: u32, message: &'static str) -> Self {
        Self {
            status,
            grpc,
            message: Cow::Borrowed(message),
            hint: Hint::None,
        }
    }

    /// The token is not believed.
    pub(super) fn unauthenticated(why: &'static str) -> Self {
        Self {
            hint: Hint::Challenge,
            ..Self::new(StatusCode::UNAUTHORIZED, 16, why)
        }
    }

    /// The caller is sent to another spelling of the path.
    pub(super) fn redirect(path: &str) -> Self {
        match HeaderValue::from_str(path) {
            Ok(path) => Self {
                hint: Hint::Location(path),
                ..Self::new(
                    StatusCode::TEMPORARY_REDIRECT,
                    13,
                    "the path has another spelling",
                )
            },
            Err(_) => Self::BAD_PATH,
        }
    }

    /// The authority is missing its one meaning (gRFC A41).
    pub(super) const AMBIGUOUS_AUTHORITY: Self =
        Self::new(StatusCode::BAD_REQUEST, 13, "more than one authority");
    pub(super) const MALFORMED_TIMEOUT: Self =
        Self::new(StatusCode::BAD_REQUEST, 13, "malformed grpc-timeout");
    /// Nobody knows what the path means (Envoy answers the same).
    pub(super) const BAD_PATH: Self =
        Self::new(StatusCode::BAD_REQUEST, 13, "the path has no one meaning");
    pub(super) const DENIED: Self = Self::new(StatusCode::FORBIDDEN, 7, "RBAC: access denied");
    pub(super) const NO_ROUTE: Self =
        Self::new(StatusCode::NOT_FOUND, 14, "no route of this server matches");
    pub(super) const UNUSABLE_ROUTE: Self = Self::new(
        StatusCode::SERVICE_UNAVAILABLE,
        14,
        "the route cannot be served here",
    );
    pub(super) const NOT_SERVING: Self = Self::new(
        StatusCode::SERVICE_UNAVAILABLE,
        14,
        "this connection is not served any more",
    );
    pub(super) const DEADLINE: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, 4, "the deadline passed");
    pub(super) const FAILED: Self = Self::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        13,
        "the application failed",
    );

    /// What counters and spans say.
    pub(super) fn code(&self, protocol: Protocol) -> Code {
        match protocol {
            Protocol::Grpc => Code::Grpc(self.grpc),
            Protocol::Http => Code::Http(self.status.as_u16()),
        }
    }

    /// The response.
    pub(super) fn response<B>(&self, protocol: Protocol) -> Response<ServedBody<B>> {
        match protocol {
            Protocol::Http => {
                let mut text = self.message.clone().into_owned();
                text.push('\n');
                let mut response = Response::new(ServedBody::full(text.into()));
                *response.status_mut() = self.status;
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                self.hint(response.headers_mut());
                response
            }
            Protocol::Grpc => {
                let mut response = Response::new(ServedBody::empty());
                *response.headers_mut() = self.trailers();
                let grpc = HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(header::CONTENT_TYPE, grpc);
                self.hint(response.headers_mut());
                response
            }
        }
    }

    fn hint(&self, headers: &mut HeaderMap) {
        match &self.hint {
            Hint::None => {}
            Hint::Challenge => {
                let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Hint::Location(path) => _ = headers.insert(header::LOCATION, path.clone()),
        }
    }

    /// The gRPC status with its message.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(3);
        trailers.insert("grpc-status", HeaderValue::from(self.grpc));
        trailers.insert("grpc-message", percent_encode(&self.message));
        trailers
    }
}

/// gRPC over HTTP/2: all but printable ASCII, and `%`, is written as `%XX`.
fn percent_encode(message: &str) -> HeaderValue {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
        assert_eq!(percent_encode("RBAC: access denied"), "RBAC: access denied");
    }
}
