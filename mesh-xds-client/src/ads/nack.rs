//! The text of a refusal.
//!
//! Stage 2. Names every bad resource with the field path of each error (gRFC A46), within a bound:
//! the operator of the control plane reads it in a log line.

use std::fmt::Write as _;

use envoy_types::pb::google::rpc::Status;

use crate::resource::{Kind, Rejected};

/// gRPC code of a refusal.
const INVALID_ARGUMENT: i32 = 3;

/// Errors written out per resource; the rest are counted.
const ERRORS_MAX: usize = 5;

/// Length at which details stop and only names follow, in bytes.
const LENGTH_MAX: usize = 16 << 10;

pub(super) fn compose(kind: Kind, rejected: &[Rejected], total: usize) -> String {
    let mut text = format!("{} of {total} resources refused", rejected.len());
    for (i, resource) in rejected.iter().enumerate() {
        let separator = if i == 0 { ": " } else { " | " };
        text.push_str(separator);
        if text.len() > LENGTH_MAX {
            let name = resource.name.as_deref().unwrap_or("(without a name)");
            _ = write!(text, "{} {name}", kind.noun());
            continue;
        }
        for (i, error) in resource.errors.iter().take(ERRORS_MAX).enumerate() {
            match (i, error.path.as_str()) {
                (0, _) => _ = write!(text, "{error}"),
                (_, "") => _ = write!(text, "; {}", error.reason),
                (_, path) => _ = write!(text, "; {path}: {}", error.reason),
            }
        }
        if resource.errors.len() > ERRORS_MAX {
            _ = write!(
                text,
                "; and {} more errors",
                resource.errors.len() - ERRORS_MAX
            );
        }
    }
    text
}

/// The refusal on the wire.
pub(super) fn status(message: String) -> Status {
    Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    }
}
