//! The gRPC door of the mesh.
//!
//! ```no_run
//! use mesh_tonic::MeshExt;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mesh = mesh_tower::Mesh::from_env().await?;
//! let channel = mesh.channel("xds:///greeter.default")?;
//! // let mut greeter = GreeterClient::new(channel);
//! # let _ = channel; Ok(()) }
//! ```
//!
//! [`Channel`] is what a tonic-generated client takes in place of tonic's own: concrete error type
//! (`tonic::Status`), `Clone + Send + Sync`, usable in `tokio::spawn`. Servers need nothing from
//! this crate: [`Mesh::serve`](mesh_tower::Mesh::serve) takes tonic's routes.
//!
//! It does not route, balance or retry by itself; that is `mesh-tower`.

mod channel;
#[cfg(feature = "xds")]
pub mod orca;
mod status;
mod target;

#[cfg(feature = "xds")]
pub use channel::MeshExt;
pub use channel::{Channel, ResponseBody, ResponseFuture};
pub use status::{AsStatus, to_status};
pub use target::{Target, TargetError};
