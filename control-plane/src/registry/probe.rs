//! One health check over the network: HTTP, TCP or `grpc.health.v1`.
//!
//! What a result means in a row of others is the table's. Redirects are not followed. Who is believed over
//! TLS is [`tls`](super::tls)'s.

use std::{fmt, io};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    instance::{CheckKind, CheckStatus, CheckTls, OUTPUT_MAX},
    tls::ProbeTls,
};

/// What a check says of itself (Consul: `Consul Health Check`).
const USER_AGENT: &str = "mesh control plane health check";
/// Protocols that are asked for over TLS.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

/// Where checks are done from: how TLS is spoken, and the namespace of the instance.
pub(super) struct From<'f> {
    pub(super) tls: Option<&'f ProbeTls>,
    pub(super) namespace: &'f str,
}

/// Does a check; nothing for one that waits to be told.
pub(super) async fn probe(kind: &CheckKind, from: &From<'_>) -> (CheckStatus, String) {
    let Some(schedule) = kind.schedule() else {
        return (CheckStatus::Critical, String::new());
    };
    let done = async {
        match kind {
            CheckKind::Http { .. } => http(kind, from).await,
            CheckKind::Tcp { address, .. } => tcp(address, kind.tls(), from).await,
            CheckKind::Grpc {
                address, service, ..
            } => grpc((address, service), kind.tls(), from).await,
            CheckKind::Ttl(_) => Err("it waits to be told".to_owned()),
        }
    };
    match timeout(schedule.timeout, done).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => (CheckStatus::Critical, error),
        Err(_) => {
            let message = format!("no answer within {:?}", schedule.timeout);
            (CheckStatus::Critical, message)
        }
    }
}

type Found = Result<(CheckStatus, String), String>;

/// A connection, in the clear or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl From<'_> {
    /// Connects to `HOST:PORT`.
    async fn connect(
        &self,
        address: &str,
        tls: Option<&CheckTls>,
        alpn: &[u8],
    ) -> Result<Box<dyn Stream>, String> {
        let wrong = |error: &dyn fmt::Display| format!("connect to {address}: {error}");
        let connected = TcpStream::connect(address).await;
        let stream = connected.map_err(|error| wrong(&error))?;
        let Some(tls) = tls else {
            return Ok(Box::new(stream));
        };
        let own = self.tls.ok_or("nothing is checked over TLS here")?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let place = (host, self.namespace);
        let secured = own.connect(stream, place, tls, alpn).await;
        Ok(Box::new(
            secured.map_err(|error| wrong(&format!("{error:#}")))?,
        ))
    }
}

async fn tcp(address: &str, tls: Option<&CheckTls>, from: &From<'_>) -> Found {
    from.connect(address, tls, HTTP1).await?;
    let output = format!("TCP connect {address}: Success");
    Ok((CheckStatus::Passing, output))
}

async fn http(kind: &CheckKind, from: &From<'_>) -> Found {
    let CheckKind::Http {
        url,
        method,
        headers,
        body,
        tls,
        ..
    } = kind
    else {
        return Err("not an HTTP check".to_owned());
    };
    let uri: http::Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url}: no host"))?;
    let default = if tls.is_some() { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(default);
    let address = format!("{}:{port}", authority.host());
    let stream = from.connect(&address, tls.as_ref(), HTTP1).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = http::Request::builder()
        .method(&**method)
        .uri(path)
        .header(http::header::CONNECTION, "close");
    let has = |name: &str| headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !has("host") {
        request = request.header(http::header::HOST, authority.as_str());
    }
    if !has("user-agent") {
        request = request.header(http::header::USER_AGENT, USER_AGENT);
    }
    for (name, values) in headers {
        for value in values {
            request = request.header(name, value);
        }
    }
    let wrong = |error: &dyn std::error::Error| format!("{method} {url}: {error}");
    let request = request
        .body(Full::new(Bytes::from(body.clone())))
        .map_err(|error| wrong(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| wrong(&error))?;
    let answered = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| wrong(&error))?;
        let status = response.status();
        let text = Limited::new(response.into_body(), OUTPUT_MAX)
            .collect()
            .await;
        let text = text.map_or_else(|_| Bytes::new(), |text| text.to_bytes());
        let text = String::from_utf8_lossy(&text);
        let found = match status.as_u16() {
            200..=299 => CheckStatus::Passing,
            429 => CheckStatus::Warning,
            _ => CheckStatus::Critical,
        };
        let output = format!("HTTP {method} {url}: {status} Output: {text}");
        Ok((found, output))
    };
    let mut connection = std::pin::pin!(connection);
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        found = &mut answered => found,
        ended = &mut connection => match ended {
            // What it had read is in the sender's hands.
            Ok(()) => answered.await,
            Err(error) => Err(wrong(&error)),
        },
    }
}

async fn grpc((address, service): (&str, &str), tls: Option<&CheckTls>, from: &From<'_>) -> Found {
    let stream = from.connect(address, tls, HTTP2).await?;
    let mut stream = Some(TokioIo::new(stream));
    // The one connection is there already.
    let once = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("the connection ended")) }
    });
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address}: {error}"))?
        .connect_with_connector(once)
        .await
        .map_err(|error| format!("connect to {address}: {error:?}"))?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    let answer = answer.map_err(|status| format!("gRPC check {address}: {status}"))?;
    let status = answer.into_inner().status();
    let found = match status {
        ServingStatus::Serving => CheckStatus::Passing,
        _ => CheckStatus::Critical,
    };
    let output = format!("gRPC check {address}: {}", status.as_str_name());
    Ok((found, output))
}
