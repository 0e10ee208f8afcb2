//! Roots by trust domain (gRFC A87): none vouches for another, on both sides.

use std::sync::Arc;

use bytes::Bytes;
use mesh_core::config::SpiffeBundleMap;
use mesh_tower::{
    identity::Identity,
    tls::{Alpn, TlsError, TlsErrorKind, client::ClientTls},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::watch::{self, Receiver, Sender},
};

use crate::kit::{Ca, Client, Mode, World, listener, router, upstream, within};

const HOME: &str = "spiffe://home.example/ns/a/sa/server";
const ALICE: &str = "spiffe://home.example/ns/a/sa/alice";
const BOB: &str = "spiffe://partner.example/ns/b/sa/bob";
const MALLORY: &str = "spiffe://nowhere.example/ns/a/sa/alice";

type Maps = Receiver<Option<Arc<SpiffeBundleMap>>>;

fn map(domains: &[(&str, &Ca)]) -> Option<Arc<SpiffeBundleMap>> {
    let bundles = domains.iter().map(|(domain, ca)| {
        let root = Bytes::copy_from_slice(ca.der());
        ((*domain).to_owned(), vec![root])
    });
    Some(Arc::new(SpiffeBundleMap {
        name: "ROOTCA".into(),
        bundles: bundles.collect(),
    }))
}

fn member(ca: &Ca, id: &str, maps: Maps) -> Identity {
    let certificate = watch::channel(Some(Arc::new(ca.issue(id)))).1;
    Identity::with_bundle_map(certificate, maps)
}

/// A server of `home.example`, and the way to change its map.
async fn server(ca: &Ca, known: &[(&str, &Ca)]) -> (World, Sender<Option<Arc<SpiffeBundleMap>>>) {
    let (tx, maps) = watch::channel(map(known));
    let identity = member(ca, HOME, maps);
    let state = listener(Mode::Strict, &[]);
    let world = World::with(ca, state, router(), |server| server.identity(identity)).await;
    (world, tx)
}

/// How the server refuses a client.
async fn refusal(world: &World, client: Identity) -> TlsError {
    let tls = ClientTls::new(&upstream(&[HOME]), client, Alpn::Http2);
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    match tls.connect(tcp, world.addr).await {
        Err(error) => error,
        Ok(mut stream) => {
            let mut byte = [0];
            TlsError::from_io(within(stream.read(&mut byte)).await.expect_err("refused"))
        }
    }
}

#[tokio::test]
async fn a_server_verifies_each_client_with_the_roots_of_its_own_trust_domain() {
    let (home, partner, nowhere) = (Ca::new(), Ca::new(), Ca::new());
    let known = [("home.example", &home), ("partner.example", &partner)];
    let (world, maps) = server(&home, &known).await;
    let all = map(&[
        ("home.example", &home),
        ("partner.example", &partner),
        ("nowhere.example", &nowhere),
    ]);
    let client = |ca: &Ca, id: &str| member(ca, id, watch::channel(all.clone()).1);
    let connect = async |identity: Identity| {
        let tls = ClientTls::new(&upstream(&[HOME]), identity, Alpn::Http2);
        Client::with_tls(world.addr, &tls).await.expect("handshake")
    };
    let mut live = None;
    for (ca, id) in [(&home, ALICE), (&partner, BOB)] {
        let mut connected = connect(client(ca, id)).await;
        let answer = connected.get("/who").await.expect("answer");
        assert_eq!(answer.text(), format!("{id} none"));
        live = Some(connected);
    }
    for (ca, id, reason, count) in [
        // A root that we know, of a trust domain that is not its own.
        (&home, BOB, "unknown_issuer", 1),
        (&partner, ALICE, "unknown_issuer", 2),
        (&nowhere, BOB, "unknown_issuer", 3),
        (&nowhere, MALLORY, "unknown_trust_domain", 1),
        (&home, MALLORY, "unknown_trust_domain", 2),
    ] {
        let error = refusal(&world, client(ca, id)).await;
        assert!(error.is_refused_by_peer(), "{error}");
        let line = format!("mesh_server_refused_connections_total{{reason=\"{reason}\"}} {count}");
        world.counted(&line).await;
    }

    // Whom the map forgets gets no new connection.
    maps.send_replace(map(&known[..1]));
    let error = refusal(&world, client(&partner, BOB)).await;
    assert!(error.is_refused_by_peer(), "{error}");
    assert!(
        live.expect("connected").get("/who").await.is_ok(),
        "live ones stay"
    );
    maps.send_replace(map(&[]));
    let error = refusal(&world, client(&home, ALICE)).await;
    assert!(
        error.is_refused_by_peer(),
        "an empty map trusts nobody: {error}"
    );
    let line = "mesh_server_refused_connections_total{reason=\"unknown_trust_domain\"} 4";
    world.counted(line).await;
}

