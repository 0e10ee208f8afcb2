//! What to do with a request, decided without I/O.
//!
//! `mesh-core` holds the configuration a control plane declares, the tables compiled from it, and
//! the decisions taken per request: which route, which cluster, which endpoint, whether to retry.
//! It has no sockets, no timers, no spawn, no protobuf and no clock: time and randomness are
//! passed in, so every decision can be replayed.
//!
//! ```text
//! config ──► snapshot::compile ──► snapshot::store ═══ pointer swap ═══► route ► balance ► retry
//! ```
//!
//! Modules import only downward in this order:
//! `snapshot → {route, balance, health, retry, authz} → {stats, observed, outcome, rng, rcu, shard, load, sync, secrets} → config → name`.

pub mod authz;
pub mod balance;
pub mod config;
pub mod error;
pub mod filter;
pub mod health;
pub mod load;
pub mod name;
pub mod observed;
pub mod outcome;
pub mod rcu;
pub mod retry;
pub mod rng;
pub mod route;
pub mod secrets;
pub mod shard;
pub mod snapshot;
pub mod stats;
mod sync;
#[cfg(feature = "test-util")]
pub mod testing;

pub use error::ConfigError;
pub use name::{ClusterName, EndpointsName, ListenerName, RouteConfigName, SecretName};
