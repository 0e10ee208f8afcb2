//! The echo servers, in a process of their own.
//!
//! `plain` serves with bare tonic and hyper, one group of ports for each protocol and one over
//! bare rustls; `mesh` serves gRPC through [`Mesh::serve`], which makes its own TLS.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tonic::{
    Status, Streaming,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use super::{
    proto::{
        Payload,
        echo_server::{Echo, EchoServer},
    },
    tls,
};
use crate::harness::child;

/// Ports of each group.
const PORTS: usize = 10;

/// What the bare server says when it listens.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plain {
    /// gRPC by bare tonic.
    pub grpc: Vec<SocketAddr>,
    /// HTTP/1.1 and HTTP/2 by bare hyper.
    pub http: Vec<SocketAddr>,
    /// gRPC over bare rustls, mutually authenticated.
    pub tls: SocketAddr,
    /// What a client of it needs.
    pub client: tls::Material,
}

/// What the mesh's server says when it listens.
#[derive(Debug, Serialize, Deserialize)]
pub struct Meshed {
    /// gRPC.
    pub grpc: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct EchoService;

#[tonic::async_trait]
impl Echo for EchoService {
    async fn unary(
        &self,
        request: tonic::Request<Payload>,
    ) -> Result<tonic::Response<Payload>, Status> {
        Ok(tonic::Response::new(request.into_inner()))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

    async fn stream(
        &self,
        request: tonic::Request<Streaming<Payload>>,
    ) -> Result<tonic::Response<Self::StreamStream>, Status> {
        Ok(tonic::Response::new(Box::pin(request.into_inner())))
    }
}

/// Serves with bare tonic and hyper until the parent is gone.
///
/// # Errors
/// When there are no ports.
pub async fn plain() -> anyhow::Result<()> {
    let (grpc, http) = (bind(PORTS).await?, bind(PORTS).await?);
    let secure = TcpListener::bind("127.0.0.1:0").await?;
    let (server, client) = tls::material()?;
    let line = Plain {
        grpc: addresses(&grpc)?,
        http: addresses(&http)?,
        tls: secure.local_addr()?,
        client,
    };
    for listener in grpc {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = EchoServer::new(EchoService);
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
    }
    for listener in http {
        tokio::spawn(serve_http(listener));
    }
    tokio::spawn(serve_tls(secure, TlsAcceptor::from(Arc::new(server))));
    child::ready(&line).await
}

/// Serves through the mesh until the parent is gone.
///
/// # Errors
/// When the bootstrap is not usable.
pub async fn meshed(bootstrap: &str) -> anyhow::Result<()> {
    let mesh = Mesh::builder()
        .bootstrap(Bootstrap::from_json(bootstrap)?)
        .telemetry(Telemetry::disabled())
        .build()
        .await?;
    mesh.ready().await?;
    let listeners = bind(PORTS).await?;
    let line = Meshed {
        grpc: addresses(&listeners)?,
    };
    for listener in listeners {
        let mesh = mesh.clone();
        let routes = Routes::new(EchoServer::new(EchoService)).prepare();
        tokio::spawn(async move {
            if let Err(error) = mesh.serve(listener, routes).await {
                eprintln!("the mesh does not serve: {error}");
            }
        });
    }
    child::ready(&line).await
}

async fn bind(count: usize) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind("127.0.0.1:0").await?);
    }
    Ok(listeners)
}

fn addresses(listeners: &[TcpListener]) -> std::io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

async fn serve_http(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(|request: Request<Incoming>| async {
            let body = request.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::new(body)))
        });
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match acceptor.accept(stream).await {
                Ok(stream) => serve_grpc(stream).await,
                Err(error) => eprintln!("a TLS handshake failed: {error}"),
            }
        });
    }
}

async fn serve_grpc(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let routes = Routes::new(EchoServer::new(EchoService)).prepare();
    let server = auto::Builder::new(TokioExecutor::new()).http2_only();
    let service = TowerToHyperService::new(routes);
    _ = server.serve_connection(TokioIo::new(stream), service).await;
}
