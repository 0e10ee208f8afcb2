//! Who gets a connection, and as whom.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::config::TrustBundle;
use mesh_tower::{
    identity::Identity,
    tls::{Alpn, TlsError, TlsErrorKind, client::ClientTls},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::kit::{ALICE, Ca, Client, Mode, SERVER, World, bundle, listener, upstream, within};

#[tokio::test]
async fn the_application_sees_who_called_and_no_claim_of_the_caller() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    for alpn in [Alpn::Http2, Alpn::Http1, Alpn::Either] {
        let tls = ClientTls::new(&upstream(&[SERVER]), ca.identity(ALICE), alpn);
        let mut client = Client::with_tls(world.addr, &tls).await.expect("handshake");
        assert_eq!(matches!(client, Client::H2(_)), alpn != Alpn::Http1);
        let claim = [(
            "x-forwarded-client-cert",
            "URI=spiffe://cluster.local/ns/x/sa/root",
        )];
        let answer = client.send("/who", &claim).await.expect("answer");
        assert_eq!(answer.text(), format!("{ALICE} none"), "{alpn:?}");
    }
}

/// What a client gets that says `bytes` over plain TCP.
async fn raw(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
    tcp.write_all(bytes).await.expect("write");
    let mut got = Vec::new();
    // A reset is as good as an end.
    _ = within(tcp.read_to_end(&mut got)).await;
    got
}

#[tokio::test]
async fn plaintext_to_a_strict_server_gets_not_one_byte() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    assert!(
        raw(&world, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .is_empty()
    );
    assert!(
        raw(&world, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .is_empty()
    );
    world
        .counted("mesh_server_refused_connections_total{reason=\"plaintext\"} 2")
        .await;
}

#[tokio::test]
async fn a_permissive_server_serves_both() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Permissive, &[])).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let mut plain = Client::plain(world.addr, alpn).await.expect("connect");
        let claim = [("x-forwarded-client-cert", "x")];
        assert_eq!(
            plain.send("/who", &claim).await.expect("answer").text(),
            "nobody none"
        );
    }
    let mut tls = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    assert_eq!(
        tls.get("/who").await.expect("answer").text(),
        format!("{ALICE} none")
    );
    for count in ["\"none\"} 2", "\"mutual_tls\"} 1"] {
        let name = "mesh_server_connections_total{connection_security_policy=";
        world.counted(&format!("{name}{count}")).await;
    }
}

#[tokio::test]
async fn tls_to_a_plaintext_server_is_refused() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Disable, &[])).await;
    let tls = ClientTls::new(&upstream(&[]), ca.identity(ALICE), Alpn::Http2);
    assert!(Client::with_tls(world.addr, &tls).await.is_err());
    assert!(
        Client::plain(world.addr, Alpn::Http1)
            .await
            .expect("connect")
            .get("/")
            .await
            .is_ok()
    );
}

