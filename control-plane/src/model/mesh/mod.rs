//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod hedge_policy;

pub use hedge_policy::HedgePolicy;
