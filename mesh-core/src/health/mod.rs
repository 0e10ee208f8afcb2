//! State that requests feed and that limits requests.
//!
//! Stage 10. Circuit breaking here means a limit on requests in flight (gRFC A32), not a reaction
//! to failures; that is outlier detection.

mod check;
mod circuit;
mod connections;
mod outlier;

pub use check::{CheckOutcome, CheckedEndpoint};
pub use circuit::{Circuit, Permits, RETRIES_EARNED_MAX};
pub use connections::ConnectionCircuit;
pub use outlier::{OutlierDetector, is_suspicious};
