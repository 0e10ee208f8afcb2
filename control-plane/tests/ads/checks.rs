//! Health checks over real sockets: TCP, `grpc.health.v1`, and over TLS.

use std::sync::Arc;

use control_plane::ca::{Authority, Identity};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tonic_health::ServingStatus;

use crate::{
    kit::{HOUR, MUST_HAPPEN, World},
    ports::free_address,
    registry::{json, put},
};

/// Registers `billing` with a check, done each second.
async fn register(world: &World, port: u16, check: &str) {
    let body = format!(
        r#"{{"Name": "billing", "Port": {port}, "Check": {{{check}, "Interval": "1s", "Timeout": "20s"}}}}"#
    );
    let address = world.running.http_addr();
    let status = put(address, "/v1/agent/service/register", &body).await;
    assert_eq!(status, 200, "{body}");
}

/// Waits until the check of `billing` has this status and says this.
async fn until(world: &World, status: &str, output: &str) {
    let mut last = String::new();
    let found = async {
        loop {
            let checks = json(world, "/v1/agent/checks").await;
            let check = &checks["service:billing"];
            last = check.to_string();
            if check["Status"] == status && last.contains(output) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = timeout(MUST_HAPPEN, found).await;
    assert!(found.is_ok(), "{status} with {output:?}: {last}");
}

#[tokio::test]
async fn a_tcp_check_connects() {
    let world = World::start().await;
    let address = free_address().unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let port = address.port();
    register(&world, port, &format!(r#""TCP": "127.0.0.1:{port}""#)).await;
    until(&world, "passing", "Success").await;
    drop(listener);
    until(&world, "critical", "refused").await;
}

#[tokio::test]
async fn a_grpc_check_asks_for_the_service() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (health, service) = tonic_health::server::health_reporter();
    health
        .set_service_status("billing.Billing", ServingStatus::Serving)
        .await;
    let routes = tonic::service::Routes::new(service).prepare();
    let serve = axum::serve(listener, routes.into_axum_router());
    let server = tokio::spawn(serve.into_future());
    let check = format!(r#""GRPC": "127.0.0.1:{port}/billing.Billing""#);
    register(&world, port, &check).await;
    until(&world, "passing", "SERVING").await;
    health
        .set_service_status("billing.Billing", ServingStatus::NotServing)
        .await;
    until(&world, "critical", "NOT_SERVING").await;
    let unknown = format!(r#""GRPC": "127.0.0.1:{port}/other.Other""#);
    register(&world, port, &unknown).await;
    until(&world, "critical", "not").await;
    server.abort();
}

/// An HTTP server that takes mTLS of the mesh alone, and is `identity`; its port.
async fn strict(world: &World, identity: &Identity) -> u16 {
    let data = world.dir.path().join("data");
    let authority = Authority::open(&data, "cluster.local", HOUR).unwrap();
    let issued = authority.issue(identity, HOUR).unwrap();
    let mut roots = RootCertStore::empty();
    for root in &*authority.roots().borrow() {
        roots.add(CertificateDer::from(root.as_ref())).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = CertificateDer::pem_slice_iter(issued.chain_pem[0].as_bytes());
    let chain = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = async |socket: TcpStream, acceptor: TlsAcceptor| {
        let mut stream = acceptor.accept(socket).await?;
        _ = stream.read(&mut [0; 1024]).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await?;
        stream.shutdown().await
    };
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            _ = answer(socket, acceptor.clone()).await;
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_takes_mtls_alone_is_checked_with_the_certificate_of_the_control_plane() {
    let world = World::start().await;
    let own = strict(&world, &Identity::new("default", "billing").unwrap()).await;
    register(
        &world,
        own,
        &format!(r#""HTTP": "https://127.0.0.1:{own}/""#),
    )
    .await;
    until(&world, "passing", "200 OK").await;
    let plain = format!(r#""HTTP": "http://127.0.0.1:{own}/""#);
    register(&world, own, &plain).await;
    until(&world, "critical", "GET http:").await;

    // Whoever else of the mesh is at that address is not the instance.
    let other = strict(&world, &Identity::new("other", "billing").unwrap()).await;
    let check = format!(r#""TCP": "127.0.0.1:{other}", "TCPUseTLS": true"#);
    register(&world, other, &check).await;
    until(&world, "critical", "not of namespace default").await;
    let blind = format!(r#"{check}, "TLSSkipVerify": true"#);
    register(&world, other, &blind).await;
    until(&world, "passing", "Success").await;
}
