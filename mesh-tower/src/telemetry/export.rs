//! How spans leave the process: OTLP over gRPC or HTTP, in batches.
//!
//! The batches are sent by a thread of the OpenTelemetry SDK; it borrows the Tokio runtime in which
//! the exporter was built for its sockets. Only `http://` collectors are supported: the usual
//! collector is an agent on the same machine.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider, SpanExporter, TracerProviderBuilder},
};
use tokio::{net::TcpStream, runtime::Handle};

use super::{Metrics, Telemetry, Tracing};

/// Longest time one export may take.
const EXPORT_WAIT_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a collector's answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

type AddExporter = Box<dyn FnOnce(TracerProviderBuilder) -> TracerProviderBuilder + Send>;

/// Configures [`Telemetry`].
#[must_use]
#[derive(Default)]
pub struct TelemetryBuilder {
    service_name: Option<String>,
    otlp: Option<Otlp>,
    exporter: Option<AddExporter>,
    ratio: Option<f64>,
    metrics: Option<Metrics>,
}

#[derive(Debug, PartialEq)]
enum Otlp {
    Grpc(String),
    Http(String),
}

impl TelemetryBuilder {
    /// `service.name` of this process. Default: `OTEL_SERVICE_NAME`, else `unknown_service`.
    pub fn service_name(mut self, name: impl Into<String>) -> Self {
        self.service_name = Some(name.into());
        self
    }

    /// Exports over OTLP/gRPC, for example to `http://localhost:4317`.
    pub fn otlp_grpc(mut self, endpoint: impl Into<String>) -> Self {
        self.otlp = Some(Otlp::Grpc(endpoint.into()));
        self
    }

    /// Exports over OTLP/HTTP in protobuf, for example to `http://localhost:4318`; `/v1/traces` is
    /// added when it is missing.
    pub fn otlp_http(mut self, endpoint: impl Into<String>) -> Self {
        self.otlp = Some(Otlp::Http(endpoint.into()));
        self
    }

    /// Exports to an exporter of the caller's own, in batches.
    pub fn exporter(mut self, exporter: impl SpanExporter + 'static) -> Self {
        self.exporter = Some(Box::new(|builder| builder.with_batch_exporter(exporter)));
        self
    }

    /// Share of traces without a sampled parent that are recorded, from 0 to 1. A parent's choice
    /// is always kept. Default: `OTEL_TRACES_SAMPLER`, else all.
    pub fn sampler_ratio(mut self, ratio: f64) -> Self {
        self.ratio = Some(ratio);
        self
    }

    /// Counts in these metrics instead of a registry of its own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Builds the handle. Without an exporter no spans are made. Call it inside a Tokio runtime
    /// when spans are exported over OTLP.
    ///
    /// # Errors
    /// When the endpoint cannot be used, or there is no Tokio runtime.
    pub fn build(self) -> Result<Telemetry, TelemetryError> {
        let metrics = self.metrics.unwrap_or_default();
        let mut builder = SdkTracerProvider::builder();
        builder = match (self.exporter, &self.otlp) {
            (Some(add), _) => add(builder),
            (None, Some(otlp)) => builder.with_batch_exporter(otlp.exporter()?),
            (None, None) => {
                return Ok(Telemetry {
                    tracing: None,
                    metrics,
                });
            }
        };
        let mut resource = Resource::builder();
        if let Some(name) = self.service_name {
            resource = resource.with_service_name(name);
        }
        if let Some(ratio) = self.ratio {
            let root = Sampler::TraceIdRatioBased(ratio);
            builder = builder.with_sampler(Sampler::ParentBased(Box::new(root)));
        }
        let provider = builder.with_resource(resource.build()).build();
        let tracer = provider.tracer("mesh-tower");
        Ok(Telemetry {
            tracing: Some(Arc::new(Tracing { provider, tracer })),
            metrics,
        })
    }
}

impl fmt::Debug for TelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("service_name", &self.service_name)
            .field("otlp", &self.otlp)
            .finish_non_exhaustive()
    }
}

impl Otlp {
    fn exporter(&self) -> Result<opentelemetry_otlp::SpanExporter, TelemetryError> {
        let runtime = Handle::try_current()
            .map_err(|_| TelemetryError::new("span export needs a Tokio runtime to build in"))?;
        let (Self::Grpc(endpoint) | Self::Http(endpoint)) = self;
        let uri: Uri = endpoint
            .parse()
            .map_err(|e| TelemetryError::new(format!("endpoint {endpoint:?}: {e}")))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            let reason = format!("endpoint {endpoint:?}: expected http://HOST:PORT");
            return Err(TelemetryError::new(reason));
        }
        let builder = opentelemetry_otlp::SpanExporter::builder();
        let exporter = match self {
            Self::Grpc(_) => builder
                .with_tonic()
                .with_endpoint(endpoint.as_str())
                .with_timeout(EXPORT_WAIT_MAX)
                .build(),
            Self::Http(_) => builder
                .with_http()
                .with_http_client(HyperClient { runtime })
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(traces_url(endpoint))
                .with_timeout(EXPORT_WAIT_MAX)
                .build(),
        };
        exporter.map_err(|e| TelemetryError::new(format!("endpoint {endpoint:?}: {e}")))
    }
}

