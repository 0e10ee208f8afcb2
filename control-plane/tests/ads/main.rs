//! Discovery over real sockets: what raw clients of both variants and every class get from a
//! control plane that reads real files.

mod broken;
mod checks;
mod depth;
mod kit;
#[allow(unreachable_pub, reason = "public where the examples share it")]
#[path = "../../../examples/src/ports.rs"]
mod ports;
mod registry;

use std::time::Duration;

use control_plane::{ca::create_token, cache::ResourceType};
use envoy_types::pb::{
    envoy::{
        config::{cluster::v3::Cluster, listener::v3::Listener, route::v3::RouteConfiguration},
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::DiscoveryRequest,
    },
    google::rpc::Status as RpcStatus,
};
use kit::{CLUSTER, HOUR, MUST_HAPPEN, World, decode, greeter, launch, leaf, ports, service};
use tokio::time::timeout;

#[tokio::test]
async fn a_grpc_client_gets_from_the_dialled_name_to_the_endpoints_and_their_change() {
    let world = World::start().await;
    let mut stream = world.sotw("gRPC C-core").await;
    let listeners = stream
        .fetch(ResourceType::Listener, &["greeter.default:8080"])
        .await;
    let listener: Listener = decode(&listeners.resources[0]);
    assert_eq!(listener.name, "greeter.default:8080");
    assert!(format!("{listener:?}").contains("HttpConnectionManager"));
    let routes = stream.fetch(ResourceType::Route, &[CLUSTER]).await;
    let routes: RouteConfiguration = decode(&routes.resources[0]);
    assert!(format!("{routes:?}").contains(CLUSTER), "{routes:?}");
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(decode::<Cluster>(&clusters.resources[0]).name, CLUSTER);
    let endpoints = stream.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(ports(&endpoints.resources[0]), [5000]);

    world.write(&greeter(5001));
    // Nothing but the endpoints changed.
    let endpoints = stream.next().await;
    assert_eq!(endpoints.type_url, ResourceType::Endpoints.url());
    assert_eq!(ports(&endpoints.resources[0]), [5001]);
}

#[tokio::test]
async fn a_refused_resource_is_shown_and_not_sent_again_until_it_changes() {
    let world = World::start().await;
    let mut stream = world.sotw("mesh-rs").await;
    let kind = ResourceType::Endpoints;
    stream.ask(kind, &[CLUSTER], "").await;
    let first = stream.next().await;
    stream
        .send(DiscoveryRequest {
            type_url: kind.url(),
            resource_names: vec![CLUSTER.to_owned()],
            response_nonce: first.nonce.clone(),
            error_detail: Some(RpcStatus {
                code: 3,
                message: "the weight is 0".into(),
                details: vec![],
            }),
            ..DiscoveryRequest::default()
        })
        .await;
    // What comes next is for the next question: the refused one is not sent again.
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    assert_eq!(clusters.resources.len(), 1);
    let shown = world.get("/v1/clients").await;
    assert!(shown.contains("the weight is 0"), "{shown}");
    assert!(shown.contains("test~ns/default/sa/frontend"), "{shown}");
    assert_eq!(world.running.metrics().nacks_total(), 1);

    world.write(&greeter(5001));
    let second = stream.next().await;
    assert_eq!(ports(&second.resources[0]), [5001]);
    assert_ne!(first.version_info, second.version_info);
}

#[tokio::test]
async fn names_that_do_not_exist_are_answered_and_sent_when_they_appear() {
    let world = World::start().await;
    let late = "outbound|8080||late.default.svc.cluster.local";
    let mut stream = world.sotw("gRPC Go").await;
    let clusters = stream.fetch(ResourceType::Cluster, &[CLUSTER, late]).await;
    assert_eq!(clusters.resources.len(), 1, "absent is deleted");
    assert_eq!(clusters.resource_errors.len(), 1);
    let endpoints = stream.fetch(ResourceType::Endpoints, &[late]).await;
    assert_eq!(
        ports(&endpoints.resources[0]),
        [0; 0],
        "explicitly none: calls fail at once"
    );
    let mut delta = world.delta("mesh-rs").await;
    delta.ask(ResourceType::Cluster, &[late], &[]).await;
    assert_eq!(delta.take().await.removed_resources, [late]);

    world.write(&(greeter(5000) + &service("late", 6000)));
    let clusters = stream.next().await;
    assert_eq!(clusters.type_url, ResourceType::Cluster.url());
    assert_eq!(clusters.resources.len(), 2);
    let endpoints = stream.next().await;
    assert_eq!(ports(&endpoints.resources[0]), [6000]);
    assert_eq!(delta.take().await.resources[0].name, late);
}

