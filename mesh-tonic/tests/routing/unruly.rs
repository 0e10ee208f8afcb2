//! A server that misbehaves as the path says, over HTTP/1.1, HTTP/2 and gRPC.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tower::BoxError;
use tokio::{net::TcpListener, task::JoinHandle};

/// Header with the name of a call; calls of one name are attempts of each other.
pub(crate) const CASE: &str = "x-case";

/// Of each call, what its attempts said in `x-envoy-*`.
type Attempts = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// A server that answers the first attempt of a call as the path's last segment says, and every other
/// one well.
pub(crate) struct Unruly {
    pub(crate) address: SocketAddr,
    attempts: Attempts,
    task: JoinHandle<()>,
}

impl Drop for Unruly {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Unruly {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let attempts = Attempts::default();
        let seen = Arc::clone(&attempts);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&seen), request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    _ = builder.serve_connection(io, service).await;
                });
            }
        });
        Self {
            address,
            attempts,
            task,
        }
    }

    /// How often the call was tried.
    pub(crate) fn attempts(&self, case: &str) -> usize {
        self.told(case).len()
    }

    /// What each attempt of the call said in headers of Envoy's, by name.
    pub(crate) fn told(&self, case: &str) -> Vec<String> {
        let attempts = self.attempts.lock().unwrap();
        attempts.get(case).cloned().unwrap_or_default()
    }
}

fn of_envoy(headers: &HeaderMap) -> String {
    let headers = headers.iter();
    let headers = headers.filter(|(name, _)| name.as_str().starts_with("x-envoy-"));
    let told = headers.map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
    let mut told: Vec<_> = told.collect();
    told.sort();
    told.join(" ")
}

async fn answer(
    attempts: Attempts,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, BoxError>>, BoxError> {
    let (head, body) = request.into_parts();
    let case = head.headers.get(CASE).map(|case| case.to_str().unwrap());
    let attempt = {
        let mut attempts = attempts.lock().unwrap();
        let case = case.unwrap_or_default().to_owned();
        let seen = attempts.entry(case).or_default();
        seen.push(of_envoy(&head.headers));
        seen.len()
    };
    // What is not read would be a failure of its own.
    _ = body.collect().await;
    let kind = head.headers.get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind == "application/grpc");
    let behaviour = head.uri.path().rsplit('/').next().unwrap_or_default();
    let behaviour = if attempt == 1 { behaviour } else { "good" };
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    let headers = response.headers_mut();
    if is_grpc {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
    }
    let mut grpc = "0";
    match behaviour {
        "reset" => return Err("reset".into()),
        "refused" => return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()),
        "hangs" => std::future::pending().await,
        "again" => drop(headers.insert("x-again", HeaderValue::from_static("1"))),
        "limited" => {
            headers.insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
            *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
        }
        "good" => {}
        _ => match behaviour.split_once('-') {
            Some(("grpc", code)) => grpc = code,
            _ => *response.status_mut() = behaviour.parse().unwrap(),
        },
    }
    if is_grpc && response.status().is_success() {
        let status = HeaderValue::try_from(grpc).unwrap();
        response.headers_mut().insert("grpc-status", status);
    }
    // Which attempt the server was told that it is.
    if let Some(told) = head.headers.get("x-envoy-attempt-count") {
        response.headers_mut().insert("x-told", told.clone());
    }
    Ok(response)
}
