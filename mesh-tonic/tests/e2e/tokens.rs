//! Tokens of an issuer whose keys are fetched over HTTPS, by the control plane or by the servers.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mesh_examples::greeter::HelloRequest;
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Request, Status};

use crate::{
    hello,
    issuer::{self, Issuer},
    signer::Signer,
    world::{Client, ISSUER_ROOTS, MUST_HAPPEN, World, greeter_client},
};

const ISSUER: &str = "testing@secure.istio.io";

fn objects(server: SocketAddr, issuer: &str) -> String {
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
    answer(client, token)
        .await
        .map_or_else(|status| status.code(), |()| Code::Ok)
}

async fn answer(client: &mut Client, token: Option<&str>) -> Result<(), Status> {
    let mut request: Request<HelloRequest> = Request::new(hello());
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    client.say_hello(request).await.map(|_| ())
}

/// Asks until the token is believed.
async fn believed(client: &mut Client, token: &str) {
    let asked = async {
        while ask(client, Some(token)).await != Code::Ok {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(MUST_HAPPEN, asked).await.expect("it is believed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_believed_by_the_keys_that_their_issuer_serves() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let issuer = Issuer::start(Some(signer.keys())).await;
    let mut world = World::start().await;
    world.stop_control_plane().await;
    let roots = world.config_dir().with_file_name(ISSUER_ROOTS);
    fs::write(roots, &issuer.root_pem).unwrap();
    world.start_control_plane().await;
    let server = world.greeter("v1").await;
    world.write(
        "greeter.yaml",
        &objects(server.address, &issuer.address.to_string()),
    );
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);

    let admin = token(&signer, "admin-user");
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
    issuer.publish(Some(stranger.keys()));
    believed(&mut client, &forged).await;
    assert_eq!(ask(&mut client, Some(&admin)).await, Code::Unauthenticated);
}

/// A greeter that fetches the keys of `issuer` itself, and a client of it.
async fn fetching(issuer: &Issuer) -> (World, crate::Server, Client) {
    let world = World::start().await;
    let roots = world.data_dir().join("issuer.pem");
    fs::write(&roots, &issuer.root_pem).unwrap();
    let server = world.greeter("v1").await;
    let outside = issuer::objects(issuer.address, &roots, "10m");
    world.write("issuer.yaml", &outside);
    world.write("greeter.yaml", &objects(server.address, issuer::NAME));
    let frontend = world.member("frontend").await;
    (world, server, greeter_client(&frontend))
}

const TARGET: &str = "/jwks.json";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_new_key_is_believed_at_once_by_servers_that_fetch_keys() {
    let signers: Vec<_> = (0..4).map(|n| Signer::named(&format!("k{n}"))).collect();
    let issuer = Issuer::start(Some(signers[0].keys())).await;
    let (_world, _server, mut client) = fetching(&issuer).await;
    believed(&mut client, &token(&signers[0], "admin-user")).await;
    // Long before the keys of before are due to be fetched again.
    for pair in signers.windows(2) {
        issuer.publish(Some(pair[1].keys()));
        let new = token(&pair[1], "admin-user");
        assert_eq!(ask(&mut client, Some(&new)).await, Code::Ok);
        let old = token(&pair[0], "admin-user");
        assert_eq!(ask(&mut client, Some(&old)).await, Code::Unauthenticated);
    }
    // An issuer that is away takes nothing away.
    issuer.publish(None);
    let unknown = token(&Signer::named("unknown"), "admin-user");
    assert_eq!(
        ask(&mut client, Some(&unknown)).await,
        Code::Unauthenticated
    );
    let last = token(&signers[3], "admin-user");
    assert_eq!(ask(&mut client, Some(&last)).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_keys_that_somebody_made_up_cause_few_fetches() {
    use mesh_core::filter::{UNKNOWN_KEY_FETCH_INTERVAL, UNKNOWN_KEY_FETCHES_MAX};
    let signer = Signer::new();
    let issuer = Issuer::start(Some(signer.keys())).await;
    let (_world, _server, mut client) = fetching(&issuer).await;
    believed(&mut client, &token(&signer, "admin-user")).await;
    let (before, began) = (issuer.fetches(TARGET), Instant::now());
    let mut asked = JoinSet::new();
    for number in 0..200 {
        let made_up = token(&Signer::named(&format!("made-up-{number}")), "admin-user");
        let mut client = client.clone();
        asked.spawn(async move { ask(&mut client, Some(&made_up)).await });
    }
    // Whoever has a key is not kept waiting.
    let good = token(&signer, "admin-user");
    assert_eq!(ask(&mut client, Some(&good)).await, Code::Ok);
    while let Some(code) = asked.join_next().await {
        assert_eq!(code.unwrap(), Code::Unauthenticated);
    }
    let passed = began.elapsed().as_secs_f64() / UNKNOWN_KEY_FETCH_INTERVAL.as_secs_f64();
    let most = f64::from(UNKNOWN_KEY_FETCHES_MAX) + passed.ceil();
    let fetches = issuer.fetches(TARGET) - before;
    assert!(fetches as f64 <= most, "{fetches} fetches, at most {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_believed_before_the_keys_of_its_issuer_are_there() {
    let signer = Signer::new();
    let issuer = Issuer::start(None).await;
    let (_world, _server, mut client) = fetching(&issuer).await;
    let good = token(&signer, "admin-user");
    let refused = async {
        loop {
            let status = answer(&mut client, Some(&good)).await.expect_err("no keys");
            if status.code() == Code::Unauthenticated {
                return status;
            }
        }
    };
    let status = timeout(MUST_HAPPEN, refused).await.expect("it is refused");
    let why = "the keys of the token's issuer cannot be fetched";
    assert_eq!(status.message(), why);
    assert_eq!(ask(&mut client, None).await, Code::PermissionDenied);
    issuer.publish(Some(signer.keys()));
    believed(&mut client, &good).await;
}
