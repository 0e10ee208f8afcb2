//! The one table from mesh errors to gRPC codes.
//!
//! Codes of the control plane never reach a call (gRFC A54): what is wrong with configuration is
//! UNAVAILABLE with a text that names the resource.

use std::sync::Arc;

use mesh_tower::{Error, ErrorKind, ShowError, telemetry::Protocol};
use tonic::{Code, Status};

/// The status of a call that failed with `error`; the error is its source.
pub fn to_status(error: Error) -> Status {
    let mut status = Status::new(code(error.kind()), error.to_string());
    status.set_source(Arc::new(error));
    status
}

/// Errors are shown as statuses.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsStatus;

impl ShowError for AsStatus {
    type Error = Status;

    // Generated clients send nothing else.
    const PROTOCOL: Option<Protocol> = Some(Protocol::Grpc);

    fn show(error: Error) -> Status {
        to_status(error)
    }
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::DeadlineExceeded | ErrorKind::PerTryTimeout => Code::DeadlineExceeded,
        ErrorKind::InvalidRequest => Code::Internal,
        // NoConfig, NoRoute, Unsupported, NoEndpoint, CircuitOpen, Dropped, Connect, Refused, Reset, and
        // what is to come: the call may work elsewhere or later.
        _ => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for (kind, expected) in [
            (ErrorKind::InvalidRequest, Code::Internal),
            (ErrorKind::NoConfig, Code::Unavailable),
            (ErrorKind::NoRoute, Code::Unavailable),
            (ErrorKind::Unsupported, Code::Unavailable),
            (ErrorKind::NoEndpoint, Code::Unavailable),
            (ErrorKind::CircuitOpen, Code::Unavailable),
            (ErrorKind::Dropped, Code::Unavailable),
            (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded),
            (ErrorKind::Connect, Code::Unavailable),
            (ErrorKind::Refused, Code::Unavailable),
            (ErrorKind::Reset, Code::Unavailable),
            (ErrorKind::PerTryTimeout, Code::DeadlineExceeded),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }
}
