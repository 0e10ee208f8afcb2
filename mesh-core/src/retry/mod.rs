//! Whether and when to try again.
//!
//! Stage 9. The budget, which is shared by a cluster's requests, is in
//! [`Circuit`](crate::health::Circuit).

mod backoff;
mod policy;

pub use backoff::backoff;
pub use policy::is_retriable;
