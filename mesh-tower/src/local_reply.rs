//! Answers that this process gives without asking anybody.
//!
//! What Envoy's `sendLocalReply` gives: an HTTP caller gets status, headers and body; a gRPC caller
//! gets a trailers-only response whose status is made from the HTTP status, with the body as its
//! message.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use mesh_core::outcome::grpc_status_of;

use crate::{
    ResponseBody,
    cluster::MakeEndpoint,
    headers::percent_encode,
    telemetry::{Code, LocalReplyReason, Protocol, grpc_status},
};

/// An answer of this process.
#[derive(Clone, Debug)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) reason: LocalReplyReason,
}

impl LocalReply {
    pub(crate) fn new(reason: LocalReplyReason, status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body,
            reason,
        }
    }

    /// The same as a caller that speaks `protocol` understands it. Whoever asks with `HEAD` gets no
    /// body.
    pub(crate) fn spoken(mut self, protocol: Protocol, is_head: bool) -> Self {
        let headers = &mut self.headers;
        match protocol {
            Protocol::Grpc => {
                let grpc = HeaderValue::from_static("application/grpc");
                headers.insert(header::CONTENT_TYPE, grpc);
                if grpc_status(headers).is_none() {
                    let status = grpc_status_of(self.status.as_u16());
                    headers.insert("grpc-status", HeaderValue::from(status));
                }
                if !self.body.is_empty() {
                    let text = String::from_utf8_lossy(&self.body);
                    headers.insert("grpc-message", percent_encode(&text));
                }
                self.status = StatusCode::OK;
                self.body = Bytes::new();
            }
            Protocol::Http => {
                if !self.body.is_empty() {
                    let length = HeaderValue::from(self.body.len());
                    headers.insert(header::CONTENT_LENGTH, length);
                    let plain = HeaderValue::from_static("text/plain");
                    headers.entry(header::CONTENT_TYPE).or_insert(plain);
                }
                if is_head {
                    self.body = Bytes::new();
                }
            }
        }
        self
    }

    /// What counters and spans say of one that is [`spoken`](Self::spoken).
    pub(crate) fn code(&self, protocol: Protocol) -> Code {
        match (protocol, grpc_status(&self.headers)) {
            (Protocol::Grpc, Some(status)) => Code::Grpc(status),
            _ => Code::Http(self.status.as_u16()),
        }
    }

    pub(crate) fn into_response<M: MakeEndpoint>(self) -> Response<ResponseBody<M>> {
        let mut response = Response::new(ResponseBody::local(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
