//! What a server says of its load (ORCA, gRFC A51): with each response, or beside the requests.
//!
//! ```
//! use mesh_tonic::orca::{MetricRecorder, OrcaLayer, OrcaService};
//! use tower::ServiceBuilder;
//!
//! let metrics = MetricRecorder::default();
//! metrics.set_application_utilization(0.4).set_requests_per_second(250.0);
//! // Reports out of band, for clients that ask for them.
//! let routes = tonic::service::Routes::new(OrcaService::new(metrics.clone()));
//! // Reports with each response; a handler finds its own recorder, a `CallMetrics`, among the
//! // extensions of its request.
//! let application = ServiceBuilder::new().layer(OrcaLayer::new(metrics)).service(routes.prepare());
//! # let _ = application;
//! ```
//!
//! Clients that balance by it: client-side weighted round robin (gRFC A58) wants requests per second and
//! one utilisation.

mod layer;
mod recorder;
mod service;

pub use layer::{OrcaLayer, OrcaReporting};
pub use recorder::{CallMetrics, MetricRecorder};
pub use service::{MIN_REPORT_INTERVAL, OrcaService, REPORT_INTERVAL_MAX, REPORT_INTERVAL_MIN};
