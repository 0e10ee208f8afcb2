//! How long a call may take, over real sockets.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{
        core::v3::HttpProtocolOptions,
        route::v3::{RouteAction, route_action::MaxStreamDuration},
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_tower::{Error, ErrorKind};

use super::{
    resources::listener_changed,
    scene::{Reply, Scene, Wire, forward, host, prefix},
    unruly::Unruly,
};

const SHORT: DurationProto = DurationProto {
    seconds: 0,
    nanos: 100_000_000,
};
const ZERO: DurationProto = DurationProto {
    seconds: 0,
    nanos: 0,
};

async fn scene(wire: Wire, server: &Unruly, change: impl FnOnce(&mut RouteAction)) -> Scene {
    let scene = Scene::start(wire, host(vec![prefix("/", forward("c", change))])).await;
    scene.serve_at("c", &[server.address]);
    scene
}

#[track_caller]
fn failed(reply: Result<Reply, Error>, kind: ErrorKind, wire: Wire) {
    assert_eq!(reply.unwrap_err().kind(), kind, "{wire:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_says_how_long_its_calls_may_take() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let limited = scene(wire, &server, |action| action.timeout = Some(SHORT)).await;
        let late = limited.try_with("/hangs", &[]).await;
        failed(late, ErrorKind::DeadlineExceeded, wire);
        let limited = scene(wire, &server, |action| {
            action.max_stream_duration = Some(MaxStreamDuration {
                max_stream_duration: Some(SHORT),
                ..MaxStreamDuration::default()
            });
        });
        let late = limited
            .await
            .try_with("/hangs", &[("x-case", "stream")])
            .await;
        failed(late, ErrorKind::DeadlineExceeded, wire);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_data_ends_where_route_or_listener_say_so() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let limited = scene(wire, &server, |action| action.idle_timeout = Some(SHORT)).await;
        let idle = limited.try_with("/hangs", &[("x-case", "route")]).await;
        failed(idle, ErrorKind::IdleTimeout, wire);

        let limited = scene(wire, &server, |_| {}).await;
        limited.plane.set([listener_changed(|manager| {
            manager.stream_idle_timeout = Some(SHORT);
        })]);
        let idle = limited.try_with("/hangs", &[("x-case", "listener")]).await;
        failed(idle, ErrorKind::IdleTimeout, wire);

        // A route that says zero has no limit, whatever its listener says.
        let unlimited = scene(wire, &server, |action| action.idle_timeout = Some(ZERO)).await;
        unlimited.plane.set([listener_changed(|manager| {
            manager.stream_idle_timeout = Some(SHORT);
        })]);
        let hangs = unlimited.try_with("/hangs", &[("x-case", "zero")]);
        let patience = Duration::from_millis(500);
        let hangs = tokio::time::timeout(patience, hangs).await;
        assert!(hangs.is_err(), "{wire:?} {hangs:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listeners_longest_stream_holds_for_routes_that_say_none() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let limited = scene(wire, &server, |_| {}).await;
        limited.plane.set([listener_changed(|manager| {
            manager.common_http_protocol_options = Some(HttpProtocolOptions {
                max_stream_duration: Some(SHORT),
                ..HttpProtocolOptions::default()
            });
        })]);
        let late = limited.try_with("/hangs", &[]).await;
        failed(late, ErrorKind::DeadlineExceeded, wire);
    }
}
