//! What callers call: unary and streaming gRPC over any channel, HTTP over any client.

use std::future::Future;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, client::GrpcService};

use super::proto::{Payload, echo_client::EchoClient};
use crate::harness::load::Call;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A channel that a generated client takes.
pub trait EchoChannel:
    GrpcService<
        tonic::body::Body,
        Error: Into<Error>,
        Future: Send,
        ResponseBody: http_body::Body<Data = Bytes, Error: Into<Error> + Send> + Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<C> EchoChannel for C where
    C: GrpcService<
            tonic::body::Body,
            Error: Into<Error>,
            Future: Send,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<Error> + Send> + Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// One request and one response.
#[derive(Debug)]
pub struct Unary<C> {
    client: EchoClient<C>,
    payload: Payload,
}

impl<C: EchoChannel> Unary<C> {
    /// Calls with `bytes` bytes each way.
    pub fn new(channel: C, bytes: usize) -> Self {
        Self {
            client: EchoClient::new(channel),
            payload: payload(bytes),
        }
    }
}

fn payload(bytes: usize) -> Payload {
    Payload {
        data: vec![7; bytes].into(),
    }
}

impl<C: EchoChannel> Call for Unary<C> {
    fn fork(&self, _: usize) -> Self {
        Self {
            client: self.client.clone(),
            payload: self.payload.clone(),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let answer = self.client.unary(self.payload.clone()).await?;
        let got = answer.into_inner().data.len();
        ensure!(
            got == self.payload.data.len(),
            "the echo is {got} bytes long"
        );
        Ok(())
    }
}

/// Several ways to call, one after the other.
#[derive(Debug)]
pub struct InTurn<C> {
    calls: Vec<C>,
    at: usize,
}

impl<C: Call> InTurn<C> {
    /// Begins with the second.
    pub fn new(calls: Vec<C>) -> Self {
        Self { calls, at: 0 }
    }
}

impl<C: Call> Call for InTurn<C> {
    fn fork(&self, caller: usize) -> Self {
        Self {
            calls: self.calls.iter().map(|call| call.fork(caller)).collect(),
            at: caller,
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        self.at = (self.at + 1) % self.calls.len();
        self.calls[self.at].call().await
    }
}

/// A message there and back on a stream that stays open.
#[derive(Debug)]
pub struct PingPong<C> {
    client: EchoClient<C>,
    payload: Payload,
    open: Option<(mpsc::Sender<Payload>, Streaming<Payload>)>,
}

impl<C: EchoChannel> PingPong<C> {
    /// Messages of `bytes` bytes each way.
    pub fn new(channel: C, bytes: usize) -> Self {
        Self {
            client: EchoClient::new(channel),
            payload: payload(bytes),
            open: None,
        }
    }
}

impl<C: EchoChannel> Call for PingPong<C> {
    fn fork(&self, _: usize) -> Self {
        Self {
            client: self.client.clone(),
            payload: self.payload.clone(),
            open: None,
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        if self.open.is_none() {
            let (messages, stream) = mpsc::channel(1);
            let answer = self.client.stream(ReceiverStream::new(stream)).await?;
            self.open = Some((messages, answer.into_inner()));
        }
        let (messages, answers) = self.open.as_mut().context("a stream")?;
        messages.send(self.payload.clone()).await?;
        let answer = answers.message().await?.context("the stream ended")?;
        ensure!(answer.data.len() == self.payload.data.len(), "an echo");
        Ok(())
    }
}

/// A plain HTTP exchange, by whatever sends a request.
#[derive(Clone, Debug)]
pub struct Http<S> {
    send: S,
    uris: Vec<http::Uri>,
    next: usize,
    body: Bytes,
}

impl<S> Http<S> {
    /// Posts `bytes` bytes to one of `uris` after the other.
    pub fn new(send: S, uris: &[String], bytes: usize) -> anyhow::Result<Self> {
        let uris = uris.iter().map(|uri| uri.parse());
        Ok(Self {
            send,
            uris: uris.collect::<Result<_, _>>()?,
            next: 0,
            body: vec![7; bytes].into(),
        })
    }
}

impl<S> Call for Http<S>
where
    S: tower::Service<
            Request<Full<Bytes>>,
            Response = http::Response<S::Body>,
            Error: Into<Error>,
            Future: Send,
        > + HasBody
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn fork(&self, number: usize) -> Self {
        Self {
            next: number % self.uris.len(),
            ..self.clone()
        }
    }

    fn call(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = http::Method::POST;
        request.uri_mut().clone_from(&self.uris[self.next]);
        self.next = (self.next + 1) % self.uris.len();
        // Both clients are always ready.
        let response = self.send.call(request);
        let expected = self.body.len();
        async move {
            let response = response
                .await
                .map_err(|error| anyhow::Error::from_boxed(error.into()))?;
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| anyhow::Error::from_boxed(error.into()))?;
            ensure!(body.to_bytes().len() == expected, "an echo");
            Ok(())
        }
    }
}

/// Names the response body of an HTTP client.
pub trait HasBody {
    /// The body.
    type Body: http_body::Body<Data: Send, Error: Into<Error> + Send> + Send + 'static;
}

impl HasBody for mesh_tower::HttpClient {
    type Body = mesh_tower::ResponseBody<mesh_tower::connect::HyperConnector>;
}

impl<C> HasBody for hyper_util::client::legacy::Client<C, Full<Bytes>> {
    type Body = hyper::body::Incoming;
}
