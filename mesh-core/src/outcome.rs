//! What became of an attempt.
//!
//! Stage 13. The data path classifies a response or an error into an [`Outcome`]; retries, health
//! and metrics read it. It carries nothing that would have to be cloned.

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this HTTP status, not gRPC, or gRPC without a status in its head.
    Http(u16),
    /// A gRPC response whose status is in its head (trailers-only).
    Grpc(u32),
    /// No connection could be made; the request never left.
    ConnectFailure,
    /// The request never left: the connection closed, or the server refused the stream.
    Refused,
    /// The connection or the stream ended without a response.
    Reset,
    /// The attempt took longer than its limit.
    PerTryTimeout,
}

impl Outcome {
    /// Whether it counts as a success of the endpoint. gRPC codes follow Envoy's mapping: only
    /// those of a broken server are failures.
    pub fn is_success(self) -> bool {
        match self {
            Self::Http(status) => status < 500,
            // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
            Self::Grpc(code) => !matches!(code, 2 | 4 | 12 | 13 | 14 | 15),
            _ => false,
        }
    }

    /// Whether the server never saw the request, so that sending it again is always safe.
    pub fn never_sent(self) -> bool {
        matches!(self, Self::ConnectFailure | Self::Refused)
    }
}
