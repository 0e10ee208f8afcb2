//! Whether and when to try again, and when to try once more beside.
//!
//! Stage 9. The budget, which is shared by a cluster's requests, is in
//! [`Circuit`](crate::health::Circuit).

mod backoff;
mod caller;
mod latency;
mod pause;
mod policy;

pub use backoff::backoff;
pub use caller::{CallerTimes, EXPECTED_TIMEOUT, take_retry_policy, unreadable};
pub use latency::{LATENCY_SAMPLES_MIN, Latencies};
pub use pause::{Pause, pause};
pub use policy::{Attempted, is_retriable, may_retry};
