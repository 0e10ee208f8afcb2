//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod balancer_policy;
mod mesh_policy;

pub use balancer_policy::{BalancerPolicy, PeakEwmaSpec, PrequalSpec};
pub use mesh_policy::MeshPolicy;
