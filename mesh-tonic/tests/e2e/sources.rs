//! Identities that are not from our authority over CSR: files that an agent keeps, and SPIFFE's
//! Workload API; and leaves of our authority under clocks that are wrong.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, response::Response};
use bytes::Bytes;
use control_plane::agent::{Agent, AgentOptions};
use http::HeaderMap;
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    net::{TcpStream, UnixListener},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::{CryptoProvider, ring, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
        server::ParsedCertificate,
        time_provider::TimeProvider,
    },
};

use crate::{
    hello,
    world::{MUST_HAPPEN, SECURITY, World, endpoints, greeter_client},
};

const FRONTEND: &str = "spiffe://cluster.local/ns/default/sa/frontend";

/// A member with another provider of certificates.
async fn member(world: &World, account: &str, provider: Value) -> Mesh {
    let mut json: Value =
        serde_json::from_str(&world.bootstrap_json(account, account, &[])).unwrap();
    json["certificate_providers"]["default"] = provider;
    let mesh = Mesh::builder()
        .bootstrap(Bootstrap::from_json(&json.to_string()).unwrap())
        .telemetry(Telemetry::disabled())
        .drain_timeout(Duration::from_secs(5))
        .build()
        .await
        .unwrap();
    let ready = timeout(MUST_HAPPEN, mesh.ready()).await;
    ready.expect("an identity").unwrap();
    mesh
}

/// An agent that keeps the identity of `account` in a directory of its own.
fn agent(world: &World, folder: &Path, account: &str) -> (Agent, PathBuf) {
    let token = folder.join(format!("{account}.token"));
    fs::write(&token, world.token(account)).unwrap();
    let server = format!("http://{}", world.xds_addr()).parse().unwrap();
    let out = folder.join(account);
    let mut options = AgentOptions::new(server, &out);
    options.token_file = Some(token);
    (Agent::open(options).unwrap(), out)
}

fn files(folder: &Path) -> Value {
    json!({"plugin_name": "file_watcher", "config": {
        "certificate_file": folder.join("cert-chain.pem"),
        "private_key_file": folder.join("key.pem"),
        "ca_certificate_file": folder.join("root-cert.pem"),
        "refresh_interval": "0.01s",
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_files_of_an_agent_serve_and_call_and_take_each_rotation() {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, ours) = agent(&world, folder.path(), "frontend");
    let (mut other, theirs) = agent(&world, folder.path(), "greeter");
    keeper.renew().await.unwrap();
    other.renew().await.unwrap();
    let greeter = member(&world, "greeter", files(&theirs)).await;
    let served = world.greeter_of(greeter, "v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", served.address)]));
    world.is_read().await;
    let frontend = member(&world, "frontend", files(&ours)).await;
    let reply = greeter_client(&frontend).say_hello(hello()).await.unwrap();
    assert_eq!(reply.into_inner().peer, FRONTEND);

    let mut certificates = frontend.identity().unwrap().certificates();
    for _ in 0..3 {
        certificates.mark_unchanged();
        keeper.renew().await.unwrap();
        let changed = timeout(MUST_HAPPEN, certificates.changed()).await;
        changed.expect("the new files").unwrap();
        // A new member has no connection yet.
        let next = member(&world, "frontend", files(&ours)).await;
        let reply = greeter_client(&next).say_hello(hello()).await.unwrap();
        assert_eq!(reply.into_inner().peer, FRONTEND);
    }
    let metrics = frontend.telemetry().metrics().encode();
    let line = format!("mesh_certificate_expiry_seconds{{spiffe_id=\"{FRONTEND}\"}} 35");
    assert!(metrics.contains(&line), "{metrics}");
}

/// SPIFFE's `X509SVIDResponse`.
#[derive(Clone, Message)]
struct Svids {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(map = "string, bytes", tag = "3")]
    federated: HashMap<String, Vec<u8>>,
}

/// SPIFFE's `X509SVID`.
#[derive(Clone, Message)]
struct Svid {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes, tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes, tag = "3")]
    key: Vec<u8>,
    #[prost(bytes, tag = "4")]
    bundle: Vec<u8>,
}

