//! The whole mesh: control plane over real files, mTLS, authorisation, real sockets, and changes
//! and failures under load.

mod authorization_service;
mod destination;
mod issuer;
mod load;
mod orca;
mod outside;
mod passthrough;
mod port_level;
mod registry;
mod rotation;
mod secured;
#[path = "../interop/authz/signer.rs"]
mod signer;
mod sources;
mod strict;
mod tokens;
mod traces;
mod world;

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use load::Load;
use mesh_examples::greeter::HelloRequest;
use mesh_tower::{Body, telemetry::Telemetry};
use mesh_xds_client::StreamStatus;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;
use tower::ServiceExt;
use world::{MUST_HAPPEN, SECURITY, Server, World, endpoints, greeter_client, routes};

/// Two replicas of v1 and one of v2, split 90 : 10.
async fn split_world() -> (World, [Server; 3]) {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let servers = [
        world.greeter("v1").await,
        world.greeter("v1").await,
        world.greeter("v2").await,
    ];
    world.write("endpoints.yaml", &all_endpoints(&servers));
    world.write("routes.yaml", &routes(90, 10));
    world.is_read().await;
    (world, servers)
}

fn all_endpoints(servers: &[Server; 3]) -> String {
    let [a, b, c] = servers;
    endpoints(&[("v1", a.address), ("v1", b.address), ("v2", c.address)])
}

