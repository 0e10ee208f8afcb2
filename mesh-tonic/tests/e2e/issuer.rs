//! An issuer of tokens that serves its keys over HTTPS.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

/// What the issuer's certificate says, besides its address.
pub(crate) const NAME: &str = "issuer.example";

/// Serves keys over HTTPS.
pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    pub(crate) root_pem: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// `None`: the issuer has other worries.
    keys: Option<String>,
    /// How often each target was asked for.
    fetches: HashMap<String, usize>,
}

impl Issuer {
    pub(crate) async fn start(keys: Option<String>) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let names = [ip.to_string(), NAME.to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            keys,
            ..State::default()
        }));
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(acceptor.clone(), stream, Arc::clone(&served)));
            }
        });
        Self {
            address,
            root_pem: made.cert.pem(),
            state,
        }
    }

    /// These are its keys from now on; without any it answers with 503.
    pub(crate) fn publish(&self, keys: Option<String>) {
        self.state.lock().unwrap().keys = keys;
    }

    /// How often keys were asked for at `target`.
    pub(crate) fn fetches(&self, target: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.fetches.get(target).copied().unwrap_or_default()
    }
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, state: Arc<Mutex<State>>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    _ = stream.read_line(&mut first).await;
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
        line.clear();
    }
    let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let keys = {
        let mut state = state.lock().unwrap();
        *state.fetches.entry(target).or_default() += 1;
        state.keys.clone()
    };
    let (status, keys) = match keys {
        Some(keys) => ("200 OK", keys),
        None => ("503 Service Unavailable", String::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close");
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
    _ = stream.write_all(answer.as_bytes()).await;
    _ = stream.shutdown().await;
}

/// The issuer as a service outside of the mesh, whose keys servers fetch themselves.
pub(crate) fn objects(issuer: SocketAddr, roots: &std::path::Path, cache_duration: &str) -> String {
    format!(
        "
kind: MeshPolicy
metadata: {{name: keys}}
spec: {{remoteJwks: {{cacheDuration: {cache_duration}}}}}
---
kind: ServiceEntry
metadata: {{name: issuer}}
spec:
  hosts: [{NAME}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 443, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
---
kind: DestinationRule
metadata: {{name: issuer}}
spec:
  host: {NAME}
  trafficPolicy: {{tls: {{mode: SIMPLE, sni: {NAME}, caCertificates: {}}}}}
",
        issuer.ip(),
        issuer.port(),
        roots.display()
    )
}
