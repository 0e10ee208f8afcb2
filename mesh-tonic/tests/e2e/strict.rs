//! From PERMISSIVE to STRICT, as docs/security.md says it is done.

use std::{net::SocketAddr, time::Duration};

use mesh_examples::greeter::greeter_client::GreeterClient;
use mesh_tower::telemetry::{Telemetry, serve_metrics};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::transport::Endpoint;

use crate::{
    get, hello,
    load::Load,
    world::{MUST_HAPPEN, World, endpoints, greeter_client},
};

fn authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// A counter of a metrics endpoint; 0 before it is there.
async fn counted(metrics: SocketAddr, name: &str) -> u64 {
    let text = get(metrics, "/metrics").await;
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.rsplit(' ').next());
    number.map_or(0, |number| number.trim().parse().unwrap())
}

const PLAINTEXT: &str = "mesh_server_connections_total{connection_security_policy=\"none\"}";
const MUTUAL: &str = "mesh_server_connections_total{connection_security_policy=\"mutual_tls\"}";
const REFUSED: &str = "mesh_server_refused_connections_total{reason=\"plaintext\"}";

async fn is_closed(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut first = [0; 1];
    let read = timeout(MUST_HAPPEN, stream.read(&mut first)).await;
    matches!(read.expect("an end or an answer"), Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_plaintext_is_counted_until_a_namespace_becomes_strict() {
    let world = World::start().await;
    world.write("mode.yaml", &authentication("PERMISSIVE"));
    let telemetry = Telemetry::disabled();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = TcpListener::bind(any).await.unwrap();
    let metrics = socket.local_addr().unwrap();
    tokio::spawn(serve_metrics(socket, telemetry.metrics().clone()));
    let server = world.greeter_at(any, "v1", telemetry).await;
    let endpoints = endpoints(&[("v1", server.address)]);
    let labels = "labels: {security.istio.io/tlsMode: istio, ";
    world.write("endpoints.yaml", &endpoints.replace("labels: {", labels));
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);
    client.say_hello(hello()).await.unwrap();
    assert!(
        counted(metrics, MUTUAL).await > 0,
        "members use mTLS where it is taken"
    );

    // Somebody is left to move.
    let bare = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut old = GreeterClient::new(bare.connect().await.unwrap());
    old.say_hello(hello()).await.unwrap();
    assert_eq!(counted(metrics, PLAINTEXT).await, 1);
    drop(old);

    // Nobody notices the change but those who still speak plaintext.
    let load = Load::start(&client, 4);
    world.write("mode.yaml", &authentication("STRICT"));
    let strict = async {
        while counted(metrics, REFUSED).await == 0 {
            is_closed(server.address).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(MUST_HAPPEN, strict).await.expect("STRICT");
    assert!(is_closed(server.address).await);
    load.next(50).await;
    assert_eq!(load.stop().await, [""; 0]);
}