fn hello() -> HelloRequest {
    HelloRequest {
        name: "world".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_weights_takes_effect_without_a_failed_call() {
    let (world, _servers) = split_world().await;
    let frontend = world.member("frontend").await;
    let client = greeter_client(&frontend);
    let mut by_header = tonic::Request::new(hello());
    by_header
        .metadata_mut()
        .insert("canary", "true".parse().unwrap());
    let reply = client
        .clone()
        .say_hello(by_header)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (reply.version.as_str(), reply.message.as_str()),
        ("v2", "hello world")
    );
    assert_eq!(reply.peer, "spiffe://cluster.local/ns/default/sa/frontend");

    let load = Load::start(&client, 4);
    let seen = load.next(2_000).await;
    assert!((0.06..0.14).contains(&seen.share("v2")), "{seen:?}");

    world.write("routes.yaml", &routes(10, 90));
    let changed = async { while load.next(200).await.share("v2") <= 0.7 {} };
    timeout(MUST_HAPPEN, changed).await.expect("a new split");
    let seen = load.next(2_000).await;
    assert!((0.86..0.94).contains(&seen.share("v2")), "{seen:?}");
    assert_eq!(load.stop().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_and_restarted_costs_no_call() {
    let (world, [stays, leaves, _v2]) = split_world().await;
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 8);
    load.next(500).await;
    let address = leaves.kill().await;
    load.next(1_000).await;
    let back = world.greeter_at(address, "v1", Telemetry::disabled()).await;
    // With both down there would be nobody to answer.
    let is_back = async {
        while back.served.load(Relaxed) == 0 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, is_back)
        .await
        .expect("the restarted one is used again");
    let address = stays.kill().await;
    load.next(1_000).await;
    let _stays = world.greeter_at(address, "v1", Telemetry::disabled()).await;
    assert_eq!(load.stop().await, [""; 0]);
    drop(back);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_killed_and_restarted_costs_no_call() {
    let (mut world, _servers) = split_world().await;
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 4);
    load.next(500).await;
    let mut status = frontend.control_plane_status();
    world.stop_control_plane().await;
    let gone = status.wait_for(|status| !matches!(status, StreamStatus::Connected));
    timeout(MUST_HAPPEN, gone).await.expect("noticed").unwrap();
    load.next(1_000).await;

    world.write("routes.yaml", &routes(0, 100));
    world.start_control_plane().await;
    let connected = status.wait_for(|status| matches!(status, StreamStatus::Connected));
    timeout(MUST_HAPPEN, connected)
        .await
        .expect("reconnected")
        .unwrap();
    let changed = async { while load.next(200).await.share("v2") < 1.0 {} };
    timeout(MUST_HAPPEN, changed)
        .await
        .expect("the change made meanwhile");
    assert_eq!(load.stop().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_an_allowed_identity_is_refused_by_grpc_and_http() {
    let (world, _servers) = split_world().await;
    let stranger = world.member("stranger").await;
    let status = greeter_client(&stranger)
        .say_hello(hello())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    let request = Request::get("http://greeter.default:8080/anything")
        .body(Body::empty())
        .unwrap();
    let response = stranger.http_client().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    response.into_body().collect().await.unwrap();

    // A deny-all policy refuses everybody, on connections that are open.
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);
    client.say_hello(hello()).await.unwrap();
    let deny_all = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: frontend-only, namespace: default}
spec: {}
";
    let strict = SECURITY.split("---").next().unwrap();
    world.write("security.yaml", &format!("{strict}---{deny_all}"));
    let refused = async {
        loop {
            // Another server may not know yet.
            match client.say_hello(hello()).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => return status,
            }
        }
    };
    let status = timeout(MUST_HAPPEN, refused)
        .await
        .expect("deny-all denies");
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_to_a_strict_port_is_closed_without_a_byte() {
    let (world, servers) = split_world().await;
    // The first meshed call shows that the server has its configuration.
    let frontend = world.member("frontend").await;
    greeter_client(&frontend).say_hello(hello()).await.unwrap();
    for server in &servers {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: greeter\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let read = timeout(MUST_HAPPEN, stream.read_to_end(&mut answer))
            .await
            .expect("closed");
        assert!(read.is_err() || answer.is_empty(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_twenty_seconds_rotate_three_times_under_load_without_a_failed_call() {
    let world = World::start_with_ttl(Duration::from_secs(20)).await;
    world.write("security.yaml", SECURITY);
    let server = world.greeter("v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", server.address)]));
    world.is_read().await;
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 2);
    load.next(50).await;
    let identity = frontend.identity().unwrap();
    let rotations = async {
        let mut held = identity.certificate().unwrap();
        let mut rotations = 0;
        while rotations < 3 {
            load.next(20).await;
            let current = identity.certificate().unwrap();
            if current.not_after() != held.not_after() {
                // A new connection, with the new certificate, for the new client.
                greeter_client(&frontend).say_hello(hello()).await.unwrap();
                rotations += 1;
                held = current;
            }
        }
    };
    timeout(Duration::from_secs(90), rotations)
        .await
        .expect("three rotations");
    assert_eq!(load.stop().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_is_refused_with_its_place_and_the_mesh_goes_on() {
    let (world, _servers) = split_world().await;
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 2);
    load.next(100).await;
    world.write(
        "routes.yaml",
        &routes(90, 10).replace("weight: 90", "weight: ninety"),
    );
    let reported = async {
        loop {
            let diagnostics = get(world.http_addr(), "/v1/diagnostics").await;
            if diagnostics.contains("routes.yaml") {
                return diagnostics;
            }
            load.next(20).await;
        }
    };
    let diagnostics = timeout(MUST_HAPPEN, reported).await.expect("reported");
    assert!(
        diagnostics.contains("VirtualService default/greeter"),
        "{diagnostics}"
    );
    assert!(diagnostics.contains("weight"), "{diagnostics}");
    let seen = load.next(1_000).await;
    assert!(
        (0.05..0.15).contains(&seen.share("v2")),
        "the last good split stays: {seen:?}"
    );
    assert_eq!(load.stop().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_every_handle_closes_the_ads_stream() {
    let (world, servers) = split_world().await;
    let control_plane = world.control_plane.as_ref().unwrap();
    let mut streams = control_plane.streams();
    let at_least = |wanted: usize| move |open: &usize| *open >= wanted;
    timeout(MUST_HAPPEN, streams.wait_for(at_least(3)))
        .await
        .unwrap()
        .unwrap();
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);
    client.say_hello(hello()).await.unwrap();
    timeout(MUST_HAPPEN, streams.wait_for(|open| *open == 4))
        .await
        .unwrap()
        .unwrap();
    drop(frontend);
    client
        .say_hello(hello())
        .await
        .expect("a client keeps what it needs");
    drop(client);
    timeout(MUST_HAPPEN, streams.wait_for(|open| *open == 3))
        .await
        .expect("closed")
        .unwrap();
    drop(servers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_without_the_control_plane_routes_by_its_state_file() {
    let mut world = World::start().await;
    let server = world.greeter("v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", server.address)]));
    world.is_read().await;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let first = world.member_builder("frontend").state_file(&state);
    let first = first.build().await.unwrap();
    let mut client = greeter_client(&first);
    let answered = async {
        // The name is not known before the file with the endpoints was read.
        while client.say_hello(hello()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(MUST_HAPPEN, answered).await.expect("an answer");
    let mut streams = world.control_plane.as_ref().unwrap().streams();
    let both = timeout(MUST_HAPPEN, streams.wait_for(|open| *open == 2));
    both.await.expect("the server's and ours").unwrap();
    drop((client, first));
    // The state is written before the stream is closed.
    let one = timeout(MUST_HAPPEN, streams.wait_for(|open| *open == 1));
    one.await.expect("ours is closed").unwrap();
    assert!(state.exists());

    world.stop_control_plane().await;
    let second = world.member_builder("frontend").state_file(&state);
    let second = second.build().await.unwrap();
    let mut request = tonic::Request::new(hello());
    request.set_timeout(MUST_HAPPEN);
    let reply = greeter_client(&second).say_hello(request).await.unwrap();
    assert_eq!(reply.into_inner().version, "v1");
}

/// Static stability under mutual TLS, on both sides of a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_without_the_control_plane_call_over_mutual_tls() {
    let mut world = World::start_with(SECURITY, Duration::from_secs(3600)).await;
    let folder = tempfile::tempdir().unwrap();
    let stored = |account: &str| {
        let state = folder.path().join(format!("{account}.state"));
        let identity = folder.path().join(format!("{account}.identity"));
        (state, identity)
    };
    let member = |account: &'static str, world: &World| {
        let (state, identity) = stored(account);
        let member = world.member_builder(account).state_file(state);
        async move { member.identity_file(identity).build().await.unwrap() }
    };
    let answered = async |mesh: &mesh_tower::Mesh| {
        let mut client = greeter_client(mesh);
        let answer = async {
            loop {
                match client.say_hello(hello()).await {
                    Ok(reply) => return reply.into_inner(),
                    // The name is not known before the file with the endpoints was read.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(MUST_HAPPEN, answer).await.expect("an answer")
    };
    let frontend_id = "spiffe://cluster.local/ns/default/sa/frontend";

    let greeter = member("greeter", &world).await;
    let server = world.greeter_of(greeter, "v1").await;
    world.write("endpoints.yaml", &endpoints(&[("v1", server.address)]));
    world.is_read().await;
    let frontend = member("frontend", &world).await;
    assert_eq!(answered(&frontend).await.peer, frontend_id);

    // Both end, each with what it knew on disk, and then the control plane.
    let address = server.kill().await;
    drop(frontend);
    let streams = world.control_plane.as_ref().unwrap().streams();
    let mut streams = streams;
    timeout(MUST_HAPPEN, streams.wait_for(|open| *open == 0))
        .await
        .expect("both streams are closed")
        .unwrap();
    for account in ["greeter", "frontend"] {
        let (state, identity) = stored(account);
        assert!(state.exists() && identity.exists(), "{account}");
    }
    world.stop_control_plane().await;

    let greeter = member("greeter", &world).await;
    timeout(MUST_HAPPEN, greeter.ready())
        .await
        .unwrap()
        .unwrap();
    let server = world.greeter_of_at(greeter, address, "v2").await;
    let frontend = member("frontend", &world).await;
    let reply = answered(&frontend).await;
    assert_eq!((&*reply.peer, &*reply.version), (frontend_id, "v2"));

    // Without the file there is no identity, and nothing else is done in its place.
    let (state, _) = stored("frontend");
    let bare = world.member_builder("frontend").state_file(state);
    let bare = bare.build().await.unwrap();
    let mut request = tonic::Request::new(hello());
    request.set_timeout(Duration::from_millis(200));
    greeter_client(&bare).say_hello(request).await.unwrap_err();
    drop(server);
}

/// gRFC A78, on the page that Prometheus reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_to_the_control_plane_is_among_the_metrics_while_it_lives() {
    let world = World::start().await;
    let telemetry = Telemetry::disabled();
    let frontend = world.member_with("frontend", telemetry.clone()).await;
    // The driver tells of a resource after those who wait for it may go on.
    let told = async {
        for line in [
            "grpc_xds_client_connected{grpc_target=\"frontend~ns/default/sa/frontend\"",
            "grpc_xds_client_resource_updates_valid_total{",
            "grpc_xds_cache_state=\"acked\"} 1",
        ] {
            while !telemetry.metrics().encode().contains(line) {
                tokio::task::yield_now().await;
            }
        }
    };
    if timeout(MUST_HAPPEN, told).await.is_err() {
        panic!("a line is missing in\n{}", telemetry.metrics().encode());
    }
    drop(frontend);
    let ended = async {
        while telemetry.metrics().encode().contains("grpc_target") {
            tokio::task::yield_now().await;
        }
    };
    timeout(MUST_HAPPEN, ended).await.expect("they end with it");
}

#[tokio::test]
async fn an_identity_file_without_a_state_file_is_refused() {
    let world = World::start().await;
    let builder = world.member_builder("frontend").identity_file("identity");
    let error = builder.build().await.unwrap_err().to_string();
    assert!(error.contains("without state_file"), "{error}");
}

#[tokio::test]
async fn a_place_beyond_the_number_of_clients_is_refused() {
    let world = World::start().await;
    let position = mesh_core::config::ClientPosition { index: 3, count: 3 };
    let builder = world.member_builder("frontend").client_position(position);
    let error = builder.build().await.unwrap_err().to_string();
    assert!(error.contains("index 3 of 3 clients"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_client_works_in_a_spawned_task_and_deadlines_reach_the_server() {
    let (world, servers) = split_world().await;
    let frontend = world.member("frontend").await;
    let mut client = greeter_client(&frontend);
    let task = tokio::spawn(async move {
        let mut request = tonic::Request::new(hello());
        request.set_timeout(Duration::from_secs(5));
        client.say_hello(request).await
    });
    task.await.unwrap().unwrap();
    // A failed attempt is tried elsewhere, and the caller does not notice.
    for server in &servers {
        server.fail_next.store(1, Relaxed);
    }
    let mut client = greeter_client(&frontend);
    for _ in 0..20 {
        client.say_hello(hello()).await.unwrap();
    }
    let metrics = frontend.telemetry().metrics().encode();
    assert!(metrics.contains("mesh_client_retries_total"), "{metrics}");
}

/// A plain HTTP GET; the body.
async fn get(address: SocketAddr, path: &str) -> String {
    send(address, "GET", path, "").await
}

async fn send(address: SocketAddr, method: &str, path: &str, authorization: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         authorization: {authorization}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
