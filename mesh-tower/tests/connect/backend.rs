//! A server whose answers a test gives.

use std::{
    convert::Infallible,
    future::Future,
    hash::Hasher,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::JoinSet};

pub(crate) type Reply = Response<BoxBody<Bytes, Infallible>>;

/// Serves until it is dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// Connections that it took.
    pub(crate) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Backend {
    pub(crate) async fn start<F>(
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        let taken = Arc::<AtomicUsize>::default();
        let connections = Arc::clone(&taken);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                taken.fetch_add(1, Relaxed);
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let reply = answer(request);
                        async move { Ok::<_, Infallible>(reply.await) }
                    });
                    let io = TokioIo::new(stream);
                    _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        Self {
            address,
            connections,
            _tasks: tasks,
        }
    }
}

/// What a body is told by: its length and its hash.
pub(crate) async fn digest<B>(body: B) -> Result<String, B::Error>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut body = body;
    let mut length = 0;
    // The same for the same bytes, however they come.
    let mut hasher = std::hash::DefaultHasher::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len();
            hasher.write(&data);
        }
    }
    Ok(format!("{length}:{:x}", hasher.finish()))
}

pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    request.headers().contains_key("content-type")
}

/// What a caller gets: the text, and what its protocol wants.
pub(crate) fn ok(is_grpc: bool, text: String) -> Reply {
    let data = Ok(http_body::Frame::data(Bytes::from(text)));
    if !is_grpc {
        let body = StreamBody::new(futures_util::stream::iter([data]));
        return Response::new(body.boxed());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [data, Ok(http_body::Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    response
}

/// A failure that may be tried again.
pub(crate) fn failure(is_grpc: bool) -> Reply {
    let mut response = Response::new(Full::<Bytes>::default().boxed());
    match is_grpc {
        true => {
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static("14"));
        }
        false => *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE,
    }
    response
}