#[tokio::test]
async fn a_listener_that_appears_is_sent_to_who_asked_for_it_before() {
    let world = World::start().await;
    let kind = ResourceType::Listener;
    for accepts in [true, false] {
        let mut stream = world.sotw("mesh-rs").await;
        let name = if accepts {
            "late.default"
        } else {
            "later.default"
        };
        stream
            .ask(kind, &["mesh/inbound/127.0.0.1:5000", name], "")
            .await;
        let first = stream.next().await;
        assert_eq!((first.resources.len(), first.resource_errors.len()), (1, 1));
        if accepts {
            stream
                .ask(kind, &["mesh/inbound/127.0.0.1:5000", name], &first.nonce)
                .await;
        }
        let host = name.split('.').next().unwrap();
        world.write(&(greeter(5000) + &service(host, 6000)));
        let second = stream.next().await;
        assert_eq!(
            (second.resources.len(), second.resource_errors.len()),
            (2, 0)
        );
    }
}

#[tokio::test]
async fn envoy_gets_everything_by_wildcard_in_both_variants() {
    let world = World::start().await;
    let other = "outbound|8080||other.default.svc.cluster.local";
    let mut sotw = world.sotw("envoy").await;
    let clusters = sotw.fetch(ResourceType::Cluster, &[]).await;
    assert_eq!(decode::<Cluster>(&clusters.resources[0]).name, CLUSTER);
    let listeners = sotw.fetch(ResourceType::Listener, &[]).await;
    let listener: Listener = decode(&listeners.resources[0]);
    assert!(format!("{:?}", listener.address).contains("15123"));
    let routes = sotw.fetch(ResourceType::Route, &["outbound"]).await;
    assert_eq!(routes.resources.len(), 1);

    let mut delta = world.delta("envoy").await;
    for (kind, names) in [
        (ResourceType::Cluster, &[][..]),
        (ResourceType::Endpoints, &[CLUSTER]),
        (ResourceType::Route, &["outbound"]),
    ] {
        delta.ask(kind, names, &[]).await;
        assert_eq!(delta.take().await.resources.len(), 1, "{kind:?}");
    }
    world.write(&(greeter(5000) + &service("other", 6000)));
    let added = delta.take().await;
    assert_eq!(added.type_url, ResourceType::Cluster.url());
    let names: Vec<_> = added.resources.iter().map(|added| &added.name).collect();
    assert_eq!(names, [other], "only what is new");
    assert_eq!(delta.take().await.type_url, ResourceType::Route.url());
}

#[tokio::test]
async fn what_is_gone_is_taken_away_after_what_no_longer_refers_to_it() {
    let world = World::start().await;
    world.write(&(greeter(5000) + &service("other", 6000)));
    let other = "outbound|8080||other.default.svc.cluster.local";
    let mut delta = world.delta("envoy").await;
    delta.ask(ResourceType::Cluster, &["*", other], &[]).await;
    // The file may not have been read yet when the stream began.
    while !delta
        .take()
        .await
        .resources
        .iter()
        .any(|got| got.name == other)
    {}
    delta.ask(ResourceType::Endpoints, &[other], &[]).await;
    assert_eq!(delta.take().await.resources.len(), 1);
    delta.ask(ResourceType::Route, &["outbound"], &[]).await;
    assert_eq!(delta.take().await.resources.len(), 1);

    world.write(&greeter(5000));
    let routes = delta.take().await;
    assert_eq!(routes.type_url, ResourceType::Route.url());
    assert_eq!(routes.removed_resources, [""; 0]);
    let endpoints = delta.take().await;
    assert_eq!(endpoints.type_url, ResourceType::Endpoints.url());
    let clusters = delta.take().await;
    assert_eq!(clusters.removed_resources, [other]);
}

