//! `xds.service.orca.v3.OpenRcaService`.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut};
use futures_util::{Stream, stream};
use http::{Request, Response};
use mesh_core::observed::LoadReport;
use mesh_tower::orca::{STREAM_CORE_METRICS, decode_report_request, encode_load_report};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{
    Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService, ServerStreamingService},
};
use tower::Service;

use super::MetricRecorder;

/// Shortest time between two reports, unless the service says otherwise (gRFC A51).
pub const MIN_REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// Shortest time between two reports that a service may say.
pub const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Longest time between two reports.
pub const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Tells clients beside their requests what the load is, as often as they ask: all of it each time, at
/// first at once. To be added to tonic's routes.
///
/// A stream lasts as long as its client wants; clients end it when their connection drains.
#[derive(Clone, Debug)]
#[must_use]
pub struct OrcaService {
    metrics: MetricRecorder,
    min_report_interval: Duration,
}

impl OrcaService {
    /// Reports what is set in `metrics`.
    pub fn new(metrics: MetricRecorder) -> Self {
        Self {
            metrics,
            min_report_interval: MIN_REPORT_INTERVAL,
        }
    }

    /// Who asks for more frequent reports, or does not say, gets one each `interval`. Default
    /// [`MIN_REPORT_INTERVAL`]; within [`REPORT_INTERVAL_MIN`] and [`REPORT_INTERVAL_MAX`].
    pub fn min_report_interval(mut self, interval: Duration) -> Self {
        self.min_report_interval = interval.clamp(REPORT_INTERVAL_MIN, REPORT_INTERVAL_MAX);
        self
    }
}

impl NamedService for OrcaService {
    const NAME: &'static str = "xds.service.orca.v3.OpenRcaService";
}

impl<B> Service<Request<B>> for OrcaService
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<mesh_tower::BoxError> + Send + 'static,
    B::Data: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != STREAM_CORE_METRICS {
                let status = Status::unimplemented("the service has StreamCoreMetrics alone");
                return Ok(status.into_http());
            }
            let mut grpc = Grpc::new(OrcaCodec);
            Ok(grpc
                .server_streaming(StreamCoreMetrics(service), request)
                .await)
        })
    }
}

struct StreamCoreMetrics(OrcaService);

type Reports = Pin<Box<dyn Stream<Item = Result<LoadReport, Status>> + Send>>;

impl ServerStreamingService<Duration> for StreamCoreMetrics {
    type Response = LoadReport;
    type ResponseStream = Reports;
    type Future = Ready<Result<tonic::Response<Reports>, Status>>;

    fn call(&mut self, request: tonic::Request<Duration>) -> Self::Future {
        let OrcaService {
            metrics,
            min_report_interval,
        } = self.0.clone();
        let asked = request.into_inner();
        let mut ticks = interval(asked.clamp(min_report_interval, REPORT_INTERVAL_MAX));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reports = stream::unfold((ticks, metrics), |(mut ticks, metrics)| async move {
            ticks.tick().await;
            Some((Ok(metrics.report()), (ticks, metrics)))
        });
        ready(Ok(tonic::Response::new(Box::pin(reports))))
    }
}

/// Requests as the interval that they ask for.
#[derive(Clone, Copy, Debug, Default)]
struct OrcaCodec;

impl Codec for OrcaCodec {
    type Encode = LoadReport;
    type Decode = Duration;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for OrcaCodec {
    type Item = LoadReport;
    type Error = Status;

    fn encode(&mut self, report: LoadReport, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&encode_load_report(&report));
        Ok(())
    }
}

impl Decoder for OrcaCodec {
    type Item = Duration;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Duration>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let interval = decode_report_request(&bytes);
        let interval = interval.ok_or_else(|| Status::internal("the request is malformed"))?;
        Ok(Some(interval))
    }
}
