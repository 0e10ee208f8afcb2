//! A server that redirects as its requests say, and tells what it was asked.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tower::BoxError;
use tokio::{net::TcpListener, task::JoinHandle};

use super::unruly::CASE;

/// Header with the answers to the requests of a case, one after the other, each a status and perhaps
/// an address; those after them are answered with 200. `hang` is no answer.
pub(crate) const ANSWERS: &str = "x-answers";

type Asked = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// A server that redirects as its requests say.
pub(crate) struct Redirecting {
    pub(crate) address: SocketAddr,
    asked: Asked,
    task: JoinHandle<()>,
}

impl Drop for Redirecting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Redirecting {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let kept = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let asked = Arc::clone(&kept);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&asked), request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    _ = builder.serve_connection(io, service).await;
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// What the requests of a case were: method, authority, path, what tells of redirects, and the
    /// length of the body.
    pub(crate) fn asked(&self, case: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.get(case).cloned().unwrap_or_default()
    }
}

/// Headers that are told, if they are there.
const TOLD: [&str; 5] = [
    "x-envoy-original-url",
    "x-route",
    "x-copied",
    "content-length",
    "content-type",
];

fn told(headers: &HeaderMap) -> String {
    let values = |name: &&str| {
        let values = headers.get_all(*name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| format!(" {name}={}", values.join(",")))
    };
    TOLD.iter().filter_map(values).collect()
}

async fn answer(
    asked: Asked,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, BoxError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = |name| head.headers.get(name).map(|value| value.to_str().unwrap());
    let authority = head.uri.authority().map(|authority| authority.as_str());
    let authority = authority.or_else(|| text(header::HOST.as_str()));
    let path = head.uri.path_and_query().map(|path| path.as_str());
    let line = format!(
        "{} {}{}{} ({})",
        head.method,
        authority.unwrap_or_default(),
        path.unwrap_or_default(),
        told(&head.headers),
        body.len(),
    );
    let number = {
        let mut asked = asked.lock().unwrap();
        let case = text(CASE).unwrap_or_default().to_owned();
        let lines = asked.entry(case).or_default();
        lines.push(line);
        lines.len() - 1
    };
    let answers = text(ANSWERS).unwrap_or_default();
    let answer = answers.split(';').nth(number).unwrap_or("200").trim();
    if answer == "hang" {
        std::future::pending::<()>().await;
    }
    let (status, location) = match answer.split_once(' ') {
        Some((status, location)) => (status, Some(location)),
        None => (answer, None),
    };
    let mut response = Response::new(Full::from("answer"));
    *response.status_mut() = status.parse()?;
    if let Some(location) = location {
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, location.parse()?);
        headers.insert("x-copied", "of the answer".parse()?);
    }
    Ok(response)
}
