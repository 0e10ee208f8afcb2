//! What a server must bear: long requests, many streams, old connections, and clients who want to
//! know whether everybody has a change.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use control_plane::{
    ControlPlane, Running,
    cache::{ResourceType, input_version},
    server::{Limits, Progress},
    source::load_folder,
};
use envoy_types::pb::{
    envoy::service::discovery::v3::DiscoveryRequest, google::rpc::Status as RpcStatus,
};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;

use super::kit::{CLUSTER, MUST_HAPPEN, World, greeter};

/// tonic's limit on messages unless it is raised.
const USUAL_MESSAGE_MAX: usize = 4 << 20;
/// The control plane's.
const REQUEST_MAX: usize = 32 << 20;

async fn start(
    world: &World,
    change: impl FnOnce(control_plane::ControlPlaneBuilder) -> control_plane::ControlPlaneBuilder,
) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let folder = world.dir.path();
    let builder = ControlPlane::builder(folder.join("config"), folder.join("data"));
    change(builder.xds_listen(any).http_listen(any))
        .start()
        .await
        .unwrap()
}

fn names(count: usize, length: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:0>length$}")).collect()
}

#[tokio::test]
async fn a_request_that_names_ten_thousand_clusters_is_read_and_one_past_the_bound_is_refused() {
    let world = World::start().await;
    let mut request = DiscoveryRequest {
        type_url: ResourceType::Cluster.url(),
        resource_names: names(10_000, 450),
        ..DiscoveryRequest::default()
    };
    request.resource_names.push(CLUSTER.to_owned());
    assert!(request.encoded_len() > USUAL_MESSAGE_MAX);
    let mut stream = world.sotw("mesh-rs").await;
    stream.send(request.clone()).await;
    let answer = stream.next().await;
    assert_eq!(
        (answer.resources.len(), answer.resource_errors.len()),
        (1, 10_000)
    );

    request.resource_names = names(10_000, REQUEST_MAX / 10_000 + 1);
    assert!(request.encoded_len() > REQUEST_MAX);
    let mut stream = world.sotw("mesh-rs").await;
    stream.send(request).await;
    let end = tokio::time::timeout(MUST_HAPPEN, stream.responses.message())
        .await
        .unwrap();
    let refused = end.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let limit = format!("{REQUEST_MAX} bytes at most");
    assert!(refused.message().contains(&limit), "{refused}");
}

#[tokio::test]
async fn streams_past_the_limit_are_told_that_there_are_too_many() {
    let mut world = World::start().await;
    world.running = start(&world, |builder| {
        builder.limits(Limits {
            streams: 2,
            ..Limits::default()
        })
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = world.sotw("mesh-rs").await;
        stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
        open.push(stream);
    }
    let refused = world.try_sotw().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.metadata().get("grpc-retry-pushback-ms").is_some());
    let metrics = world.running.metrics().encode();
    assert!(
        metrics.contains("mesh_control_plane_streams_refused 1"),
        "{metrics}"
    );
    let mut streams = world.running.streams();
    drop(open);
    streams.wait_for(|count| *count == 0).await.unwrap();
    let mut stream = world.sotw("mesh-rs").await;
    stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
}

#[tokio::test]
async fn an_old_connection_ends_in_good_order() {
    let mut world = World::start().await;
    let age = Duration::from_millis(500);
    world.running = start(&world, |builder| builder.connection_age(age)).await;
    let mut stream = world.sotw("gRPC Go").await;
    stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    let end = tokio::time::timeout(MUST_HAPPEN, stream.responses.message()).await;
    assert!(end.expect("the end").expect("not an error").is_none());
}

/// The status code and the body of an answer.
fn parse(answer: &str) -> (u16, Value) {
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let (begin, end) = (
        body.find(['{', '[']).unwrap(),
        body.rfind(['}', ']']).unwrap(),
    );
    (code, serde_json::from_str(&body[begin..=end]).unwrap())
}