#[tokio::test]
async fn a_certificate_without_a_spiffe_id_has_no_roots() {
    let home = Ca::new();
    let (world, _maps) = server(&home, &[("home.example", &home)]).await;
    let dns = rcgen::SanType::DnsName("home.example".try_into().expect("IA5"));
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().expect("IA5"));
    for names in [
        vec![dns],
        vec![uri("https://home.example/a")],
        vec![uri(ALICE), uri(HOME)],
    ] {
        let (leaf, key) = home.issue_named(names);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(vec![leaf], key)
            .expect("client");
        let tcp = TcpStream::connect(world.addr).await.expect("connect");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = rustls_pki_types::ServerName::IpAddress(world.addr.ip().into());
        let refused = match connector.connect(name, tcp).await {
            Err(error) => error,
            Ok(mut stream) => within(stream.read(&mut [0])).await.expect_err("refused"),
        };
        assert!(TlsError::from_io(refused).is_refused_by_peer());
    }
    let line = "mesh_server_refused_connections_total{reason=\"bad_certificate\"} 3";
    world.counted(line).await;
}

#[tokio::test]
async fn a_client_verifies_a_server_with_the_roots_of_its_own_trust_domain() {
    const SERVER: &str = "spiffe://partner.example/ns/b/sa/server";
    let (home, partner) = (Ca::new(), Ca::new());
    let both = [("home.example", &home), ("partner.example", &partner)];
    let (world, _maps) = server(&home, &both).await;
    let serve_as = |ca: &Ca, id: &str| {
        let map = watch::channel(map(&both)).1;
        let identity = member(ca, id, map);
        async move {
            let state = listener(Mode::Strict, &[]);
            World::with(&Ca::new(), state, router(), |server| {
                server.identity(identity)
            })
            .await
        }
    };
    let error = async |world: &World, names: &[&str]| {
        let alice = member(&home, ALICE, watch::channel(map(&both)).1);
        let tls = ClientTls::new(&upstream(names), alice, Alpn::Http2);
        let connected = Client::with_tls(world.addr, &tls).await;
        connected.err().map(|error| error.kind())
    };
    assert_eq!(error(&world, &[HOME]).await, None);
    assert_eq!(error(&world, &[]).await, None);

    let other = serve_as(&partner, SERVER).await;
    assert_eq!(error(&other, &[SERVER]).await, None);
    // A partner is not any of our services for whom nobody named an identity.
    assert_eq!(error(&other, &[]).await, Some(TlsErrorKind::TrustDomain));
    assert_eq!(
        error(&other, &[HOME]).await,
        Some(TlsErrorKind::TrustDomain)
    );

    let forged = serve_as(&partner, HOME).await;
    assert_eq!(
        error(&forged, &[HOME]).await,
        Some(TlsErrorKind::UnknownIssuer)
    );
    let unknown = serve_as(&home, MALLORY).await;
    let kind = Some(TlsErrorKind::UnknownTrustDomain);
    assert_eq!(error(&unknown, &[MALLORY]).await, kind);
}

/// Believes every server: what is asked is whom the server believes.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &rustls_pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &rustls_pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
