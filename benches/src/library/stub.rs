//! The endpoint that answers at once, and requests to it: what every contender has beneath and
//! above it, and nothing else.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body::Frame;
use http_body_util::BodyExt;
use mesh_core::stats::Connectivity;
use mesh_tower::{
    DispatchError, EndpointContext, EndpointService, Exchange, MakeEndpoint, Outgoing,
};

use crate::harness::load::Call;

/// The body of a request.
pub type RequestBody = tonic::body::Body;

/// A body of trailers alone.
#[derive(Debug)]
pub struct Trailers(bool);

impl http_body::Body for Trailers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// Answers at once.
pub fn answer<B>(request: Request<B>) -> Response<Trailers> {
    drop(request);
    Response::new(Trailers(false))
}

/// Reads a response to its end.
///
/// # Errors
/// When the body fails.
pub async fn finish<B>(response: Response<B>) -> anyhow::Result<()>
where
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    let mut body = pin!(response.into_body());
    while let Some(frame) = body.frame().await {
        if let Err(error) = frame {
            anyhow::bail!("the body failed: {error:?}");
        }
    }
    Ok(())
}

/// The paths that a caller asks for, one after the other.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Over static text, so that cloning one costs no reference count that callers would share.
    uris: Arc<[Uri]>,
    at: usize,
}

impl Paths {
    /// One path for each of `services` services.
    pub fn new(services: usize) -> Self {
        let uri = |service| {
            let path: &'static str = format!("{}SayHello", prefix(service)).leak();
            Uri::from_static(path)
        };
        Self {
            uris: (0..services).map(uri).collect(),
            at: 0,
        }
    }

    /// For another caller, which starts elsewhere.
    pub fn fork(&self, caller: usize) -> Self {
        Self {
            uris: Arc::clone(&self.uris),
            at: caller * 1237 % self.uris.len(),
        }
    }

    /// The service to call next: jumps, so that no cache holds the next one.
    pub fn step(&mut self) -> usize {
        self.at = (self.at + 7919) % self.uris.len();
        self.at
    }

    /// A request to a service, as a generated client makes it.
    pub fn request(&self, service: usize) -> Request<RequestBody> {
        let message = http_body_util::Full::new(Bytes::from_static(&[0, 0, 0, 0, 0]));
        let mut request = Request::new(RequestBody::new(message));
        *request.uri_mut() = self.uris[service].clone();
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        request
    }
}

/// The route prefix of a service.
pub fn prefix(service: usize) -> String {
    format!("/bench.v1.Service{service:05}/")
}

/// No library at all: the request and the endpoint's answer.
#[derive(Debug)]
pub struct Bare {
    paths: Paths,
}

impl Bare {
    /// Calls each of `services` services in turn.
    pub fn new(services: usize) -> Self {
        Self {
            paths: Paths::new(services),
        }
    }
}

impl Call for Bare {
    fn fork(&self, caller: usize) -> Self {
        Self {
            paths: self.paths.fork(caller),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let service = self.paths.step();
        finish(answer(self.paths.request(service))).await
    }
}

/// Endpoints of ours that answer at once.
#[derive(Clone, Copy, Debug)]
pub struct Instant;

impl MakeEndpoint for Instant {
    type Endpoint = InstantEndpoint;

    fn make(&self, context: EndpointContext) -> InstantEndpoint {
        InstantEndpoint(context)
    }
}

/// One of them.
#[derive(Debug)]
pub struct InstantEndpoint(EndpointContext);

impl EndpointService for InstantEndpoint {
    type ResponseBody = Trailers;
    type Exchange = Answered;

    fn connect(&self) {
        self.0.set_connectivity(Connectivity::Ready);
    }

    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> Answered {
        drop(outgoing.take());
        Answered
    }
}

/// An answer that is there at once.
#[derive(Debug)]
pub struct Answered;

impl Exchange for Answered {
    type ResponseBody = Trailers;

    fn poll_response(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<Response<Trailers>, DispatchError>> {
        Poll::Ready(Ok(Response::new(Trailers(false))))
    }
}
