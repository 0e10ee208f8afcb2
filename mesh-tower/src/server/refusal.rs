//! Answers that the application does not give.
//!
//! A gRPC caller gets a trailers-only response, every other an HTTP status. The text never says
//! which policy refused: that is for the audit record.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use mesh_core::{filter::Answer, outcome::grpc_status_of};

use super::body::ServedBody;
use crate::{
    headers::percent_encode,
    jwt::Rejected,
    telemetry::{Code, Protocol},
};

/// Headers of the connection and of the status, which are ours.
const FRAMING: [&str; 6] = [
    "connection",
    "content-length",
    "grpc-message",
    "grpc-status",
    "te",
    "transfer-encoding",
];

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    grpc: u32,
    message: Cow<'static, str>,
    /// Of HTTP answers, in place of the message.
    body: Option<Bytes>,
    /// More headers of the answer.
    headers: Option<Box<HeaderMap>>,
}

impl Refusal {
    const fn new(status: StatusCode, grpc: u32, message: &'static str) -> Self {
        Self {
            status,
            grpc,
            message: Cow::Borrowed(message),
            body: None,
            headers: None,
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        let headers = self.headers.get_or_insert_default();
        headers.insert(name, value);
        self
    }

    /// The token is not believed (RFC 6750 §3); one for somebody else is believed and no use here (Envoy
    /// answers the same).
    pub(super) fn unauthenticated(why: Rejected) -> Self {
        if why == Rejected::Audience {
            return Self::new(StatusCode::FORBIDDEN, 7, why.as_str());
        }
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        Self::new(StatusCode::UNAUTHORIZED, 16, why.as_str())
            .with(header::WWW_AUTHENTICATE, challenge)
    }

    /// The caller is sent to another spelling of the path.
    pub(super) fn redirect(path: &str) -> Self {
        let there = "the path has another spelling";
        match HeaderValue::from_str(path) {
            Ok(path) => {
                Self::new(StatusCode::TEMPORARY_REDIRECT, 13, there).with(header::LOCATION, path)
            }
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
    /// A verdict that cannot be carried out (Envoy answers the same).
    pub(super) const FAILED_CHECK: Self = Self::new(StatusCode::INTERNAL_SERVER_ERROR, 13, "");
    pub(super) const FAILED: Self = Self::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        13,
        "the application failed",
    );

    pub(super) const BAD_BODY: Self = Self::new(
        StatusCode::BAD_REQUEST,
        13,
        "the request's body cannot be read",
    );
    pub(super) const LARGE_HEAD: Self = Self::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        8,
        "the request's headers are too large",
    );
    pub(super) const UNDERSCORE: Self = Self::new(
        StatusCode::BAD_REQUEST,
        13,
        "a header's name has an underscore",
    );
    /// Envoy's statuses; gRPC callers learn that it was a matter of time.
    pub(super) const REQUEST_TIMEOUT: Self =
        Self::new(StatusCode::REQUEST_TIMEOUT, 4, "request timeout");
    /// The caller did not go on.
    pub(super) const REQUEST_IDLE: Self =
        Self::new(StatusCode::REQUEST_TIMEOUT, 4, "stream timeout");
    /// The application did not go on.
    pub(super) const STREAM_IDLE: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, 4, "stream timeout");

    /// A filter's answer.
    pub(super) fn filtered(answer: Answer) -> Self {
        let status = answer.status;
        Self {
            status,
            grpc: answer
                .grpc_status
                .unwrap_or_else(|| grpc_status_of(status.as_u16())),
            message: Cow::Borrowed(answer.body),
            body: None,
            headers: Some(Box::new(answer.headers)),
        }
    }

    /// What a route answers by itself.
    pub(super) fn routed(status: u16, body: Bytes, headers: HeaderMap) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            grpc: grpc_status_of(status),
            message: String::from_utf8_lossy(&body).into_owned().into(),
            body: Some(body),
            headers: Some(Box::new(headers)),
        }
    }

    /// Another service's refusal.
    pub(super) fn checked(
        status: StatusCode,
        message: Cow<'static, str>,
        mut headers: HeaderMap,
    ) -> Self {
        // How long the answer is, and how it is sent, is not that service's to say.
        for name in FRAMING {
            headers.remove(name);
        }
        Self {
            status,
            grpc: grpc_status_of(status.as_u16()),
            message,
            body: None,
            headers: Some(Box::new(headers)),
        }
    }

    /// What it says.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What counters and spans say.
    pub(super) fn code(&self, protocol: Protocol) -> Code {
        match protocol {
            Protocol::Grpc => Code::Grpc(self.grpc),
            Protocol::Http => Code::Http(self.status.as_u16()),
        }
    }

    /// The response.
    pub(super) fn response<B>(&self, protocol: Protocol) -> Response<ServedBody<B>> {
        let headers = self.headers.as_deref();
        let mut response = match protocol {
            Protocol::Http if self.message.is_empty() => {
                let mut response = Response::new(ServedBody::empty());
                *response.status_mut() = self.status;
                response
            }
            Protocol::Http => {
                let text = self.body.clone().unwrap_or_else(|| {
                    let mut text = self.message.clone().into_owned();
                    if headers.is_none() {
                        text.push('\n');
                    }
                    text.into()
                });
                let mut response = Response::new(ServedBody::full(text));
                *response.status_mut() = self.status;
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                response
            }
            Protocol::Grpc => {
                let mut response = Response::new(ServedBody::empty());
                *response.headers_mut() = self.trailers();
                let grpc = HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(header::CONTENT_TYPE, grpc);
                response
            }
        };
        for name in headers.into_iter().flat_map(HeaderMap::keys) {
            response.headers_mut().remove(name);
        }
        for (name, value) in headers.into_iter().flatten() {
            response.headers_mut().append(name, value.clone());
        }
        response
    }

    /// The gRPC status with its message.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(3);
        trailers.insert("grpc-status", HeaderValue::from(self.grpc));
        trailers.insert("grpc-message", percent_encode(&self.message));
        trailers
    }
}