/// How the server refuses a client: in TLS 1.3 the client learns of it when it reads.
async fn refusal(world: &World, identity: Identity, anonymous: bool) -> TlsError {
    let mut settings = upstream(&[SERVER]);
    if anonymous {
        settings.identity = None;
    }
    let tls = ClientTls::new(&settings, identity, Alpn::Http2);
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
async fn clients_that_cannot_be_trusted_are_refused_with_the_reason() {
    let (ca, stranger, namesake) = (Ca::named("root"), Ca::new(), Ca::named("root"));
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    let past = SystemTime::now() - Duration::from_secs(60);
    let expired = Identity::fixed(ca.issue_until(ALICE, past), ca.bundle());
    let unknown = Identity::fixed(stranger.issue(ALICE), ca.bundle());
    let forged = Identity::fixed(namesake.issue(ALICE), ca.bundle());
    let hour = Duration::from_secs(3600);
    let tomorrow = SystemTime::now() + 24 * hour;
    let early = ca.issue_between(ALICE, SystemTime::now() + hour, tomorrow);
    let early = Identity::fixed(early, ca.bundle());
    let foreign = Identity::fixed(ca.issue("spiffe://other.domain/ns/a/sa/b"), ca.bundle());
    for (identity, anonymous, kind, reason) in [
        (expired, false, TlsErrorKind::Expired, "certificate_expired"),
        // TLS has no alert for this one: rustls says that the certificate has expired.
        (
            early,
            false,
            TlsErrorKind::Expired,
            "certificate_not_yet_valid",
        ),
        (foreign, false, TlsErrorKind::BadCertificate, "trust_domain"),
        (
            unknown,
            false,
            TlsErrorKind::UnknownIssuer,
            "unknown_issuer",
        ),
        (
            ca.identity(ALICE),
            true,
            TlsErrorKind::NoCertificate,
            "no_certificate",
        ),
        (
            forged,
            false,
            TlsErrorKind::BadCertificate,
            "unknown_issuer",
        ),
    ] {
        let error = refusal(&world, identity, anonymous).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.is_refused_by_peer(), "{error}");
        let line = format!("mesh_server_refused_connections_total{{reason=\"{reason}\"}} ");
        world.counted(&line).await;
    }
}

#[tokio::test]
async fn servers_that_cannot_be_trusted_and_missing_material_fail_the_call() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    let foreign_roots = Identity::fixed(ca.issue(ALICE), stranger.bundle());
    let no_roots = Identity::fixed(
        ca.issue(ALICE),
        TrustBundle {
            name: "ROOTCA".into(),
            roots: vec![],
        },
    );
    let other_bundle = Identity::fixed(
        ca.issue(ALICE),
        TrustBundle {
            name: "OTHER".into(),
            ..ca.bundle()
        },
    );
    let only_roots = {
        let trust = watch::channel(Some(Arc::new(ca.bundle()))).1;
        Identity::new(watch::channel(None).1, trust)
    };
    let other_name = "spiffe://cluster.local/ns/default/sa/other";
    for (identity, name, kind) in [
        (ca.identity(ALICE), other_name, TlsErrorKind::SubjectAltName),
        (foreign_roots, SERVER, TlsErrorKind::UnknownIssuer),
        (no_roots, SERVER, TlsErrorKind::NoTrust),
        (other_bundle, SERVER, TlsErrorKind::NoTrust),
        (only_roots, SERVER, TlsErrorKind::NoIdentity),
        (Identity::none(), SERVER, TlsErrorKind::NoIdentity),
    ] {
        let tls = ClientTls::new(&upstream(&[name]), identity, Alpn::Http2);
        let error = Client::with_tls(world.addr, &tls)
            .await
            .err()
            .expect("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.is_refused_by_peer(), "{error}");
    }
    world.certificate.send_replace(None);
    let tls = ClientTls::new(&upstream(&[]), ca.identity(ALICE), Alpn::Http2);
    assert!(Client::with_tls(world.addr, &tls).await.is_err());
    world
        .counted("mesh_server_refused_connections_total{reason=\"no_identity\"} 1")
        .await;
}

/// The leaf that the server shows to a new connection, and whether the session was resumed.
async fn shown(world: &World, tls: &ClientTls) -> (Vec<u8>, bool) {
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    let stream = tls.connect(tcp, world.addr).await.expect("handshake");
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().expect("chain")[0].to_vec();
    let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    // The session's ticket comes with the first bytes that are read.
    let mut client = Client::over(stream, Alpn::Http2).await.expect("HTTP");
    client.get("/").await.expect("answer");
    (leaf, resumed)
}

