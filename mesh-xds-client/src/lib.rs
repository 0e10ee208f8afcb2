//! From an ADS stream to complete configuration, and from a CSR to a certificate.
//!
//! [`XdsClient`] keeps one stream to the control plane and publishes what it learns as
//! [`mesh_core`] snapshots. It opens no connection to an application, and it never sees or decides
//! about a request. [`certificate`] obtains the process's own certificate.
//!
//! ```text
//! transport ─► ads ─► resource ─► cache ─► graph ─► mesh_core::snapshot
//! ```
//!
//! | feature | specification | status |
//! |---|---|---|
//! | aggregated stream, state of the world and incremental | xDS protocol, gRFC A27, A40 | yes |
//! | partial acceptance, NACK per resource | gRFC A46 | yes |
//! | does-not-exist timers | gRFC A57 | yes |
//! | error model with the features of servers | gRFC A53, A88 | yes |
//! | single resources with flow control | gRFC A88 | yes, [`XdsClient::watch`] |
//! | `resource_errors` | xRFC TP3 | yes |
//! | time to live, heartbeats | xDS protocol | yes |
//! | LDS, RDS, CDS, EDS of clients | gRFC A27, A28, A31, A32, A44, A48 | yes |
//! | every field honoured, reported or refused | docs/xds-fields.md | yes |
//! | server listeners with RBAC | gRFC A36, A41 | yes, with inline routes |
//! | TLS by provider instance and by SDS | gRFC A29, Envoy SDS | yes |
//! | complete or nothing | gRFC A74 | yes |
//! | aggregates, logical and strict DNS | gRFC A37, A75 | yes |
//! | endpoints with several addresses | gRFC A61 | yes |
//! | zone-aware routing, subsets | Envoy `ZoneAwareLbConfig`, gRFC A68 | yes, with [`XdsClientBuilder::local_cluster`] and [`XdsClientBuilder::client_position`] |
//! | fallback servers, federation | gRFC A71, A47, A95 | yes; glob collections are refused |
//! | virtual hosts and endpoints on demand | VHDS, LEDS (gRFC A95) | no: refused by the field's path |
//! | certificates from a signer, from files, from an agent | Istio CSR, gRFC A29 `file_watcher`, A87, SPIFFE Workload API | yes; of the Workload API X.509 alone |
//! | `tls` and `insecure` channels, tokens, `unix:` | gRFC A65, A97 | yes |
//! | last good state on disk | – | yes |
//! | status service | CSDS, gRFC A40 | yes |
//! | metrics | gRFC A78 | yes, [`XdsClient::metrics`] |
//! | checks of authorization services | `envoy.service.auth.v3`, gRFC A92 | yes, [`check`]: what is said, not who is asked |
//! | metrics of backends | ORCA with each response, gRFC A51 | yes, [`orca`]; not out of band |
//! | registration under a lease | ours, `mesh.registry.v1` | yes, [`registry`] |
//! | load reports | LRS, gRFC A27, A85 | yes, per locality and endpoint, with drops and metrics |
//!
//! Modules import only downward in this order:
//! `client → driver → connection → {transport, ads}`, `driver → {authority, graph, store, dns}`,
//! `graph → cache → resource`, `registry → transport`, and `certificate`,
//! `check`, `bootstrap`, `orca` and `dump` beside them.

mod ads;
mod authority;
pub mod bootstrap;
mod cache;
pub mod certificate;
pub mod check;
mod client;
mod connection;
mod dns;
mod driver;
pub mod dump;
mod error;
mod graph;
mod load;
pub mod metrics;
#[cfg(test)]
mod mutate;
mod notices;
pub mod orca;
pub mod registry;
#[allow(
    deprecated,
    reason = "Istio and older control planes send the deprecated fields too"
)]
mod resource;
mod store;
#[cfg(feature = "test-util")]
pub mod testing;
mod transport;
mod watch;
pub mod watcher;

pub use ads::Variant;
pub use bootstrap::Bootstrap;
pub use client::{BACKOFF_BASE, BACKOFF_CAP, XdsClient, XdsClientBuilder};
pub use driver::Driver;
pub use dump::Freshness;
pub use error::Error;
pub use graph::{NAMED_CLUSTERS_MAX, Resource};
pub use resource::{
    ClusterSource, ClusterSpec, DnsFamily, DnsHost, DnsLookup, DnsSource, LoadReports,
    decode_rbac_filter, decode_route_config,
};
pub use transport::{StreamStatus, csds::StatusService};
pub use watch::{InboundState, InboundWatch, TrustBundleWatch};
