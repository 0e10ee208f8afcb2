//! Tower services that run the mesh's decisions for any `http::Request`.
//!
//! ```text
//! request ─► MeshService ─► route ─► permit ─► deadline ─► attempts ─► pick ─► endpoint ─► wire
//!                                                                                │
//! application ◄─ Server ◄─ deadline ◄─ authorisation ◄─ identity ◄─ TLS ◄────────┘
//! ```
//!
//! `Mesh` (feature `xds`, on by default) is the handle an application holds: it makes clients and
//! serves. [`MeshService`] works without it, from a hand-made snapshot.
//!
//! Modules import only downward in this order:
//! `mesh → {registration, http_client, service} → {call, explain} → {local_reply, response, in_flight,
//! extras} → listener → {cluster, connect} → {outgoing, head} → {server, tls} → {telemetry, context, identity,
//! body, error, orca, headers, source_ip}`.

#[cfg(feature = "xds")]
mod authorization;
mod body;
mod call;
mod cluster;
pub mod connect;
pub mod context;
mod error;
pub mod explain;
mod ext;
mod extras;
#[cfg(test)]
mod fuzz;
mod happy_eyeballs;
mod head;
mod headers;
#[cfg(feature = "xds")]
mod http_client;
pub mod identity;
mod in_flight;
mod jwt;
mod listener;
mod local_reply;
#[cfg(feature = "xds")]
mod mesh;
mod orca;
mod outgoing;
#[cfg(feature = "xds")]
mod registration;
mod response;
mod rng;
pub mod server;
mod service;
mod source_ip;
pub mod telemetry;
pub mod tls;
mod within;

pub use body::{Body, MIRROR_LAG_BYTES_MAX, REPLAY_BYTES_MAX};
pub use call::{
    CONNECTING_WAIT_MAX, MIRROR_RESPONSE_BYTES_MAX, MIRROR_TIMEOUT, MIRRORS_IN_FLIGHT_MAX,
    ResponseFuture, TRANSPARENT_RETRIES_MAX,
};
pub use cluster::{BoxExchange, EndpointContext, EndpointService, Exchange, MakeEndpoint};
pub use error::{
    AsError, BoxError, DispatchError, DispatchErrorKind, Error, ErrorKind, Origin, ShowError,
};
pub use ext::{ClusterInFlight, SelectedEndpoint};
#[cfg(feature = "xds")]
pub use http_client::{AUTHORITIES_MAX, HttpClient};
pub use listener::{FIRST_CONFIG_WAIT_MAX, NAMED_CLUSTER_WAIT_MAX, NAMED_CLUSTERS_WAITING_MAX};
#[cfg(feature = "xds")]
pub use mesh::{DRAIN_TIMEOUT, Mesh, MeshBuilder, SetupError};
pub use outgoing::Outgoing;
#[cfg(feature = "xds")]
pub use registration::{Registration, RegistrationHandle, RegistrationStatus};
pub use response::ResponseBody;
pub use service::MeshService;
