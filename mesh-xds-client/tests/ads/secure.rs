//! TLS to the control plane, and tokens (gRFC A65, A97).

use std::{
    fs, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use mesh_core::snapshot::ListenerState;
use mesh_xds_client::{Bootstrap, StreamStatus, XdsClient, bootstrap::TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Connected;

use crate::{server::*, wait_for_port, within};

/// `{"exp":99999999999}` between two dots.
const TOKEN: &str = "e30.eyJleHAiOjk5OTk5OTk5OTk5fQ.c2ln";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A certificate for a name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        self.issue_member(&[name], &[])
    }

    /// A certificate for names and URIs, and its key.
    fn issue_member(&self, names: &[&str], uris: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let uris = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A control plane that asks for certificates of `authority`; returns its port.
async fn serve(authority: &Authority) -> (u16, mpsc::UnboundedReceiver<ServerStream>) {
    serve_as(authority, authority.issue("localhost")).await
}

/// The same, which shows this certificate.
async fn serve_as(
    authority: &Authority,
    (certificate, key): (String, String),
) -> (u16, mpsc::UnboundedReceiver<ServerStream>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let root = rustls_pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes());
    roots.add(root.unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let certificate = rustls_pki_types::CertificateDer::from_pem_slice(certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.unwrap()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = TcpListenerStream::new(listener).filter_map(move |tcp| {
        let acceptor = acceptor.clone();
        // A failed handshake is the client's to tell.
        async move {
            Some(Ok::<_, io::Error>(Io(acceptor
                .accept(tcp.ok()?)
                .await
                .ok()?)))
        }
    });
    let (service, streams) = service(false);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    (port, streams)
}

fn client(port: u16, folder: &Path) -> XdsClient {
    client_with(port, folder, TlsFiles::with_roots(folder.join("ca")))
}

fn client_with(port: u16, folder: &Path, roots: TlsFiles) -> XdsClient {
    let files = roots.identity(folder.join("certificate"), folder.join("key"));
    let bootstrap = Bootstrap::builder(format!("https://localhost:{port}"))
        .tls(files)
        .token_file(folder.join("token"))
        .build()
        .unwrap();
    let pauses = [10, 50].map(std::time::Duration::from_millis);
    let builder = XdsClient::builder(bootstrap).backoff(pauses[0], pauses[1]);
    builder.build().unwrap()
}

fn write_files(folder: &Path, authority: &Authority) {
    let (certificate, key) = authority.issue("client");
    fs::write(folder.join("ca"), &authority.pem).unwrap();
    fs::write(folder.join("certificate"), certificate).unwrap();
    fs::write(folder.join("key"), key).unwrap();
    fs::write(folder.join("token"), TOKEN).unwrap();
}

/// Waits until the connection is refused with a text like this.
async fn refused(client: &XdsClient, expected: &str) {
    let mut status = client.status();
    let is_refused = |status: &StreamStatus| match status {
        StreamStatus::Disconnected { error, .. } => error.contains(expected),
        _ => false,
    };
    within(status.wait_for(is_refused)).await.unwrap();
}

#[tokio::test]
async fn mutual_tls_and_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write_files(folder.path(), &authority);
    let (port, mut streams) = serve(&authority).await;
    let client = client(port, folder.path());
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = within(streams.recv()).await.unwrap();
    let expected = format!("Bearer {TOKEN}");
    assert_eq!(stream.authorization.as_deref(), Some(expected.as_str()));
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
}

#[tokio::test]
async fn an_untrusted_control_plane_is_never_spoken_to_and_a_rotation_needs_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (Authority::new(), Authority::new());
    write_files(folder.path(), &wrong);
    let (port, mut streams) = serve(&right).await;
    let client = client(port, folder.path());
    let mut reader = client.watch_listener("l", "greeter");
    refused(&client, "certificate").await;
    assert!(matches!(reader.load(), ListenerState::Failed(_)));
    assert!(streams.try_recv().is_err(), "nothing was sent");
    write_files(folder.path(), &right);
    let mut stream = within(streams.recv()).await.unwrap();
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
}

#[tokio::test]
async fn a_missing_root_key_or_token_fails_the_attempt_and_names_the_file() {
    let authority = Authority::new();
    let (port, mut streams) = serve(&authority).await;
    for file in ["ca", "certificate", "key", "token"] {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), &authority);
        fs::remove_file(folder.path().join(file)).unwrap();
        let client = client(port, folder.path());
        let _reader = client.watch_listener("l", "greeter");
        refused(&client, &format!("/{file}: ")).await;
        assert!(streams.try_recv().is_err(), "no stream without {file}");
    }
}

