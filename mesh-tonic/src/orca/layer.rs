//! Reports with each response.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body_util::BodyExt;
use mesh_tower::{
    BoxError,
    orca::{ORCA_TRAILER, load_report_trailer},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{CallMetrics, MetricRecorder};

/// Adds what the load is to the trailers of gRPC responses, and a [`CallMetrics`] to the extensions of
/// requests.
#[derive(Clone, Debug)]
pub struct OrcaLayer {
    metrics: MetricRecorder,
}

impl OrcaLayer {
    /// Reports what is set in `metrics`, and by the call itself.
    pub fn new(metrics: MetricRecorder) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for OrcaLayer {
    type Service = OrcaReporting<S>;

    fn layer(&self, inner: S) -> OrcaReporting<S> {
        OrcaReporting {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// See [`OrcaLayer`].
#[derive(Clone, Debug)]
pub struct OrcaReporting<S> {
    inner: S,
    metrics: MetricRecorder,
}

impl<S, Q, B> Service<Request<Q>> for OrcaReporting<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let call = CallMetrics::default();
        request.extensions_mut().insert(call.clone());
        let (response, server) = (self.inner.call(request), self.metrics.clone());
        Box::pin(async move { Ok(report(response.await?, call, server)) })
    }
}

fn report<B>(response: Response<B>, call: CallMetrics, server: MetricRecorder) -> Response<Body>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        return response.map(Body::new);
    }
    let name = HeaderName::from_static(ORCA_TRAILER);
    // A head that is trailers at the same time.
    if response.headers().contains_key(Status::GRPC_STATUS) {
        let mut response = response.map(Body::new);
        let value = load_report_trailer(&call.over(&server));
        response.headers_mut().insert(name, value);
        return response;
    }
    response.map(|body| {
        let trailers = async move {
            let value = load_report_trailer(&call.over(&server));
            Some(Ok(HeaderMap::from_iter([(name, value)])))
        };
        Body::new(body.with_trailers(trailers))
    })
}
