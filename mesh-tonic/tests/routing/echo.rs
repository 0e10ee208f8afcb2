//! A server that says what it was asked, over HTTP/1.1, HTTP/2 and gRPC.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::body::{Body, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_examples::ports::free_address;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::world::MUST_HAPPEN;

/// Header of the answer with what was [`Seen`].
pub(crate) const SEEN: &str = "x-seen";

/// What a server was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Its name.
    pub(crate) by: String,
    pub(crate) version: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authority: String,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: String,
}

/// A server that says what it was asked.
pub(crate) struct Echo {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// The next so many requests are answered with 503, or UNAVAILABLE.
    pub(crate) fail_next: Arc<AtomicUsize>,
    pub(crate) served: Arc<AtomicUsize>,
    running: Mutex<Running>,
}

/// The task that serves.
struct Running {
    task: JoinHandle<()>,
    drain: oneshot::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    fn start(listener: TcpListener, router: axum::Router) -> Self {
        let (drain, asked) = oneshot::channel();
        let task = tokio::spawn(async move {
            let until = async { _ = asked.await };
            let served = axum::serve(listener, router).with_graceful_shutdown(until);
            served.await.unwrap();
        });
        Self { task, drain }
    }
}

impl Echo {
    pub(crate) async fn start(name: &'static str) -> Self {
        // It comes back there.
        let address = free_address().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let fail_next = Arc::<AtomicUsize>::default();
        let served = Arc::<AtomicUsize>::default();
        let router = router(name, &fail_next, &served);
        Self {
            name,
            address,
            fail_next,
            served,
            running: Mutex::new(Running::start(listener, router)),
        }
    }

    /// Drains (GOAWAY, `connection: close`), is gone when its last connection is, and comes back where
    /// it was.
    pub(crate) async fn restart(&self) {
        let (drain, _) = oneshot::channel();
        let (asked, task) = {
            let mut running = self.running.lock().unwrap();
            let task = std::mem::replace(&mut running.task, tokio::spawn(async {}));
            (std::mem::replace(&mut running.drain, drain), task)
        };
        _ = asked.send(());
        let drained = tokio::time::timeout(MUST_HAPPEN, task).await;
        drained.expect("its connections end").unwrap();
        let listener = TcpListener::bind(self.address).await.unwrap();
        let router = router(self.name, &self.fail_next, &self.served);
        *self.running.lock().unwrap() = Running::start(listener, router);
    }
}

/// What answers.
pub(crate) fn router(
    name: &'static str,
    fail_next: &Arc<AtomicUsize>,
    served: &Arc<AtomicUsize>,
) -> axum::Router {
    let (fail_next, served) = (Arc::clone(fail_next), Arc::clone(served));
    axum::Router::new().fallback(move |request: Request<Body>| {
        let fails = fail_next
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_ok();
        served.fetch_add(1, SeqCst);
        answer(name, request, fails)
    })
}

async fn answer(
    name: &'static str,
    request: Request<Body>,
    fails: bool,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let host = head.headers.get(header::HOST);
    let host = host.map(|host| host.to_str().unwrap().to_owned());
    let authority = head.uri.authority().map(ToString::to_string);
    let mut headers = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in &head.headers {
        let value = value.to_str().unwrap().to_owned();
        headers.entry(name.to_string()).or_default().push(value);
    }
    let path = head.uri.path_and_query().map(ToString::to_string);
    let seen = Seen {
        by: name.to_owned(),
        version: format!("{:?}", head.version),
        method: head.method.to_string(),
        path: path.unwrap_or_default(),
        authority: authority.or(host).unwrap_or_default(),
        headers,
        body: String::from_utf8(body.unwrap_or_default().to_vec()).unwrap(),
    };
    let is_grpc = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/grpc");
    let mut response = match is_grpc {
        true => grpc(if fails { 14 } else { 0 }),
        false => Response::new(Body::from("echo")),
    };
    if fails && !is_grpc {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    let text = serde_json::to_string(&seen).unwrap();
    let headers = response.headers_mut();
    headers.insert(SEEN, HeaderValue::try_from(text).unwrap());
    headers.insert("x-internal", HeaderValue::from_static("secret"));
    Ok(response)
}

fn grpc(status: u32) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    let mut response = if status == 0 {
        let frames = [
            Frame::data(Bytes::from_static(&[0; 5])),
            Frame::trailers(trailers),
        ];
        let frames = frames.map(Ok::<_, Infallible>);
        Response::new(Body::new(StreamBody::new(futures_util::stream::iter(
            frames,
        ))))
    } else {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = trailers;
        response
    };
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
