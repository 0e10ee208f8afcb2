//! What a PeerAuthentication does to the ports of a workload.

use std::net::SocketAddr;

use mesh_examples::greeter::greeter_client::GreeterClient;
use mesh_tonic::MeshExt as _;
use mesh_tower::telemetry::Telemetry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::Endpoint;

use crate::{
    hello,
    world::{MUST_HAPPEN, World},
};

/// An address of its own, as the ports are those of the published example.
const ADDRESS: [u8; 4] = [127, 0, 0, 91];

const WORKLOAD: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: greeter, namespace: default}
spec:
  hosts: [greeter.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 9080, name: grpc-open, protocol: GRPC}
  - {number: 9090, name: grpc, protocol: GRPC}
  endpoints: [{address: 127.0.0.91, labels: {app: greeter}, serviceAccount: greeter}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: greeter, namespace: default}
spec:
  selector:
    matchLabels:
      app: greeter
  mtls:
    mode: STRICT
  portLevelMtls:
    9080:
      mode: DISABLE
    9090:
      mode: STRICT
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_of_a_strict_workload_takes_plaintext_and_the_other_closes_it() {
    let world = World::start().await;
    world.write("greeter.yaml", WORKLOAD);
    let [open, closed] = [9080, 9090].map(|port| SocketAddr::from((ADDRESS, port)));
    let telemetry = Telemetry::disabled;
    let _one = world.greeter_at(open, "open", telemetry()).await;
    let _two = world.greeter_at(closed, "closed", telemetry()).await;

    // Members speak to each port as it wants.
    let frontend = world.member("frontend").await;
    for (port, version) in [(9080, "open"), (9090, "closed")] {
        let channel = frontend
            .channel(&format!("xds:///greeter.default:{port}"))
            .unwrap();
        let answer = GreeterClient::new(channel)
            .say_hello(hello())
            .await
            .unwrap();
        assert_eq!(answer.into_inner().version, version);
    }

    let bare = Endpoint::from_shared(format!("http://{open}")).unwrap();
    let mut bare = GreeterClient::new(bare.connect().await.unwrap());
    bare.say_hello(hello()).await.unwrap();

    let mut stream = TcpStream::connect(closed).await.unwrap();
    let request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(MUST_HAPPEN, stream.read_to_end(&mut answer)).await;
    assert!(
        read.expect("it is closed").is_err() || answer.is_empty(),
        "{answer:?}"
    );
}
