//! Envoy sends requests to the address that a header names, where our control plane says so.

use super::*;

const ANYWHERE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: anywhere, namespace: default}
spec:
  hosts: [anywhere.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: NONE
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
---
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: anywhere, namespace: default}
spec: {host: anywhere, originalDestination: {httpHeader: x-to}}
";

async fn call(envoy: &Envoy, to: Option<SocketAddr>) -> Result<String, tonic::Status> {
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", envoy.outbound))
            .unwrap()
            .origin("http://anywhere.default:8080".parse().unwrap());
    let channel = endpoint.connect().await.unwrap();
    let mut client = mesh_examples::greeter::greeter_client::GreeterClient::new(channel);
    let mut request = tonic::Request::new(HelloRequest::default());
    if let Some(to) = to {
        let value = to.to_string().parse().unwrap();
        request.metadata_mut().insert("x-to", value);
    }
    Ok(client.say_hello(request).await?.into_inner().version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_sends_to_the_address_in_the_header_that_the_policy_names() {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let (v1, v2) = (world.greeter("v1").await, world.greeter("v2").await);
    world.write("anywhere.yaml", ANYWHERE);
    let folder = tempfile::tempdir().unwrap();
    let frontend = ("envoy", world.token("frontend"));
    let envoy = start_envoy(world.xds_addr(), frontend, folder.path(), "GRPC").await;
    until("a call through Envoy over mTLS", async || {
        call(&envoy, Some(v1.address)).await.is_ok()
    })
    .await;
    for _ in 0..3 {
        assert_eq!(call(&envoy, Some(v1.address)).await.unwrap(), "v1");
        assert_eq!(call(&envoy, Some(v2.address)).await.unwrap(), "v2");
    }
    call(&envoy, None).await.expect_err("nobody says where to");
    let metrics = world.control_plane.as_ref().unwrap().metrics();
    assert_eq!(metrics.nacks_total(), 0);
}
