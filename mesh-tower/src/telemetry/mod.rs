//! Spans and metrics of calls and served requests.
//!
//! Stage 13, both directions. [`Telemetry`] is a handle held by value: nothing here reads or sets a
//! process-wide provider. Metrics are always counted, in handles resolved beforehand; spans cost
//! one branch until an exporter is configured. It does not log and keeps no request.
//!
//! Spec: OpenTelemetry semantic conventions for RPC and HTTP, W3C Trace Context and Baggage.

mod certificate;
mod code;
#[cfg(feature = "xds")]
mod control_plane;
mod counts;
mod export;
mod handshakes;
mod local_reply;
pub mod metrics;
mod serve;
mod span;

use std::{fmt, sync::Arc};

use opentelemetry_sdk::trace::SdkTracerProvider;

pub(crate) use code::grpc_status;
pub use code::{Code, Protocol};
#[cfg(feature = "xds")]
pub(crate) use control_plane::{ControlPlaneRows, Labels};
pub(crate) use counts::{Counts, Extra};
pub use export::{TelemetryBuilder, TelemetryError};
pub(crate) use handshakes::HandshakeFailures;
pub(crate) use local_reply::LocalReplyReason;
pub(crate) use metrics::ListenerMetrics;
pub use metrics::Metrics;
pub use serve::serve_metrics;
pub(crate) use span::AttemptSpan;
pub use span::{CallHead, CallSpan, InContext, ServerHead, ServerSpan};

/// Where spans and metrics go. Clones share everything; the default exports no spans.
#[derive(Clone, Default)]
pub struct Telemetry {
    tracing: Option<Arc<Tracing>>,
    metrics: Metrics,
}

pub(crate) struct Tracing {
    provider: SdkTracerProvider,
    tracer: opentelemetry_sdk::trace::SdkTracer,
}

impl Telemetry {
    /// Metrics alone, without spans.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Configures the export of spans.
    pub fn builder() -> TelemetryBuilder {
        TelemetryBuilder::default()
    }

    /// Follows the OpenTelemetry environment: `OTEL_EXPORTER_OTLP_ENDPOINT` (or
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_SERVICE_NAME`,
    /// `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_EXPORTER`,
    /// `OTEL_SDK_DISABLED`.
    ///
    /// Without an endpoint no spans are exported. Without a protocol, port 4317 means gRPC and
    /// every other `http/protobuf`. Call it inside a Tokio runtime.
    ///
    /// # Errors
    /// When the endpoint or the protocol cannot be used.
    pub fn from_env() -> Result<Self, TelemetryError> {
        export::from_env(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Whether spans are exported.
    pub fn is_tracing(&self) -> bool {
        self.tracing.is_some()
    }

    /// The counters of this process.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Sends what is buffered, without ending.
    pub async fn flush(&self) {
        self.blocking("flush", |tracing| tracing.provider.force_flush())
            .await;
    }

    /// Sends what is buffered and ends the export. Later spans are lost; metrics go on.
    pub async fn shutdown(&self) {
        self.blocking("shut down", |tracing| tracing.provider.shutdown())
            .await;
    }

    /// The SDK blocks the calling thread while its own thread exports, and the exporter needs the
    /// runtime's threads.
    async fn blocking<F>(&self, what: &'static str, f: F)
    where
        F: FnOnce(&Tracing) -> opentelemetry_sdk::error::OTelSdkResult + Send + 'static,
    {
        let Some(tracing) = self.tracing.clone() else {
            return;
        };
        let result = tokio::task::spawn_blocking(move || f(&tracing)).await;
        match result {
            Ok(Ok(())) | Ok(Err(opentelemetry_sdk::error::OTelSdkError::AlreadyShutdown)) => {}
            Ok(Err(error)) => {
                tracing::warn!(target: "mesh::telemetry", %error, "cannot {what} the span export");
            }
            Err(error) => {
                tracing::warn!(target: "mesh::telemetry", %error, "cannot {what} the span export");
            }
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("tracing", &self.is_tracing())
            .finish_non_exhaustive()
    }
}
