//! Side-by-side benchmarks of the mesh and of what people would use instead.
//!
//! ```text
//! bench library   what a call costs above an endpoint that answers at once
//! bench wire      over loopback, beside bare channels, peers and sidecars
//! bench pick      choosing an endpoint, every policy, beside tower's balancers
//! bench security  certificates that are signed, rules that are asked
//! bench big       ten thousand clusters: ready time, memory, churn
//! gate            instructions, allocations and future sizes, against `gate.toml`
//! ```
//!
//! Families are independent of each other and share [`harness`] (rounds, clocks, loads) and
//! [`report`] (tables and the plot). Contenders take turns within each round, so that whatever
//! else the machine does falls on all of them alike; figures are medians with their range.
//! Wall-clock figures are for people. Only [`gate`] fails a build.

pub mod big;
pub mod gate;
pub mod harness;
pub mod library;
pub mod pick;
pub mod report;
pub mod security;
pub mod wire;
