//! The control plane: reads intent from files, compiles it, serves xDS and certificates.
//!
//! ```text
//! source ─► model ─► compile ─► encode ─► cache ─► server
//!         registry ────┘                  ca ─────┘
//! ```
//!
//! [`ControlPlane`] runs it in a process, as the binary `control-plane` and the tests do. Modules
//! import only downward in this order:
//! `cli → run → {admin, follow} → server → cache → encode`, `source → model`, `compile → {registry, model}`, and `ca`,
//! `class`, `debounce`, `diagnostic`, `metrics` and `value` beside them. [`agent`] is a client, over `dial`.

pub mod admin;
pub mod agent;
pub mod audit;
pub mod ca;
pub mod cache;
pub mod check;
pub mod class;
pub mod cli;
pub mod compile;
mod debounce;
pub mod diagnostic;
mod dial;
pub mod encode;
pub mod explain;
mod follow;
mod keys;
pub mod metrics;
pub mod model;
pub mod registry;
pub mod rotate;
mod run;
pub mod server;
pub mod services;
pub mod source;
mod value;

pub use run::{CERT_TTL, ControlPlane, ControlPlaneBuilder, HTTP_PORT, Running, Tls, XDS_PORT};
