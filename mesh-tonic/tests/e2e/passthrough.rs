//! Requests that name the address that they go to: ServiceEntries without resolution, PASSTHROUGH, and a
//! header, over mTLS.

use std::net::SocketAddr;

use mesh_examples::greeter::{HelloRequest, greeter_client::GreeterClient};
use mesh_tonic::MeshExt as _;
use mesh_tower::Mesh;
use tokio::time::timeout;
use tonic::{Request, Status};

use crate::world::{MUST_HAPPEN, SECURITY, World, endpoints};

const ANYWHERE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: anywhere, namespace: default}
spec:
  hosts: [anywhere.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: NONE
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
";

const BY_HEADER: &str = "
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: anywhere, namespace: default}
spec: {host: anywhere, originalDestination: {httpHeader: x-to}}
";

const PASSTHROUGH: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: default}
spec: {host: greeter, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
";

/// Calls `name` with `origin` in the URI, and this header; who answered.
async fn call(
    mesh: &Mesh,
    name: &str,
    origin: SocketAddr,
    header: Option<SocketAddr>,
) -> Result<String, Status> {
    let channel = mesh.channel(&format!("xds:///{name}")).unwrap();
    let origin = format!("http://{origin}").parse().unwrap();
    let mut client = GreeterClient::with_origin(channel, origin);
    let mut request = Request::new(HelloRequest::default());
    if let Some(header) = header {
        let value = header.to_string().parse().unwrap();
        request.metadata_mut().insert("x-to", value);
    }
    let reply = client.say_hello(request).await?.into_inner();
    Ok(reply.version)
}

/// Calls until `version` answers.
async fn becomes(
    mesh: &Mesh,
    name: &str,
    (origin, header): (SocketAddr, Option<SocketAddr>),
    version: &str,
) {
    let mut last = None;
    let so = async {
        loop {
            let answer = call(mesh, name, origin, header).await;
            if answer.as_ref().is_ok_and(|answer| answer == version) {
                return;
            }
            last = Some(answer);
            tokio::task::yield_now().await;
        }
    };
    let became = timeout(MUST_HAPPEN, so).await;
    assert!(became.is_ok(), "{name}: {version}, not {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_name_their_address_where_the_configuration_says_so() {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    world.write("anywhere.yaml", ANYWHERE);
    let (v1, v2) = (world.greeter("v1").await, world.greeter("v2").await);
    world.write("endpoints.yaml", &endpoints(&[("v1", v1.address)]));
    let (v1, v2) = (v1.address, v2.address);
    let mesh = world.member("frontend").await;

    // resolution NONE: by the URI, never by a header.
    becomes(&mesh, "anywhere.default:8080", (v1, None), "v1").await;
    becomes(&mesh, "anywhere.default:8080", (v2, None), "v2").await;
    becomes(&mesh, "anywhere.default:8080", (v1, Some(v2)), "v1").await;
    // A service with endpoints: neither.
    becomes(&mesh, "greeter.default", (v2, Some(v2)), "v1").await;
    // A header has its say where it is named.
    world.write("policy.yaml", BY_HEADER);
    becomes(&mesh, "anywhere.default:8080", (v1, Some(v2)), "v2").await;
    becomes(&mesh, "anywhere.default:8080", (v1, None), "v1").await;
    // PASSTHROUGH takes the place of the endpoints, and goes with its rule.
    world.write("rule.yaml", PASSTHROUGH);
    becomes(&mesh, "greeter.default", (v2, None), "v2").await;
    world.write("rule.yaml", "");
    becomes(&mesh, "greeter.default", (v2, None), "v1").await;
    let metrics = world.control_plane.as_ref().unwrap().metrics();
    assert_eq!(metrics.nacks_total(), 0);
}
