//! Endpoints that answer as a test says, and remember what they were asked.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use mesh_core::stats::Connectivity;
use mesh_tower::{
    Body, BoxExchange, DispatchError, DispatchErrorKind, EndpointContext, EndpointService,
    MakeEndpoint, Outgoing,
};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// What an endpoint was asked.
pub(crate) struct Asked {
    pub(crate) endpoint: SocketAddr,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    request: Request<Body>,
}

/// What it answers.
pub(crate) enum Answer {
    Response(Response<Full<Bytes>>),
    Later(Duration, u16),
    Echo(Request<Body>),
    Failed(DispatchError),
    Unsent(Request<Body>),
    Trailers(HeaderMap),
    StalledBody,
    /// Reads the request and never answers.
    Swallow(Request<Body>),
    /// Reads the request, keeps its body, and answers 200.
    Keep(Request<Body>, Arc<Mutex<Bytes>>),
    /// Reads the request, never answers, and tells when it breaks off.
    Report(Request<Body>, Arc<AtomicBool>),
    /// A byte after each pause, so often.
    Ticks(Duration, u32),
    /// Never answers, and holds this as long as it could.
    Held(crate::hedging::Held),
}

impl Asked {
    pub(crate) fn into_request(self) -> Request<Body> {
        self.request
    }
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Self::Response(response)
    }

    pub(crate) fn text(status: u16, text: &'static str) -> Self {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Self::Response(response)
    }

    pub(crate) fn later(after: Duration, status: u16) -> Self {
        Self::Later(after, status)
    }

    pub(crate) fn echo(asked: Asked) -> Self {
        Self::Echo(asked.request)
    }

    pub(crate) fn reset() -> Self {
        Self::Failed(DispatchError::new(
            DispatchErrorKind::Reset,
            "reset by the test",
        ))
    }

    pub(crate) fn unsent(asked: Asked) -> Self {
        Self::Unsent(asked.request)
    }

    pub(crate) fn stalled_body() -> Self {
        Self::StalledBody
    }
}

#[derive(Clone, Default)]
pub(crate) struct Log {
    seen: Arc<Mutex<Vec<(u16, HeaderMap, Uri)>>>,
}

impl Log {
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(port, ..)| *port)
            .collect()
    }

    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, headers, _)| headers.clone())
            .collect()
    }

    pub(crate) fn uris(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, _, uri)| uri.to_string())
            .collect()
    }
}

type AnswerFn = dyn Fn(Asked) -> Answer + Send + Sync;

#[derive(Clone)]
pub(crate) struct Stub {
    answer: Arc<AnswerFn>,
    connectivity: Connectivity,
    log: Log,
}

impl Stub {
    pub(crate) fn answering(answer: impl Fn(Asked) -> Answer + Send + Sync + 'static) -> Self {
        let log = Log::default();
        Self {
            answer: Arc::new(answer),
            connectivity: Connectivity::Ready,
            log,
        }
    }

    /// Endpoints that never get ready.
    pub(crate) fn connecting(connectivity: Connectivity) -> Self {
        Self {
            connectivity,
            ..Self::answering(|_| Answer::status(200))
        }
    }

    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }
}

impl MakeEndpoint for Stub {
    type Endpoint = StubEndpoint;

    fn make(&self, context: EndpointContext) -> StubEndpoint {
        StubEndpoint {
            stub: self.clone(),
            context,
        }
    }
}

pub(crate) struct StubEndpoint {
    stub: Stub,
    context: EndpointContext,
}

impl EndpointService for StubEndpoint {
    type ResponseBody = StubBody;
    type Exchange = BoxExchange<StubBody>;

    fn connect(&self) {
        self.context.set_connectivity(self.stub.connectivity);
    }

    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> BoxExchange<StubBody> {
        let request = outgoing.take();
        let endpoint = self.context.address;
        let headers = request.headers().clone();
        let uri = request.uri().clone();
        let seen = (endpoint.port(), headers.clone(), uri.clone());
        self.stub.log.seen.lock().unwrap().push(seen);
        let answer = (self.stub.answer)(Asked {
            endpoint,
            uri,
            headers,
            request,
        });
        Box::pin(answer.give())
    }
}

impl Answer {
    async fn give(self) -> Result<Response<StubBody>, DispatchError> {
        match self {
            Self::Response(response) => Ok(response.map(StubBody::Full)),
            Self::Later(after, status) => {
                tokio::time::sleep(after).await;
                let mut response = Response::new(StubBody::Full(Full::default()));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok(response)
            }
            Self::Echo(request) => match request.into_body().collect().await {
                Ok(body) => Ok(Response::new(StubBody::Full(Full::new(body.to_bytes())))),
                Err(error) => Err(DispatchError::new(DispatchErrorKind::Reset, error)),
            },
            // What a real connection would have sent before it broke off.
            Self::Failed(error) => Err(error),
            Self::Unsent(request) => {
                let kind = DispatchErrorKind::Refused;
                Err(DispatchError::new(kind, "closed by the test").unsent(request))
            }
            Self::Trailers(trailers) => Ok(Response::new(StubBody::Trailers(trailers))),
            Self::Swallow(request) => {
                _ = request.into_body().collect().await;
                std::future::pending().await
            }
            Self::Keep(request, kept) => {
                let whole = request.into_body().collect().await;
                *kept.lock().unwrap() = whole.unwrap().to_bytes();
                Ok(Response::new(StubBody::Full(Full::default())))
            }
            Self::Report(request, broke_off) => {
                let whole = request.into_body().collect().await;
                broke_off.store(whole.is_err(), Relaxed);
                std::future::pending().await
            }
            Self::Ticks(pause, left) => {
                let mut ticks = tokio::time::interval_at(Instant::now() + pause, pause.max(TICK));
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                Ok(Response::new(StubBody::Ticks(Box::new(ticks), left)))
            }
            Self::Held(held) => {
                let _held = held;
                std::future::pending().await
            }
            Self::StalledBody => Ok(Response::new(StubBody::Stalled)),
        }
    }
}

pub(crate) enum StubBody {
    Full(Full<Bytes>),
    Trailers(HeaderMap),
    Stalled,
    Ticks(Box<Interval>, u32),
}

/// The shortest pause of an interval.
const TICK: Duration = Duration::from_millis(1);

impl http_body::Body for StubBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Full(body) => Pin::new(body).poll_frame(cx),
            Self::Trailers(trailers) => {
                let trailers = std::mem::take(trailers);
                *self = Self::Full(Full::default());
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Stalled => Poll::Pending,
            Self::Ticks(_, 0) => Poll::Ready(None),
            Self::Ticks(ticks, left) => {
                std::task::ready!(ticks.poll_tick(cx));
                *left -= 1;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(body) if body.is_end_stream())
    }
}
