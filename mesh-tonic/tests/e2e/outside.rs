//! Hosts outside the mesh, over a DNS server, a control plane and HTTPS that are all real.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use http::StatusCode;
use mesh_examples::ports::free_port;
use mesh_tower::{Body, HttpClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::world::{MUST_HAPPEN, World};

/// A DNS server whose addresses a test gives.
struct Dns {
    address: SocketAddr,
    records: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>>,
    _tasks: JoinSet<()>,
}

impl Dns {
    async fn start() -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let records: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let known = Arc::clone(&records);
        tasks.spawn(async move {
            let mut query = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut query).await.unwrap();
                let answer = answer(&query[..length], &known.lock().unwrap());
                _ = socket.send_to(&answer, from).await;
            }
        });
        Self {
            address,
            records,
            _tasks: tasks,
        }
    }

    fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        let mut records = self.records.lock().unwrap();
        records.insert(name.to_owned(), addresses.to_vec());
    }
}

/// The answer to a query of one question (RFC 1035, section 4), with a time to live of a second.
fn answer(query: &[u8], records: &HashMap<String, Vec<Ipv4Addr>>) -> Vec<u8> {
    const HEADER: usize = 12;
    let mut at = HEADER;
    let mut labels = Vec::new();
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let question = &query[HEADER..at + 5];
    let is_a = question[question.len() - 4..][..2] == [0, 1];
    let found = records.get(&labels.join("."));
    let code = if found.is_some() { 0 } else { 3 };
    let addresses = found.filter(|_| is_a).cloned().unwrap_or_default();
    let mut answer = query[..2].to_vec();
    answer.extend([
        0x81,
        0x80 | code,
        0,
        1,
        0,
        addresses.len() as u8,
        0,
        0,
        0,
        0,
    ]);
    answer.extend(question);
    for address in addresses {
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

/// An HTTPS server that says its name.
async fn https(
    issuer: &rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    (ip, port): (Ipv4Addr, u16),
    names: &[&str],
    tasks: &mut JoinSet<()>,
) -> u16 {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = rcgen::CertificateParams::new(names).unwrap();
    let leaf = CertificateDer::from(leaf.signed_by(&key, issuer).unwrap().der().to_vec());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((ip, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let text = ip.to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                let mut request = [0; 4096];
                while tls.read(&mut request).await.is_ok_and(|length| length > 0) {
                    if tls
                        .write_all((head.clone() + &text).as_bytes())
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn config(port: u16, ca: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  location: MESH_EXTERNAL
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api, namespace: default}}
spec:
  host: {host}
  trafficPolicy:
    tls: {{mode: SIMPLE, caCertificates: {ca}}}
"
    )
}

/// What a request gets: who answered, or the error.
async fn ask(client: &HttpClient, host: &str) -> Result<String, String> {
    use http_body_util::BodyExt as _;
    use tower::Service as _;
    let request = http::Request::get(format!("http://{host}/"))
        .body(Body::empty())
        .unwrap();
    let response = timeout(MUST_HAPPEN, client.clone().call(request)).await;
    let response = response
        .expect("in time")
        .map_err(|error| error.to_string())?;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_host_is_looked_up_followed_and_spoken_to_with_tls_that_proves_its_name() {
    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
    const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(root, key).unwrap();
    let mut servers = JoinSet::new();
    let names = ["api.example"];
    let port = https(&issuer, (FIRST, free_port().unwrap()), &names, &mut servers).await;
    https(&issuer, (SECOND, port), &names, &mut servers).await;

    let world = World::start().await;
    let ca = world.data_dir().join("public.pem");
    fs::write(&ca, issuer.pem()).unwrap();
    let ca = ca.display().to_string();
    world.write("outside.yaml", &config(port, &ca, "api.example"));
    world.write(
        "impostor.yaml",
        &config(port, &ca, "impostor.example").replace("name: api,", "name: impostor,"),
    );
    let dns = Dns::start().await;
    dns.set("api.example", &[FIRST]);
    dns.set("impostor.example", &[FIRST]);
    let mesh = world.member_builder("client").dns_servers([dns.address]);
    let mesh = mesh.build().await.unwrap();
    // What nobody uses is forgotten: the client is kept.
    let client = mesh.http_client();

    let until = tokio::time::Instant::now() + MUST_HAPPEN;
    let answer = loop {
        match ask(&client, "api.example").await {
            Ok(answer) => break answer,
            // The control plane may not have read the file yet.
            Err(error) => assert!(tokio::time::Instant::now() < until, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(answer, FIRST.to_string());

    // The host moves; its time to live is a second.
    dns.set("api.example", &[SECOND]);
    while ask(&client, "api.example").await.expect("an answer") != SECOND.to_string() {
        assert!(
            tokio::time::Instant::now() < until + MUST_HAPPEN,
            "it has moved"
        );
        tokio::task::yield_now().await;
    }
    // A name that is not known any more takes nothing away.
    dns.records.lock().unwrap().remove("api.example");
    let error = ask(&client, "impostor.example")
        .await
        .expect_err("another name");
    assert!(error.contains("subject_alt_name"), "{error}");
    assert_eq!(ask(&client, "api.example").await, Ok(SECOND.to_string()));
    mesh.shutdown().await;
}
