//! Tokens of an issuer whose keys are fetched over HTTPS.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_examples::greeter::HelloRequest;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use tonic::{Code, Request};

use crate::{
    hello,
    signer::Signer,
    world::{Client, ISSUER_ROOTS, MUST_HAPPEN, World, greeter_client},
};

const ISSUER: &str = "testing@secure.istio.io";

/// Serves keys over HTTPS.
struct Issuer {
    address: SocketAddr,
    root_pem: String,
    keys: Arc<Mutex<String>>,
}

impl Issuer {
    async fn start(keys: String) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Mutex::new(keys));
        let served = Arc::clone(&keys);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(acceptor.clone(), stream, Arc::clone(&served)));
            }
        });
        Self {
            address,
            root_pem: made.cert.pem(),
            keys,
        }
    }
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, keys: Arc<Mutex<String>>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
        line.clear();
    }
    let keys = keys.lock().unwrap().clone();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
    _ = stream.write_all(answer.as_bytes()).await;
    _ = stream.shutdown().await;
}

fn objects(server: SocketAddr, issuer: SocketAddr) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: greeter, namespace: default}}
spec:
  hosts: [greeter.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 8080, name: grpc, protocol: GRPC}}]
  endpoints:
  - {{address: {}, ports: {{grpc: {}}}, labels: {{app: greeter}}, serviceAccount: greeter}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt-example, namespace: default}}
spec:
  selector:
    matchLabels:
      app: greeter
  jwtRules:
  - issuer: \"{ISSUER}\"
    jwksUri: \"https://{issuer}/jwks.json\"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: require-admin, namespace: default}}
spec:
  selector:
    matchLabels:
      app: greeter
  action: ALLOW
  rules:
  - when:
    - key: request.auth.claims[sub]
      values: [\"admin-user\"]
",
        server.ip(),
        server.port()
    )
}

fn token(signer: &Signer, subject: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let expires = (now + Duration::from_secs(600)).as_secs();
    let claims = format!(r#"{{"iss": "{ISSUER}", "sub": "{subject}", "exp": {expires}}}"#);
    signer.token(&claims)
}

async fn ask(client: &mut Client, token: Option<&str>) -> Code {
    let mut request: Request<HelloRequest> = Request::new(hello());
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    let answer = client.say_hello(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_believed_by_the_keys_that_their_issuer_serves() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let issuer = Issuer::start(signer.keys()).await;
    let mut world = World::start().await;
    world.stop_control_plane().await;
    let roots = world.config_dir().with_file_name(ISSUER_ROOTS);
    fs::write(roots, &issuer.root_pem).unwrap();
    world.start_control_plane().await;
    let server = world.greeter("v1").await;
    world.write("greeter.yaml", &objects(server.address, issuer.address));
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);

    let admin = token(&signer, "admin-user");
    let believed = async |client: &mut Client, token: &str| {
        let asked = async {
            while ask(client, Some(token)).await != Code::Ok {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(MUST_HAPPEN, asked).await.expect("it is believed");
    };
    believed(&mut client, &admin).await;
    let other = token(&signer, "another-user");
    let forged = token(&stranger, "admin-user");
    for (token, expected) in [
        (None, Code::PermissionDenied),
        (Some(&other), Code::PermissionDenied),
        (Some(&forged), Code::Unauthenticated),
        (Some(&admin), Code::Ok),
    ] {
        assert_eq!(ask(&mut client, token.map(String::as_str)).await, expected);
    }

    // The issuer's keys change: those of before are believed no more.
    *issuer.keys.lock().unwrap() = stranger.keys();
    believed(&mut client, &forged).await;
    assert_eq!(ask(&mut client, Some(&admin)).await, Code::Unauthenticated);
}
