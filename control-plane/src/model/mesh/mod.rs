//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod mesh_policy;

pub use mesh_policy::MeshPolicy;