/// An authority that is not ours.
struct Spire {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Spire {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    fn svid(&self, id: &str, federated: &[(&str, &Self)]) -> Svids {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let root = |of: &Self| of.issuer.der().to_vec();
        let federated = federated
            .iter()
            .map(|(id, of)| ((*id).to_owned(), root(of)));
        Svids {
            svids: vec![Svid {
                id: id.to_owned(),
                chain: leaf.der().to_vec(),
                key: key.serialize_der(),
                bundle: root(self),
            }],
            federated: federated.collect(),
        }
    }
}

/// Serves the Workload API on a socket, as an agent of SPIRE does; each new value goes to every
/// stream.
fn workload_api(socket: &Path, svids: watch::Receiver<Svids>) -> Value {
    let fetch = move |headers: HeaderMap| async move {
        assert_eq!(headers["workload.spiffe.io"], "true");
        let messages =
            futures_util::stream::unfold((svids, true), |(mut svids, is_first)| async move {
                if !is_first {
                    svids.changed().await.ok()?;
                }
                let message = svids.borrow_and_update().encode_to_vec();
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let frame = [&[0][..], &length, &message].concat();
                Some((Ok::<_, Infallible>(Bytes::from(frame)), (svids, false)))
            });
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(Body::from_stream(messages)).unwrap()
    };
    let path = "/SpiffeWorkloadAPI/FetchX509SVID";
    let router = Router::new().route(path, axum::routing::post(fetch));
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let endpoint = format!("unix://{}", socket.display());
    json!({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": endpoint}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_the_workload_api_serve_and_call_also_a_federated_trust_domain() {
    const GREETER: &str = "spiffe://cluster.local/ns/default/sa/greeter";
    const PARTNER: &str = "spiffe://partner.example/ns/default/sa/web";
    let world = World::start().await;
    let allow = SECURITY.replace(
        "principals: [",
        "principals: [partner.example/ns/default/sa/web, ",
    );
    world.write("security.yaml", &allow);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (home, partner) = (Spire::new(), Spire::new());
    let federated: &[(&str, &Spire)] = &[("spiffe://partner.example", &partner)];
    let (of_greeter, greeter) = watch::channel(home.svid(GREETER, federated));
    let (of_frontend, frontend) = watch::channel(home.svid(FRONTEND, &[]));
    let back: &[(&str, &Spire)] = &[("spiffe://cluster.local", &home)];
    let (_of_web, web) = watch::channel(partner.svid(PARTNER, back));

    let greeter = member(&world, "greeter", workload_api(&at("greeter"), greeter)).await;
    let served = world.greeter_of(greeter.clone(), "v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", served.address)]));
    world.is_read().await;
    let frontend_api = workload_api(&at("frontend"), frontend);
    let peer = async |member: &Mesh| {
        let reply = greeter_client(member).say_hello(hello()).await;
        reply.map(|reply| reply.into_inner().peer)
    };
    let frontend = member(&world, "frontend", frontend_api.clone()).await;
    assert_eq!(peer(&frontend).await.unwrap(), FRONTEND);
    let web_api = workload_api(&at("web"), web);
    let web = member(&world, "web", web_api.clone()).await;
    assert_eq!(peer(&web).await.unwrap(), PARTNER);

    // Rotations on both sides.
    for _ in 0..3 {
        for (tx, member, id) in [
            (&of_greeter, &greeter, GREETER),
            (&of_frontend, &frontend, FRONTEND),
        ] {
            let mut certificates = member.identity().unwrap().certificates();
            certificates.mark_unchanged();
            let federated = if id == GREETER { federated } else { &[] };
            tx.send_replace(home.svid(id, federated));
            timeout(MUST_HAPPEN, certificates.changed())
                .await
                .expect(id)
                .unwrap();
        }
        let next = member(&world, "frontend", frontend_api.clone()).await;
        assert_eq!(peer(&next).await.unwrap(), FRONTEND);
    }

    // No longer federated: no new connection.
    let mut certificates = greeter.identity().unwrap().certificates();
    certificates.mark_unchanged();
    of_greeter.send_replace(home.svid(GREETER, &[]));
    timeout(MUST_HAPPEN, certificates.changed())
        .await
        .expect("taken")
        .unwrap();
    let stranger = member(&world, "web", web_api).await;
    let refused = timeout(MUST_HAPPEN, peer(&stranger)).await.expect("an end");
    assert!(refused.is_err(), "{refused:?}");
    let counted = async |member: &Mesh, labels: &str| {
        let line = format!("mesh_client_tls_handshake_failures_total{{{labels}}} ");
        let counted = async {
            while !member.telemetry().metrics().encode().contains(&line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(MUST_HAPPEN, counted).await.expect(labels);
    };
    counted(&stranger, "reason=\"bad_certificate\",refused_by=\"peer\"").await;

    // Of another authority, which calls itself by our trust domain.
    let (_of_rogue, rogue) = watch::channel(Spire::new().svid(FRONTEND, &[]));
    let rogue = member(&world, "frontend", workload_api(&at("rogue"), rogue)).await;
    let refused = timeout(MUST_HAPPEN, peer(&rogue)).await.expect("an end");
    assert!(refused.is_err(), "{refused:?}");
    counted(&rogue, "reason=\"unknown_issuer\",refused_by=\"us\"").await;
}

/// A clock that is off.
#[derive(Debug)]
struct Off(i64);

impl TimeProvider for Off {
    fn current_time(&self) -> Option<UnixTime> {
        let off = Duration::from_secs(self.0.unsigned_abs());
        let now = SystemTime::now();
        let now = if self.0 < 0 { now - off } else { now + off };
        let since = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// Verifies a chain at the time of such a clock, and no name.
#[derive(Debug)]
struct Chain(RootCertStore, Arc<CryptoProvider>);

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.1.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.1.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_was_just_issued_is_valid_to_clocks_five_minutes_off_in_either_direction() {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, out) = agent(&world, folder.path(), "frontend");
    keeper.renew().await.unwrap();
    let served = world.greeter("v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", served.address)]));
    world.is_read().await;
    let frontend = world.member("frontend").await;
    greeter_client(&frontend).say_hello(hello()).await.unwrap();

    let read = |name: &str| fs::read(out.join(name)).unwrap();
    let (chain, roots) = (read("cert-chain.pem"), read("root-cert.pem"));
    let handshake = async |off: i64| {
        let provider = Arc::new(ring::default_provider());
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&roots) {
            store.add(root.unwrap()).unwrap();
        }
        let chain = CertificateDer::pem_slice_iter(&chain)
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
        let clock = Arc::new(Off(off));
        let config = ClientConfig::builder_with_details(Arc::clone(&provider), clock)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Chain(store, provider)))
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tcp = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::IpAddress(served.address.ip().into());
        let connected = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await;
        connected.map(drop).map_err(|error| error.to_string())
    };
    for off in [0, -299, 299] {
        assert_eq!(handshake(off).await, Ok(()), "{off} s");
    }
    // The bound is one: it is `notBefore` that lets the slow clock in.
    let error = handshake(-660).await.unwrap_err();
    assert!(error.contains("not valid yet"), "{error}");
}