#[tokio::test]
async fn a_rotation_keeps_live_connections_and_new_ones_use_the_new_certificate() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    let tls = ClientTls::new(&upstream(&[SERVER]), ca.identity(ALICE), Alpn::Http2);
    let mut live = Client::with_tls(world.addr, &tls).await.expect("handshake");
    let (before, _) = shown(&world, &tls).await;
    let (again, resumed) = shown(&world, &tls).await;
    assert!(before == again && resumed, "the second handshake resumes");

    for _ in 0..2 {
        let renewed = Arc::new(ca.issue(SERVER));
        let expected = renewed.chain()[0].to_vec();
        world.certificate.send_replace(Some(renewed));
        let (now, resumed) = shown(&world, &tls).await;
        assert!(
            now == expected && !resumed,
            "a new certificate is a new handshake"
        );
        assert_eq!(
            live.get("/who").await.expect("live").text(),
            format!("{ALICE} none")
        );
    }
}

#[tokio::test]
async fn a_root_is_replaced_without_losing_a_connection() {
    let (old, new) = (Ca::new(), Ca::new());
    let world = World::start(&old, listener(Mode::Strict, &[])).await;
    let both = Arc::new(bundle(&[&old, &new]));
    let old_client = Identity::fixed(old.issue(ALICE), bundle(&[&old, &new]));
    let new_client = Identity::fixed(new.issue(ALICE), bundle(&[&old, &new]));
    let old_tls = ClientTls::new(&upstream(&[SERVER]), old_client.clone(), Alpn::Http2);
    let mut live = Client::with_tls(world.addr, &old_tls)
        .await
        .expect("handshake");
    live.get("/").await.expect("answer");

    world.trust.send_replace(Some(both));
    let mut next = Client::tls(world.addr, new_client)
        .await
        .expect("both roots");
    next.get("/").await.expect("answer");
    world
        .certificate
        .send_replace(Some(Arc::new(new.issue(SERVER))));
    world.trust.send_replace(Some(Arc::new(new.bundle())));
    // The old client held a ticket: it must not help.
    let refused = refusal(&world, old_client, false).await;
    assert_eq!(refused.kind(), TlsErrorKind::UnknownIssuer, "{refused}");
    assert!(live.get("/").await.is_ok() && next.get("/").await.is_ok());
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_refused_unless_it_is_expected_by_name() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    const OTHER: &str = "spiffe://other.domain/ns/a/sa/b";
    let hour = Duration::from_secs(3600);
    world
        .certificate
        .send_replace(Some(Arc::new(ca.issue(OTHER))));
    let error = |names: &'static [&'static str]| {
        let tls = ClientTls::new(&upstream(names), ca.identity(ALICE), Alpn::Http2);
        async move {
            Client::with_tls(world.addr, &tls)
                .await
                .err()
                .map(|e| e.kind())
        }
    };
    assert_eq!(error(&[]).await, Some(TlsErrorKind::TrustDomain));
    assert_eq!(error(&[SERVER]).await, Some(TlsErrorKind::TrustDomain));
    // The server refuses us then: we are of another trust domain than it.
    assert_eq!(error(&[OTHER]).await, None);

    let begins = SystemTime::now() + hour;
    let early = ca.issue_between(SERVER, begins, begins + hour);
    world.certificate.send_replace(Some(Arc::new(early)));
    assert_eq!(error(&[SERVER]).await, Some(TlsErrorKind::NotYetValid));
    let ended = ca.issue_until(SERVER, SystemTime::now() - hour);
    world.certificate.send_replace(Some(Arc::new(ended)));
    assert_eq!(error(&[SERVER]).await, Some(TlsErrorKind::Expired));
}

/// A client of bare rustls, which is what somebody else would use.
async fn handshake_of(world: &World, versions: &[&'static rustls::SupportedProtocolVersion]) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    let name = rustls_pki_types::ServerName::try_from("a").expect("name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    within(connector.connect(name, tcp))
        .await
        .expect_err("refused");
}

#[tokio::test]
async fn a_client_that_speaks_an_older_tls_is_refused_as_such() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    handshake_of(&world, &[&rustls::version::TLS12]).await;
    world
        .counted("mesh_server_refused_connections_total{reason=\"tls_version\"} 1")
        .await;
}
