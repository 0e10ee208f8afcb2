//! Keys that servers fetch themselves, and that change under load: Envoy and our server believe the same
//! tokens at any time.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::{DataSource, TransportSocket, data_source::Specifier, transport_socket},
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
        common_tls_context::ValidationContextType,
    },
};
use mesh_examples::ports::free_address;
use tokio::{net::TcpListener, sync::RwLock, task::JoinSet, time::timeout};

use super::{ask, echo, for_envoy, listener, proxy, signer::Signer};
use crate::{
    issuer::{self, Issuer},
    routes::any,
    world::{MUST_HAPPEN, World},
};

const ISSUER: &str = "https://issuer.example";
/// How often keys change.
const CHANGES: usize = 4;
/// Fetches after which a server has surely used what was published before them: the one that was on
/// its way, one more, and the beginning of the next.
const FETCHES: usize = 3;

fn tokens(target: &str) -> String {
    format!(
        "---
kind: RequestAuthentication
metadata: {{name: tokens}}
spec: {{jwtRules: [{{issuer: '{ISSUER}', jwksUri: '{ISSUER}{target}'}}]}}
"
    )
}

/// The issuer as Envoy reaches it.
fn cluster(issuer: &Issuer) -> Cluster {
    let root = DataSource {
        specifier: Some(Specifier::InlineString(issuer.root_pem.clone())),
        ..DataSource::default()
    };
    let roots = CertificateValidationContext {
        trusted_ca: Some(root),
        ..CertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        sni: issuer::NAME.to_owned(),
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(roots)),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    let name = format!("outbound|443||{}", issuer::NAME);
    Cluster {
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&context))),
        }),
        ..proxy::cluster(&name, issuer.address, false)
    }
}

/// Our server as a member of a mesh, which reaches the issuer through it.
async fn our_server(issuer: &Issuer) -> (World, SocketAddr) {
    let world = World::start().await;
    let roots = world.data_dir().join("issuer.pem");
    fs::write(&roots, &issuer.root_pem).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mesh = world.member("api").await;
    tokio::spawn(async move { mesh.serve(socket, echo()).await });
    let service = format!(
        "---
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
",
        address.port()
    );
    let objects = issuer::objects(issuer.address, &roots, "1s");
    world.write("api.yaml", &format!("{objects}{service}{}", tokens(OURS)));
    (world, address)
}

const OURS: &str = "/ours";
const ENVOYS: &str = "/envoys";

async fn status(address: SocketAddr, token: &str) -> u16 {
    let request = format!(
        "GET / HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    ask(address, &request).await.0
}

/// Waits until both have used the keys that are published now.
async fn seen_by_both(issuer: &Issuer) {
    let before = [OURS, ENVOYS].map(|target| (target, issuer.fetches(target)));
    let fetched = async {
        for (target, before) in before {
            while issuer.fetches(target) < before + FETCHES {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    timeout(MUST_HAPPEN * 2, fetched).await.expect("fetches");
}

/// What is signed now: a token to believe, and tokens not to believe.
struct Phase {
    good: String,
    bad: Vec<String>,
}

fn token(signer: &Signer) -> String {
    signer.token(&format!(r#"{{"iss": "{ISSUER}", "sub": "alice"}}"#))
}

/// A token of another key of the same name.
fn forged(id: &str) -> String {
    token(&Signer::named(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_our_server_believe_the_same_while_fetched_keys_change_under_load() {
    let signers: Vec<_> = (0..=CHANGES)
        .map(|n| Signer::named(&format!("k{n}")))
        .collect();
    let issuer = Issuer::start(Some(signers[0].keys())).await;
    let (_world, ours) = our_server(&issuer).await;
    let folder = tempfile::tempdir().unwrap();
    let envoy = free_address().unwrap();
    let objects = issuer::objects(issuer.address, &folder.path().join("unused.pem"), "1s");
    let config = for_envoy(&listener(&format!("{objects}{}", tokens(ENVOYS)), envoy));
    let _envoy =
        proxy::envoy_with(folder.path(), vec![config], envoy, vec![cluster(&issuer)]).await;

    let first = token(&signers[0]);
    let ready = async {
        while (status(ours, &first).await, status(envoy, &first).await) != (200, 200)
            || status(ours, &forged("k0")).await != 401
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(MUST_HAPPEN * 2, ready).await.expect("both serve");

    let phase = Arc::new(RwLock::new(Phase {
        good: first,
        bad: vec![forged("k0")],
    }));
    let asked = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    for worker in 0..4 {
        let (phase, asked) = (Arc::clone(&phase), Arc::clone(&asked));
        load.spawn(async move {
            let mut wrong = Vec::new();
            for number in worker.. {
                let now = phase.read().await;
                let Some(bad) = now.bad.get(number % now.bad.len().max(1)) else {
                    break;
                };
                for (token, right) in [(&now.good, 200), (bad, 401)] {
                    let found = tokio::join!(status(ours, token), status(envoy, token));
                    if found != (right, right) {
                        wrong.push(format!("{right} is right, ours and Envoy's: {found:?}"));
                    }
                    asked.fetch_add(2, Relaxed);
                }
            }
            wrong
        });
    }
    for pair in signers.windows(2) {
        let [old, new] = pair else { unreachable!() };
        // As issuers do it: the new key is published, used, and the old one goes.
        issuer.publish(Some(Signer::keys_of(&[old, new])));
        seen_by_both(&issuer).await;
        phase.write().await.good = token(new);
        issuer.publish(Some(new.keys()));
        seen_by_both(&issuer).await;
        phase.write().await.bad.push(token(old));
        let until = asked.load(Relaxed) + 20;
        while asked.load(Relaxed) < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // Nobody is left to ask for.
    phase.write().await.bad.clear();
    let wrong: Vec<_> = load.join_all().await.into_iter().flatten().collect();
    let asked = asked.load(Relaxed);
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
    println!("{CHANGES} changes of keys, {asked} verdicts, none wrong");
}