#[tokio::test]
async fn a_key_goes_only_to_the_holder_of_a_token_and_is_renewed() {
    let world = World::start_with_cert_ttl(Duration::from_secs(5)).await;
    let names = ["ROOTCA", "default"];
    for token in [None, Some("not a token")] {
        let mut anybody = world.sotw_as("envoy", token).await;
        let secrets = anybody.fetch(ResourceType::Secret, &names).await;
        assert_eq!(secrets.resources.len(), 1);
        assert_eq!(decode::<Secret>(&secrets.resources[0]).name, "ROOTCA");
        assert!(!String::from_utf8_lossy(&secrets.resources[0].value).contains("PRIVATE"));
    }

    let data = world.dir.path().join("data");
    let token = create_token(&data, "default", "frontend", Duration::from_secs(60)).unwrap();
    let mut frontend = world.sotw_as("envoy", Some(&token)).await;
    let secrets = frontend.fetch(ResourceType::Secret, &names).await;
    assert_eq!(secrets.resources.len(), 2);
    let leaf = leaf(&secrets);
    assert_eq!(leaf.0, ["spiffe://cluster.local/ns/default/sa/frontend"]);
    let renewed = frontend.next().await;
    assert_ne!(secrets.version_info, renewed.version_info);
    assert_eq!(renewed.resources.len(), 1, "the root did not change");
    assert_ne!(leaf.1, self::leaf(&renewed).1);
}

#[tokio::test]
async fn a_restart_gives_the_same_versions() {
    let mut world = World::start().await;
    let mut versions = Vec::new();
    for _ in 0..2 {
        let mut stream = world.sotw("envoy").await;
        let clusters = stream.fetch(ResourceType::Cluster, &[]).await;
        let secrets = stream.fetch(ResourceType::Secret, &["ROOTCA"]).await;
        versions.push((clusters.version_info, secrets.version_info));
        drop(stream);
        world.running.shutdown().await;
        world.running = launch(world.dir.path(), HOUR).await;
    }
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test]
async fn a_shutdown_ends_the_streams_in_good_order() {
    let world = World::start().await;
    let ready = world.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let mut stream = world.sotw("mesh-rs").await;
    stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    let World { dir, running } = world;
    let stopping = tokio::spawn(running.shutdown());
    let end = timeout(MUST_HAPPEN, stream.responses.message()).await;
    assert!(end.expect("the end").expect("not an error").is_none());
    drop(stream);
    timeout(MUST_HAPPEN, stopping)
        .await
        .expect("stopped")
        .unwrap();
    drop(dir);
}

#[tokio::test]
async fn a_server_listener_follows_the_policy_of_its_address() {
    let world = World::start().await;
    let name = "mesh/inbound/127.0.0.1:5000";
    let mut rust = world.sotw("mesh-rs").await;
    let listener = rust.fetch(ResourceType::Listener, &[name]).await;
    let listener: Listener = decode(&listener.resources[0]);
    assert_eq!(listener.name, name);
    assert_eq!(listener.filter_chains.len(), 2, "PERMISSIVE: both");
    let mut grpc = world.sotw("gRPC C-core").await;
    let listener = grpc.fetch(ResourceType::Listener, &[name]).await;
    let listener: Listener = decode(&listener.resources[0]);
    assert_eq!(
        listener.filter_chains.len(),
        1,
        "gRPC cannot tell them apart"
    );
    assert!(listener.filter_chains[0].filter_chain_match.is_none());

    let strict = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
";
    world.write(&(greeter(5000) + strict));
    for stream in [&mut rust, &mut grpc] {
        let listener = stream.next().await;
        assert_eq!(listener.type_url, ResourceType::Listener.url());
        let listener: Listener = decode(&listener.resources[0]);
        assert_eq!(listener.filter_chains.len(), 1);
        assert!(listener.filter_chains[0].transport_socket.is_some());
    }
}