#[tokio::test]
async fn an_operator_waits_for_a_change_and_is_told_who_refuses_it() {
    let world = World::start().await;
    let config = world.dir.path().join("config");
    let kind = ResourceType::Endpoints;
    let mut good = world.sotw("gRPC Go").await;
    let mut bad = world.sotw("mesh-rs").await;
    for stream in [&mut good, &mut bad] {
        stream.fetch(kind, &[CLUSTER]).await;
    }
    let (code, first) = parse(&world.get("/v1/wait?timeout=10s").await);
    assert_eq!((code, &first["progress"]), (200, &"done".into()));

    world.write(&greeter(5001));
    let version = input_version(&load_folder(&config).unwrap().objects).to_string();
    assert_ne!(version, first["version"]);
    let path = format!("/v1/wait?version={version}&timeout=20s");
    let answers = async {
        let next = good.next().await;
        good.ask(kind, &[CLUSTER], &next.nonce).await;
        let next = bad.next().await;
        let refusal = DiscoveryRequest {
            type_url: kind.url(),
            resource_names: vec![CLUSTER.to_owned()],
            response_nonce: next.nonce,
            error_detail: Some(RpcStatus {
                message: "the weight is 0".to_owned(),
                ..RpcStatus::default()
            }),
            ..DiscoveryRequest::default()
        };
        bad.send(refusal).await;
    };
    let (answer, ()) = tokio::join!(world.get(&path), answers);
    let (code, answer) = parse(&answer);
    assert_eq!(
        (code, &answer["progress"]),
        (409, &"refused".into()),
        "{answer}"
    );
    assert_eq!(answer["version"], version);
    assert_eq!(answer["refusals"][0]["text"], "the weight is 0");
    assert_eq!(answer["refusals"][0]["class"], "rust");

    let path = "/v1/resources?object=ServiceEntry%20default/greeter&type=eds";
    let (_, shown) = parse(&world.get(path).await);
    assert_eq!(shown["all"], 1);
    let shown = &shown["resources"][0];
    assert_eq!((&shown["acked"], &shown["nacked"]), (&1.into(), &1.into()));
    let (_, nobody) = parse(&world.get("/v1/resources?object=Service%20a/b").await);
    assert_eq!(nobody["all"], 0);

    world.write(&greeter(5002));
    let waited = world.running.wait(None, Duration::from_millis(1)).await;
    assert_ne!(waited.progress, Progress::Unknown);
    let unknown = world
        .get("/v1/wait?version=0123456789abcdef&timeout=1ms")
        .await;
    assert_eq!(parse(&unknown).0, 404);
}

#[tokio::test]
async fn what_a_connected_class_cannot_honour_is_a_warning_on_the_object() {
    let world = World::start().await;
    let permissive = "---
kind: PeerAuthentication
metadata: {name: lax, namespace: default}
spec: {mtls: {mode: PERMISSIVE}}
";
    world.write(&(greeter(5000) + permissive));
    let mut rust = world.sotw("mesh-rs").await;
    let name = "mesh/inbound/127.0.0.1:5000";
    rust.fetch(ResourceType::Listener, &[name]).await;
    let codes = async || {
        let (_, found) = parse(&world.get("/v1/diagnostics").await);
        let found = found.as_array().unwrap().iter();
        let limits = found.filter(|found| found["code"] == "MESH0109");
        limits
            .map(|found| found["message"].to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(codes().await, [""; 0], "the library honours it");
    let mut go = world.sotw("gRPC Go").await;
    go.fetch(ResourceType::Listener, &[name]).await;
    let deadline = tokio::time::Instant::now() + MUST_HAPPEN;
    loop {
        let found = codes().await;
        if !found.is_empty() {
            assert_eq!(found, ["\"clients of grpc-go do not honour this\""]);
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no warning");
    }
}

#[tokio::test]
async fn many_endpoints_come_in_parts_that_clients_take() {
    let world = World::start().await;
    let kind = ResourceType::Endpoints;
    // Names of nobody are answered as well: what is large is the answer, not the configuration.
    let names = names(40_000, 100);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut sotw = world.sotw("gRPC Go").await;
    sotw.ask(kind, &names, "").await;
    let mut found = BTreeMap::new();
    while found.len() < names.len() {
        let part = sotw.next().await;
        assert!(
            part.encoded_len() < USUAL_MESSAGE_MAX,
            "{}",
            part.encoded_len()
        );
        for any in &part.resources {
            *found.entry(any.value.clone()).or_insert(0) += 1;
        }
    }
    assert!(found.values().all(|times| *times == 1), "nothing twice");
    let mut delta = world.delta("mesh-rs").await;
    delta.ask(kind, &names, &[]).await;
    let (mut parts, mut answered) = (0, 0);
    while answered < names.len() {
        let part = delta.take().await;
        assert!(
            part.encoded_len() < USUAL_MESSAGE_MAX,
            "{}",
            part.encoded_len()
        );
        answered += part.resources.len() + part.removed_resources.len();
        parts += 1;
    }
    assert!(parts > 1);
}

#[tokio::test]
async fn clusters_that_a_client_could_not_take_are_withheld_and_told_with_the_way_out() {
    let world = World::start().await;
    let kind = ResourceType::Cluster;
    let mut sotw = world.sotw("gRPC Go").await;
    let first = sotw.fetch(kind, &[CLUSTER]).await;
    assert_eq!(first.resources.len(), 1);
    // The word that a name means nothing takes room, too.
    let names = names(12_000, 100);
    let names: Vec<_> = names.iter().map(String::as_str).chain([CLUSTER]).collect();
    sotw.ask(kind, &names, &first.nonce).await;
    // What comes next is for the next question: the stream goes on.
    let endpoints = sotw.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(endpoints.resources.len(), 1);
    let told = world.get("/v1/diagnostics").await;
    assert!(told.contains("MESH0110"), "{told}");
    assert!(told.contains("fewer services"), "{told}");
    let waited = world.get("/v1/wait?timeout=10s").await;
    assert!(waited.starts_with("HTTP/1.1 409"), "{waited}");
    assert!(waited.contains("cds resources"), "{waited}");
    let mut delta = world.delta("mesh-rs").await;
    delta.ask(kind, &names, &[]).await;
    let mut answered = 0;
    while answered < names.len() {
        let part = delta.take().await;
        answered += part.resources.len() + part.removed_resources.len();
    }
}
