//! Servers outside the mesh: whom their clients trust, by which names, and as whom they come.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_core::{
    config::{
        CertificateSource, HttpVersion, SanMatcher, SanType, StringMatcher, StringPattern,
        TlsVersion, TrustBundle, TrustSource, UpstreamTls,
    },
    testing::{HandMade, tree},
};
use mesh_tower::{Body, MeshService, connect::HyperConnector};
use rustls::{ServerConfig, SupportedProtocolVersion, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

const HOST: &str = "api.example";
const MUST_HAPPEN: Duration = Duration::from_secs(20);

/// A public authority, such as the system trusts.
pub(crate) struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

/// A chain with its key, in PEM.
pub(crate) struct Issued {
    chain: String,
    key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, key).expect("root"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.0.der().to_vec())
    }

    /// A certificate with these names, valid from and to so many hours from now.
    pub(crate) fn issue(&self, names: &[rcgen::SanType], hours: (i64, i64)) -> Issued {
        let at = |hours: i64| {
            let span = Duration::from_secs(hours.unsigned_abs() * 3600);
            let now = SystemTime::now();
            if hours < 0 { now - span } else { now + span }
        };
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.not_before = at(hours.0).into();
        params.not_after = at(hours.1).into();
        let leaf = params.signed_by(&key, &self.0).expect("leaf");
        Issued {
            chain: leaf.pem(),
            key: key.serialize_pem(),
        }
    }

    fn bundle(&self) -> TrustSource {
        TrustSource::Inline(Arc::new(TrustBundle {
            name: "test".into(),
            roots: vec![Bytes::copy_from_slice(self.0.der())],
        }))
    }
}

pub(crate) fn dns(name: &str) -> rcgen::SanType {
    rcgen::SanType::DnsName(name.try_into().expect("IA5"))
}

/// An HTTPS server that says which name it was asked for and whether the client had a certificate.
struct Https {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

type Versions = &'static [&'static SupportedProtocolVersion];
static BOTH: Versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
static OLD: Versions = &[&rustls::version::TLS12];

