//! Service account tokens whose keys are fetched from their issuer over HTTPS.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use control_plane::{
    ControlPlane, Running,
    agent::{Agent, AgentOptions},
    ca::{JwksSource, JwtOptions},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

const ISSUER: &str = "https://kubernetes.default.svc";
const MUST_HAPPEN: Duration = Duration::from_secs(20);

/// A key of the issuer.
struct Key {
    id: &'static str,
    key: EncodingKey,
    jwk: Value,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        Self {
            id,
            key: EncodingKey::from_ed_der(pkcs8.as_ref()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "use": "sig", "x": x}),
        }
    }

    fn token(&self) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": ["istio-ca"], "exp": now + 600,
            "sub": "system:serviceaccount:shop:web",
        });
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.to_owned());
        encode(&header, &claims, &self.key).unwrap()
    }
}

/// What the issuer answers; `None` ends connections without a word.
type Answer = Arc<Mutex<Option<String>>>;

/// Serves keys over HTTPS at its address; the PEM of its certificate.
async fn serve(answer: Answer) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let Some(keys) = answer.lock().unwrap().clone() else {
                continue;
            };
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                line.clear();
            }
            let head = "HTTP/1.1 200 OK\r\nconnection: close";
            let text = format!("{head}\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
            _ = stream.write_all(text.as_bytes()).await;
            _ = stream.shutdown().await;
        }
    });
    (address, made.cert.pem())
}

async fn start(dir: &std::path::Path, uri: &str) -> anyhow::Result<Running> {
    let any = ([127, 0, 0, 1], 0).into();
    let builder = ControlPlane::builder(dir.join("config"), dir.join("data"))
        .xds_listen(any)
        .http_listen(any)
        .jwks_ca_file(dir.join("issuer.pem"))
        .jwks_refresh(Duration::from_millis(50));
    let options = JwtOptions {
        jwks: JwksSource::Uri(uri.to_owned()),
        issuer: ISSUER.into(),
        audience: "istio-ca".into(),
    };
    builder.service_account_tokens(options).start().await
}

/// Who a token makes us, or why nobody.
async fn identity(dir: &std::path::Path, running: &Running, token: &str) -> Result<String, String> {
    let file = dir.join("token");
    fs::write(&file, token).unwrap();
    let server = format!("http://{}", running.xds_addr()).parse().unwrap();
    let mut options = AgentOptions::new(server, dir.join("out"));
    options.token_file = Some(file);
    let renewed = Agent::open(options).unwrap().renew().await;
    renewed
        .map(|(id, _)| id)
        .map_err(|error| format!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_verified_with_keys_from_the_issuer_which_stay_while_it_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("config")).unwrap();
    let answer = Answer::default();
    let (issuer, pem) = serve(Arc::clone(&answer)).await;
    fs::write(dir.join("issuer.pem"), pem).unwrap();
    let set = |keys: &[&Key]| {
        let keys: Vec<_> = keys.iter().map(|key| &key.jwk).collect();
        *answer.lock().unwrap() = Some(json!({"keys": keys}).to_string());
    };
    let plain = start(dir, &format!("http://{issuer}/jwks"))
        .await
        .unwrap_err();
    assert!(format!("{plain:#}").contains("https alone"), "{plain:#}");

    // Nobody is believed before there are keys.
    let uri = format!("https://{issuer}/openid/v1/jwks");
    let running = start(dir, &uri).await.unwrap();
    let (first, second) = (Key::new("k1"), Key::new("k2"));
    let error = identity(dir, &running, &first.token()).await.unwrap_err();
    assert!(error.contains("cannot be verified now"), "{error}");
    let known = async |running: &Running, key: &Key| {
        let token = key.token();
        let known = async {
            while identity(dir, running, &token).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(MUST_HAPPEN, known).await.expect(key.id);
        identity(dir, running, &token).await.unwrap()
    };
    set(&[&first]);
    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(known(&running, &first).await, WEB);
    let error = identity(dir, &running, &second.token()).await.unwrap_err();
    assert!(
        error.contains("key or an algorithm that is not known"),
        "{error}"
    );
    set(&[&first, &second]);
    known(&running, &second).await;

    // The issuer goes, and we start again: what was fetched last is believed.
    *answer.lock().unwrap() = None;
    running.shutdown().await;
    let running = start(dir, &uri).await.unwrap();
    assert_eq!(
        identity(dir, &running, &second.token()).await.as_deref(),
        Ok(WEB)
    );
    // A key that it takes back is not believed any more.
    set(&[&first]);
    let forgotten = async {
        while identity(dir, &running, &second.token()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(MUST_HAPPEN, forgotten).await.expect("forgotten");
    running.shutdown().await;
}
