//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod balancer_policy;

pub use balancer_policy::{BalancerPolicy, PeakEwmaSpec, PrequalSpec};
