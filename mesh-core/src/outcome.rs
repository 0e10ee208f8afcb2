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
    /// A limit of this process kept it from being sent.
    Overflow,
}

/// An attempt as the health of its endpoint sees it (Envoy's outlier detection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint did what it was asked for.
    Success,
    /// It answered that it failed: 5xx, or the gRPC status of a broken server.
    ServerFailure,
    /// It answered that what is behind it cannot be reached: 502, 503, 504, UNAVAILABLE,
    /// DEADLINE_EXCEEDED.
    GatewayFailure,
    /// It did not answer.
    LocalFailure,
    /// Nothing: another attempt answered first.
    Abandoned,
    /// It was not asked.
    NotAsked,
}

impl Outcome {
    /// What it says of the endpoint.
    #[inline]
    pub fn verdict(self) -> Verdict {
        match self {
            _ if self.is_success() => Verdict::Success,
            Self::Http(502..=504) | Self::Grpc(4 | 14) => Verdict::GatewayFailure,
            Self::Http(_) | Self::Grpc(_) => Verdict::ServerFailure,
            Self::ConnectFailure | Self::Refused | Self::Reset | Self::PerTryTimeout => {
                Verdict::LocalFailure
            }
            Self::Overflow => Verdict::NotAsked,
        }
    }

    /// Whether it counts as a success of the endpoint. gRPC codes follow Envoy's mapping: only
    /// those of a broken server are failures.
    #[inline]
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
        matches!(self, Self::ConnectFailure | Self::Refused | Self::Overflow)
    }
}

/// The gRPC status of a response that has none but its HTTP status (gRPC, "HTTP to gRPC Status Code
/// Mapping").
pub fn grpc_status_of(http: u16) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