const ISTIOD: &str = "spiffe://mesh.example/ns/istio-system/sa/istiod";

/// A bundle map in SPIFFE's format.
fn bundle_map(bundles: &[(&str, &Authority)]) -> String {
    let domains = bundles.iter().map(|(domain, authority)| {
        let der = rustls_pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes());
        let root = STANDARD.encode(der.unwrap());
        let key = format!(r#"{{"kty": "EC", "use": "x509-svid", "x5c": ["{root}"]}}"#);
        format!(r#""{domain}": {{"spiffe_sequence": 1, "keys": [{key}]}}"#)
    });
    let domains: Vec<_> = domains.collect();
    format!(r#"{{"trust_domains": {{{}}}}}"#, domains.join(", "))
}

fn client_with_map(port: u16, folder: &Path) -> XdsClient {
    client_with(port, folder, TlsFiles::with_bundle_map(folder.join("map")))
}

#[tokio::test]
async fn roots_by_trust_domain_vouch_for_the_control_plane_of_their_own_alone() {
    let (ours, other) = (Authority::new(), Authority::new());
    let shown = || ours.issue_member(&["localhost"], &[ISTIOD]);
    for (map, expected) in [
        (
            bundle_map(&[("mesh.example", &other), ("other.example", &ours)]),
            "do not vouch for the control plane",
        ),
        (
            bundle_map(&[("other.example", &ours)]),
            "trust domain \"mesh.example\", for which",
        ),
        ("{}".to_owned(), "/map: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), &ours);
        fs::write(folder.path().join("map"), &map).unwrap();
        let (port, mut streams) = serve_as(&ours, shown()).await;
        let client = client_with_map(port, folder.path());
        let mut reader = client.watch_listener("l", "greeter");
        refused(&client, expected).await;
        assert!(streams.try_recv().is_err(), "nothing was sent: {map}");

        let right = bundle_map(&[("mesh.example", &ours), ("other.example", &other)]);
        fs::write(folder.path().join("map"), right).unwrap();
        let mut stream = within(streams.recv()).await.unwrap();
        stream.serve_all(1).await;
        wait_for_port(&mut reader, 1).await;
    }
}

#[tokio::test]
async fn a_member_that_is_not_the_control_plane_cannot_pose_as_it() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), &ours);
    let map = bundle_map(&[("mesh.example", &ours)]);
    fs::write(folder.path().join("map"), map).unwrap();
    let two = [ISTIOD, "spiffe://mesh.example/ns/b/sa/b"];
    for (names, uris, expected) in [
        (
            &["web.example"][..],
            &two[..1],
            "not valid for name \"localhost\"",
        ),
        (&["localhost"], &[], "has 0 URI names"),
        (&["localhost"], &two, "has 2 URI names"),
        (
            &["localhost"],
            &["https://mesh.example/"],
            "is no SPIFFE ID",
        ),
    ] {
        let (port, mut streams) = serve_as(&ours, ours.issue_member(names, uris)).await;
        let client = client_with_map(port, folder.path());
        let _reader = client.watch_listener("l", "greeter");
        refused(&client, expected).await;
        assert!(streams.try_recv().is_err(), "nothing was sent: {uris:?}");
    }
}

#[tokio::test]
async fn files_that_rotate_leave_the_stream_alone_and_are_used_by_the_next_one() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), &old);
    fs::write(
        folder.path().join("map"),
        bundle_map(&[("mesh.example", &old)]),
    )
    .unwrap();
    let (port, mut streams) = serve_as(&old, old.issue_member(&["localhost"], &[ISTIOD])).await;
    let client = client_with_map(port, folder.path());
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = within(streams.recv()).await.unwrap();
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;

    write_files(folder.path(), &new);
    fs::write(
        folder.path().join("map"),
        bundle_map(&[("mesh.example", &new)]),
    )
    .unwrap();
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;

    drop(stream);
    refused(&client, "do not vouch for the control plane").await;
    assert!(streams.try_recv().is_err(), "the old roots are gone");
}