/// Reads the OpenTelemetry environment through `var`.
pub(super) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Telemetry, TelemetryError> {
    match otlp_from_env(&var)? {
        None => Ok(Telemetry::disabled()),
        Some(otlp) => TelemetryBuilder {
            otlp: Some(otlp),
            ..TelemetryBuilder::default()
        }
        .build(),
    }
}

fn otlp_from_env(var: impl Fn(&str) -> Option<String>) -> Result<Option<Otlp>, TelemetryError> {
    let disabled = var("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if disabled || var("OTEL_TRACES_EXPORTER").is_some_and(|v| v != "otlp") {
        return Ok(None);
    }
    let of_traces = var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let Some(endpoint) = of_traces.or_else(|| var("OTEL_EXPORTER_OTLP_ENDPOINT")) else {
        return Ok(None);
    };
    let protocol =
        var("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| var("OTEL_EXPORTER_OTLP_PROTOCOL"));
    let is_grpc_port = endpoint
        .parse::<Uri>()
        .is_ok_and(|uri| uri.port_u16() == Some(4317));
    match protocol.as_deref() {
        Some("grpc") => Ok(Some(Otlp::Grpc(endpoint))),
        None if is_grpc_port => Ok(Some(Otlp::Grpc(endpoint))),
        Some("http/protobuf") | None => Ok(Some(Otlp::Http(endpoint))),
        Some(other) => Err(TelemetryError::new(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL {other:?}: expected grpc or http/protobuf"
        ))),
    }
}

fn traces_url(endpoint: &str) -> String {
    const PATH: &str = "/v1/traces";
    if endpoint.ends_with(PATH) {
        return endpoint.to_owned();
    }
    format!("{}{PATH}", endpoint.trim_end_matches('/'))
}

/// Why spans cannot be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryError {
    reason: String,
}

impl TelemetryError {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl fmt::Display for TelemetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "telemetry: {}", self.reason)
    }
}

impl std::error::Error for TelemetryError {}

/// One connection for each export; they are seconds apart.
#[derive(Debug)]
struct HyperClient {
    runtime: Handle,
}

impl HttpClient for HyperClient {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        // The exporter's thread has neither a reactor nor a timer of its own.
        let sending = self
            .runtime
            .spawn(async { tokio::time::timeout(EXPORT_WAIT_MAX, send(request)).await });
        Box::pin(async move { sending.await?? })
    }
}

async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts
        .uri
        .authority()
        .ok_or("the endpoint has no authority")?
        .clone();
    let stream = TcpStream::connect((
        authority.host().trim_matches(['[', ']']),
        authority.port_u16().unwrap_or(80),
    ))
    .await?;
    let host = http::HeaderValue::try_from(authority.as_str())?;
    parts.headers.insert(http::header::HOST, host);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = Uri::try_from(path)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body)));
    let exchange = async {
        let (parts, body) = answer.await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await?
            .to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answered = &mut exchange => answered,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Otlp>, TelemetryError> {
        otlp_from_env(|name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn environment_table() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
        let grpc = || Ok(Some(Otlp::Grpc("http://c:4317".into())));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[ENDPOINT]), grpc());
        assert_eq!(read(&[HTTP]), Ok(Some(Otlp::Http("http://c:4318/".into()))));
        assert_eq!(
            read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
            grpc()
        );
        assert_eq!(
            read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]),
            Ok(Some(Otlp::Http("http://c:4317".into())))
        );
        assert_eq!(
            read(&[
                HTTP,
                ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317")
            ]),
            grpc()
        );
        assert!(read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).is_err());
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(
            read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]),
            Ok(None)
        );
        assert_eq!(traces_url("http://c:4318/"), "http://c:4318/v1/traces");
        assert_eq!(traces_url("http://c/v1/traces"), "http://c/v1/traces");
    }

    #[tokio::test]
    async fn an_endpoint_that_cannot_be_used_is_refused() {
        for endpoint in ["https://c:4317", "c:4317", "", "http://"] {
            assert!(
                Telemetry::builder().otlp_grpc(endpoint).build().is_err(),
                "{endpoint}"
            );
        }
        assert!(
            !Telemetry::builder()
                .build()
                .expect("no export")
                .is_tracing()
        );
    }
}
