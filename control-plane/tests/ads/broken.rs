//! Configuration that is broken, or says nothing.

use control_plane::cache::ResourceType;

use super::kit::{CLUSTER, HOUR, World, greeter, launch, ports, service, write};

#[tokio::test]
async fn a_restart_with_a_broken_file_serves_what_was_good() {
    let mut world = World::start().await;
    let before = world.sotw("gRPC Go").await;
    let before = { before }.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    world.kept(1).await;
    world.running.shutdown().await;
    write(world.dir.path(), "kind: ServiceEntry\nspec: [\n");
    world.running = launch(world.dir.path(), HOUR).await;
    let mut after = world.sotw("gRPC Go").await;
    let after = after.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(after.version_info, before.version_info);
    let told = world.get("/v1/diagnostics").await;
    assert!(
        told.contains("MESH0100") && told.contains("mesh.yaml"),
        "{told}"
    );
}

#[tokio::test]
async fn services_without_endpoints_or_without_ports_are_no_harm_to_others() {
    let world = World::start().await;
    let without_endpoints = "---
kind: ServiceEntry
metadata: {name: nobody}
spec:
  hosts: [nobody.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
";
    let without_ports = "---
kind: Service
metadata: {name: headless}
spec: {ports: []}
";
    world.write(&(greeter(5000) + without_endpoints + without_ports + &service("last", 6000)));
    let last = "outbound|8080||last.default.svc.cluster.local";
    let nobody = "outbound|8080||nobody.default.svc.cluster.local";
    for class in ["mesh-rs", "gRPC C-core", "envoy"] {
        let mut stream = world.sotw(class).await;
        let mut clusters = stream.fetch(ResourceType::Cluster, &[last, nobody]).await;
        while clusters.resources.len() < 2 {
            clusters = stream.next().await;
        }
        let endpoints = stream.fetch(ResourceType::Endpoints, &[last, nobody]).await;
        let found: Vec<_> = endpoints.resources.iter().map(ports).collect();
        assert_eq!(found, [vec![6000], vec![]], "{class}");
        let names = ["headless.default", "last.default", "nobody.default"];
        if class != "envoy" {
            let listeners = stream.fetch(ResourceType::Listener, &names).await;
            assert_eq!(
                listeners.resources.len(),
                2,
                "{class}: one has no port to lead to"
            );
            assert_eq!(listeners.resource_errors.len(), 1, "{class}");
        }
    }
}