impl Https {
    async fn start(issued: &Issued, versions: Versions, clients: Option<&Authority>) -> Self {
        use rustls_pki_types::pem::PemObject;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.der()).expect("root");
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().expect("verifier"))
            }
        };
        let mut config = builder.with_single_cert(chain, key).expect("pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let session = tls.get_ref().1;
                    let name = session.server_name().unwrap_or("none").to_owned();
                    let is_known = session.peer_certificates().is_some();
                    let answer = service_fn(move |_| {
                        let body = Bytes::from(format!("{name} {is_known}"));
                        async move {
                            let body = Full::new(body);
                            Ok::<_, std::convert::Infallible>(http::Response::new(body))
                        }
                    });
                    _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tls), answer)
                        .await;
                });
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// What a client of a cluster with this TLS gets: the answer, or why there is none.
    async fn ask(&self, tls: UpstreamTls, version: HttpVersion) -> Result<String, String> {
        let (mut config, reader) = HandMade::new();
        let service = MeshService::new("l", reader, HyperConnector::new(None));
        let built = tree("l").cluster_with("a", &[self.address], |cluster| {
            cluster.http_version = version;
            cluster.tls = Some(tls);
        });
        config.publish(&built.route("/", "a").build());
        let request = Request::get("http://l.test/").body(Body::empty()).unwrap();
        let answer = tokio::time::timeout(MUST_HAPPEN, service.oneshot(request)).await;
        let response = answer
            .expect("in time")
            .map_err(|error| error.to_string())?;
        let expected = match version {
            HttpVersion::Http2 => Version::HTTP_2,
            _ => Version::HTTP_11,
        };
        assert_eq!(response.version(), expected);
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

/// TLS that sends and expects `name`.
fn to(roots: TrustSource, name: &str) -> UpstreamTls {
    UpstreamTls {
        sni: Some(name.to_owned()),
        auto_sni_san_validation: true,
        ..UpstreamTls::new(roots)
    }
}

const VALID: (i64, i64) = (-1, 24);

#[tokio::test]
async fn a_public_server_is_trusted_by_its_name_with_either_version_of_tls_and_of_http() {
    let authority = Authority::new("public");
    let issued = authority.issue(&[dns(HOST)], VALID);
    for versions in [BOTH, OLD] {
        let server = Https::start(&issued, versions, None).await;
        for version in [HttpVersion::Http1, HttpVersion::Http2] {
            let answer = server.ask(to(authority.bundle(), HOST), version).await;
            assert_eq!(answer.as_deref(), Ok("api.example false"), "{version:?}");
        }
    }
}

#[tokio::test]
async fn servers_that_are_not_what_is_expected_are_refused_with_the_reason() {
    let (authority, stranger) = (Authority::new("public"), Authority::new("public"));
    let valid = authority.issue(&[dns(HOST)], VALID);
    let newest = |tls| UpstreamTls {
        min_version: TlsVersion::V1_3,
        ..tls
    };
    let ask = |name| to(authority.bundle(), name);
    for (issued, versions, tls, reason) in [
        (&valid, BOTH, ask("other.example"), "subject_alt_name"),
        (
            &authority.issue(&[dns(HOST)], (-48, -24)),
            BOTH,
            ask(HOST),
            "certificate_expired",
        ),
        (
            &authority.issue(&[dns(HOST)], (24, 48)),
            BOTH,
            ask(HOST),
            "certificate_not_yet_valid",
        ),
        (
            &stranger.issue(&[dns(HOST)], VALID),
            BOTH,
            ask(HOST),
            "unknown_issuer",
        ),
        (&valid, OLD, newest(ask(HOST)), "tls_version"),
    ] {
        let server = Https::start(issued, versions, None).await;
        let error = server.ask(tls, HttpVersion::Http2).await.expect_err(reason);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn names_of_every_kind_are_matched_by_kind_and_predicate() {
    let authority = Authority::new("public");
    let names = [
        dns("*.example"),
        rcgen::SanType::URI("spiffe://td/a".try_into().expect("IA5")),
        rcgen::SanType::Rfc822Name("who@example".try_into().expect("IA5")),
        rcgen::SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    let server = Https::start(&authority.issue(&names, VALID), BOTH, None).await;
    let pattern = |pattern| StringMatcher::new(pattern).expect("set");
    for (san_type, matcher, is_match) in [
        (SanType::Dns, StringMatcher::exact(HOST), true),
        (SanType::Dns, StringMatcher::exact("a.b.example"), false),
        (SanType::Uri, StringMatcher::exact(HOST), false),
        (
            SanType::Uri,
            pattern(StringPattern::Prefix("spiffe://td/".into())),
            true,
        ),
        (
            SanType::Email,
            pattern(StringPattern::Suffix("@example".into())),
            true,
        ),
        (SanType::IpAddress, StringMatcher::exact("127.0.0.1"), true),
        (SanType::IpAddress, StringMatcher::exact("127.0.0.2"), false),
    ] {
        let tls = UpstreamTls {
            subject_alt_names: vec![SanMatcher {
                san_type: Some(san_type),
                matcher: matcher.clone(),
            }],
            ..UpstreamTls::new(authority.bundle())
        };
        let answer = server.ask(tls, HttpVersion::Http1).await;
        assert_eq!(
            answer.is_ok(),
            is_match,
            "{san_type:?} {matcher:?}: {answer:?}"
        );
    }
    // The name that is sent wins over the list.
    let tls = UpstreamTls {
        subject_alt_names: vec![SanMatcher::exact("who@example")],
        ..to(authority.bundle(), "other.test")
    };
    assert!(server.ask(tls, HttpVersion::Http1).await.is_err());
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).expect("write");
    path
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_that_of_the_files() {
    let (authority, clients) = (Authority::new("public"), Authority::new("clients"));
    let issued = authority.issue(&[dns(HOST)], VALID);
    let ours = clients.issue(&[dns("us.example")], VALID);
    let directory = tempfile::tempdir().expect("directory");
    let identity = CertificateSource::Files {
        chain: write(directory.path(), "chain.pem", &ours.chain),
        key: write(directory.path(), "key.pem", &ours.key),
    };
    let roots = TrustSource::File(write(directory.path(), "ca.pem", &authority.pem()));
    for versions in [BOTH, OLD] {
        let server = Https::start(&issued, versions, Some(&clients)).await;
        let tls = UpstreamTls {
            identity: Some(identity.clone()),
            ..to(roots.clone(), HOST)
        };
        let answer = server.ask(tls, HttpVersion::Http2).await;
        assert_eq!(answer.as_deref(), Ok("api.example true"));
        let without = server
            .ask(to(roots.clone(), HOST), HttpVersion::Http2)
            .await;
        let error = without.expect_err("no certificate");
        // TLS 1.3 says it to the request that was sent meanwhile, or to whom asks next.
        let says = ["CertificateRequired", "no_certificate"].map(|word| error.contains(word));
        assert!(says.contains(&true) || versions == OLD, "{error}");
    }
    let nobody = CertificateSource::Files {
        chain: directory.path().join("nobody.pem"),
        key: directory.path().join("key.pem"),
    };
    let server = Https::start(&issued, BOTH, Some(&clients)).await;
    let tls = UpstreamTls {
        identity: Some(nobody),
        ..to(roots, HOST)
    };
    let error = server
        .ask(tls, HttpVersion::Http1)
        .await
        .expect_err("no file");
    assert!(error.contains("nobody.pem"), "{error}");
}

#[tokio::test]
async fn without_an_identity_in_the_mesh_its_tls_is_refused() {
    let authority = Authority::new("public");
    let server = Https::start(&authority.issue(&[dns(HOST)], VALID), BOTH, None).await;
    let tls = UpstreamTls::new(TrustSource::Sds("ROOTCA".into()));
    let error = server
        .ask(tls, HttpVersion::Http1)
        .await
        .expect_err("no roots");
    assert!(error.contains("this process has no identity"), "{error}");
}

/// Asks with the roots of the system, which are read from the environment: in a process of its own.
#[tokio::test]
async fn the_systems_roots_vouch_for_public_servers() {
    const ADDRESS: &str = "MESH_TEST_OUTSIDE_ADDRESS";
    if let Ok(address) = std::env::var(ADDRESS) {
        let server = Https {
            address: address.parse().expect("an address"),
            _tasks: JoinSet::new(),
        };
        let answer = server
            .ask(to(TrustSource::System, HOST), HttpVersion::Http2)
            .await;
        println!("answer {answer:?}");
        return;
    }
    let authority = Authority::new("public");
    let server = Https::start(&authority.issue(&[dns(HOST)], VALID), BOTH, None).await;
    let directory = tempfile::tempdir().expect("directory");
    let trusted = write(directory.path(), "trusted.pem", &authority.pem());
    let other = Authority::new("public").pem();
    let untrusted = write(directory.path(), "untrusted.pem", &other);
    let missing = directory.path().join("missing.pem");
    let name = "outside::the_systems_roots_vouch_for_public_servers";
    for (roots, expected) in [
        (trusted, "api.example false"),
        (untrusted, "unknown_issuer"),
        (missing, "the system has no root certificates"),
    ] {
        let environment: HashMap<&str, String> = HashMap::from([
            (ADDRESS, server.address.to_string()),
            ("SSL_CERT_FILE", roots.display().to_string()),
        ]);
        let child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env_remove("SSL_CERT_DIR")
            .envs(environment)
            .stdout(Stdio::piped())
            .output();
        let output = child.await.expect("it ran");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
