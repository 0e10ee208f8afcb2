//! What callers ask for in headers, over every wire; beside Envoy in the target `interop`.

use std::sync::atomic::Ordering::SeqCst;

use envoy_types::pb::{
    envoy::{
        config::route::v3::route_action::RequestMirrorPolicy,
        extensions::filters::http::router::v3::Router,
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_tower::{ErrorKind, MeshBuilder};

use super::{
    echo::Echo,
    scene::{Scene, Wire, forward, host, prefix},
    unruly::{CASE, Unruly},
};

fn reading(builder: MeshBuilder) -> MeshBuilder {
    builder.read_caller_headers(true)
}

async fn scene(wire: Wire, server: &Unruly, configure: fn(MeshBuilder) -> MeshBuilder) -> Scene {
    let limited = forward("c", |action| {
        action.timeout = Some(DurationProto {
            seconds: 20,
            nanos: 0,
        });
    });
    let scene = Scene::start_with(wire, host(vec![prefix("/", limited)]), configure).await;
    scene.serve_at("c", &[server.address]);
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_choose_retries_and_timeouts_where_that_is_switched_on() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let scene = scene(wire, &server, reading).await;
        let again: &[_] = match wire {
            Wire::Grpc => &[(CASE, "again"), ("x-envoy-retry-grpc-on", "unavailable")],
            _ => &[(CASE, "again"), ("x-envoy-retry-on", "5xx")],
        };
        let reply = scene.get_with("/503", again).await;
        assert_eq!(reply.status, 200, "{wire:?}");
        let told = server.told("again");
        assert_eq!(told.len(), 2, "{wire:?}");
        assert_eq!(told[0], "x-envoy-expected-rq-timeout-ms=20000", "{wire:?}");
        let hurried = [(CASE, "late"), ("x-envoy-upstream-rq-timeout-ms", "200")];
        let late = scene.try_with("/hangs", &hurried).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{wire:?}");
        let empty = [
            (CASE, "empty"),
            ("x-envoy-upstream-rq-timeout-ms", "200"),
            ("x-envoy-upstream-rq-timeout-alt-response", "1"),
        ];
        let empty = scene.get_with("/hangs", &empty).await;
        match wire {
            // As gRPC maps 204.
            Wire::Grpc => assert_eq!(empty.grpc(), Some("2")),
            _ => assert_eq!((empty.status.as_u16(), empty.body.len()), (204, 0)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_headers_are_as_any_other_unless_that_is_switched_on() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let scene = scene(wire, &server, |builder| builder).await;
        let headers = [
            (CASE, "call"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-retry-grpc-on", "unavailable"),
        ];
        _ = scene.try_with("/503", &headers).await;
        let passed_on = ["x-envoy-retry-grpc-on=unavailable x-envoy-retry-on=5xx"];
        assert_eq!(server.told("call"), passed_on, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_adds_no_headers_tells_no_server_how_long_it_is_waited_for() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let scene = scene(wire, &server, reading).await;
        scene.listen(&Router {
            suppress_envoy_headers: true,
            ..Router::default()
        });
        let headers = [(CASE, "call"), ("x-envoy-upstream-rq-timeout-ms", "15000")];
        scene.get_with("/good", &headers).await;
        assert_eq!(server.told("call"), [""], "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirrored_request_is_tried_again_as_its_caller_asks() {
    for wire in Wire::ALL {
        let (server, shadow) = (Echo::start("server").await, Echo::start("shadow").await);
        let mirrored = forward("c", |action| {
            action.request_mirror_policies = vec![RequestMirrorPolicy {
                cluster: "shadow".into(),
                ..RequestMirrorPolicy::default()
            }];
        });
        let scene = Scene::start_with(wire, host(vec![prefix("/", mirrored)]), reading).await;
        scene.serve("c", &[&server]);
        scene.serve("shadow", &[&shadow]);
        server.fail_next.store(1, SeqCst);
        let headers = [
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-max-retries", "1"),
        ];
        let reply = scene.get_with("/", &headers).await;
        assert_eq!(server.served.load(SeqCst), 2, "{wire:?}");
        let seen = reply.seen();
        for (name, _) in headers {
            assert!(seen.header(name).is_empty(), "{wire:?} {name}");
        }
    }
}
