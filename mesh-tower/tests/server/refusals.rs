//! Every way in which a handshake is refused, with the reason that each side gives: a table.
//!
//! `cargo test -p mesh-tower --test server every_refusal -- --nocapture` prints it.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_tower::{
    identity::{Certificate, Identity},
    tls::{Alpn, TlsError, TlsErrorKind, client::ClientTls},
};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::kit::{ALICE, Ca, Mode, SERVER, World, listener, upstream, within};

const FOREIGN: &str = "spiffe://other.domain/ns/a/sa/b";
const HOUR: Duration = Duration::from_secs(3600);

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    Expired,
    NotYetValid,
    OtherTrustDomain,
    StrangerCa,
}

const FLAWS: [(Flaw, &str); 4] = [
    (Flaw::Expired, "certificate_expired"),
    (Flaw::NotYetValid, "certificate_not_yet_valid"),
    (Flaw::OtherTrustDomain, "trust_domain"),
    (Flaw::StrangerCa, "unknown_issuer"),
];

fn flawed(ca: &Ca, id: &str, flaw: Flaw) -> Certificate {
    let now = SystemTime::now();
    match flaw {
        Flaw::Expired => ca.issue_until(id, now - HOUR),
        Flaw::NotYetValid => ca.issue_between(id, now + HOUR, now + 2 * HOUR),
        Flaw::OtherTrustDomain => ca.issue(FOREIGN),
        Flaw::StrangerCa => Ca::new().issue(id),
    }
}

/// Why a handshake with `address` fails, whoever refuses.
async fn refusal(address: SocketAddr, tls: &ClientTls) -> TlsError {
    let tcp = TcpStream::connect(address).await.expect("connect");
    match within(tls.connect(tcp, address)).await {
        Err(error) => error,
        // In TLS 1.3 a client learns when it reads that it was refused.
        Ok(mut stream) => {
            let read = within(stream.read(&mut [0])).await;
            TlsError::from_io(read.expect_err("refused"))
        }
    }
}

fn client(ca: &Ca, name: &str, identity: Option<Identity>, anonymous: bool) -> ClientTls {
    let mut settings = upstream(&[name]);
    if anonymous {
        settings.identity = None;
    }
    let identity = identity.unwrap_or_else(|| ca.identity(ALICE));
    ClientTls::new(&settings, identity, Alpn::Http2)
}

/// A server that somebody else wrote: of an older TLS, or of none.
async fn other_server(certificate: Option<&Ca>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let config = certificate.map(|_| {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("name");
        let leaf = params.self_signed(&key).expect("leaf").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key);
        Arc::new(config.expect("pair"))
    });
    let task = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.expect("accept");
            match &config {
                Some(config) => {
                    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(config));
                    _ = acceptor.accept(tcp).await;
                }
                None => {
                    _ = tcp.read(&mut [0; 64]).await;
                    _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                }
            }
        }
    });
    (address, task)
}

/// A client of bare rustls that offers an older TLS.
async fn old_client(address: SocketAddr) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await.expect("connect");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("a").expect("name");
    let error = within(connector.connect(name, tcp)).await;
    TlsError::from_io(error.expect_err("refused")).to_string()
}

struct Table(String);

impl Table {
    fn row(&mut self, who: &str, what: &str, reason: &str, told: &str) {
        _ = writeln!(self.0, "| {who} | {what} | {reason} | {told} |");
    }
}

async fn counted(world: &World, reason: &str) {
    let line = format!("mesh_server_refused_connections_total{{reason=\"{reason}\"}} ");
    world.counted(&line).await;
}

/// Whom our client refuses, by the kind of its error.
async fn by_the_client(ca: &Ca, table: &mut Table) {
    let world = World::start(ca, listener(Mode::Strict, &[])).await;
    for (flaw, reason) in FLAWS {
        let certificate = Arc::new(flawed(ca, SERVER, flaw));
        world.certificate.send_replace(Some(certificate));
        let error = refusal(world.addr, &client(ca, SERVER, None, false)).await;
        assert_eq!(error.kind().as_str(), reason, "{flaw:?}: {error}");
        assert!(!error.is_refused_by_peer(), "{flaw:?}: {error}");
        table.row("client", &format!("{flaw:?}"), reason, &error.to_string());
    }
    let certificate = Arc::new(ca.issue(SERVER));
    world.certificate.send_replace(Some(certificate));
    let (old, _old) = other_server(Some(ca)).await;
    let (plain, _plain) = other_server(None).await;
    for (what, address, name, kind) in [
        (
            "another name",
            world.addr,
            ALICE,
            TlsErrorKind::SubjectAltName,
        ),
        (
            "TLS 1.2 inside the mesh",
            old,
            SERVER,
            TlsErrorKind::Version,
        ),
        ("plaintext", plain, SERVER, TlsErrorKind::Plaintext),
    ] {
        let error = refusal(address, &client(ca, name, None, false)).await;
        // A server that cannot go on without TLS 1.3 may be the first to say so.
        assert_eq!(error.kind(), kind, "{what}: {error}");
        table.row("client", what, kind.as_str(), &error.to_string());
    }
}

/// Whom our server refuses, by the reason that it counts and logs.
async fn by_the_server(ca: &Ca, table: &mut Table) {
    for (flaw, reason) in FLAWS {
        let world = World::start(ca, listener(Mode::Strict, &[])).await;
        let identity = Identity::fixed(flawed(ca, ALICE, flaw), ca.bundle());
        // The server is expected by name, whatever trust domain the client is of.
        let error = refusal(world.addr, &client(ca, SERVER, Some(identity), false)).await;
        assert!(error.is_refused_by_peer(), "{flaw:?}: {error}");
        counted(&world, reason).await;
        table.row("server", &format!("{flaw:?}"), reason, &error.to_string());
    }
    let world = World::start(ca, listener(Mode::Strict, &[])).await;
    let error = refusal(world.addr, &client(ca, SERVER, None, true)).await;
    assert_eq!(error.kind(), TlsErrorKind::NoCertificate, "{error}");
    counted(&world, "no_certificate").await;
    table.row(
        "server",
        "no certificate",
        "no_certificate",
        &error.to_string(),
    );

    let told = old_client(world.addr).await;
    counted(&world, "tls_version").await;
    table.row("server", "TLS 1.2 inside the mesh", "tls_version", &told);

    let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("write");
    let mut got = Vec::new();
    _ = within(tcp.read_to_end(&mut got)).await;
    assert!(got.is_empty(), "not one byte");
    counted(&world, "plaintext").await;
    table.row("server", "plaintext", "plaintext", "the connection ends");
}

#[tokio::test]
async fn every_refusal_has_its_own_reason_on_both_sides() {
    let ca = Ca::new();
    let head =
        "| refused by | what is wrong | reason | what the client is told |\n|---|---|---|---|\n";
    let mut table = Table(head.to_owned());
    by_the_client(&ca, &mut table).await;
    by_the_server(&ca, &mut table).await;
    println!("{}", table.0);
    let rows = table.0.lines().skip(2).count();
    assert_eq!(rows, 2 * FLAWS.len() + 6);
}
