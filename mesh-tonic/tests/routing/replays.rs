//! How much of a body is kept to be sent again: as much as the client and the route say.

use bytes::Bytes;
use envoy_types::pb::{
    envoy::config::route::v3::{RetryPolicy, VirtualHost},
    google::protobuf::{UInt32Value, UInt64Value},
};
use http::HeaderValue;
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::{BoxError, REPLAY_BYTES_MAX};

use super::{
    scene::{Scene, Wire, forward, host, prefix},
    unruly::{CASE, Unruly},
};

/// What the client is told.
const OWN: usize = 1_000;

/// A body that streams: two buffers of `bytes` in all.
fn stream(bytes: usize) -> mesh_tower::Body {
    let chunks = [bytes - 1, 1].map(|length| {
        let data = Bytes::from(vec![b'x'; length]);
        Ok::<_, BoxError>(Frame::data(data))
    });
    mesh_tower::Body::new(StreamBody::new(futures_util::stream::iter(chunks)))
}

/// Whether a call whose first attempt fails is tried again with a body of `bytes`.
async fn is_repeated(scene: &Scene, server: &Unruly, bytes: usize) -> bool {
    let case = format!("{:?} {bytes}", scene.wire);
    let (mut head, _) = scene.wire.request("/503").into_parts();
    head.method = http::Method::POST;
    let name = HeaderValue::from_str(&case).unwrap();
    head.headers.insert(CASE, name);
    let reply = scene
        .send(http::Request::from_parts(head, stream(bytes)))
        .await;
    let attempts = server.attempts(&case);
    let is_good = reply.is_ok_and(|reply| reply.status == 200);
    assert_eq!(is_good, attempts == 2, "{case}: {attempts} attempts");
    is_good
}

fn retrying() -> VirtualHost {
    let action = forward("c", |action| {
        action.retry_policy = Some(RetryPolicy {
            retry_on: "5xx,unavailable".into(),
            ..RetryPolicy::default()
        });
    });
    host(vec![prefix("/", action)])
}

async fn check(wire: Wire, host: VirtualHost, limit: usize) {
    let server = Unruly::start().await;
    let scene = Scene::start_with(wire, host, |mesh| mesh.replay_bytes_max(OWN as u32)).await;
    scene.serve_at("c", &[server.address]);
    assert!(
        is_repeated(&scene, &server, limit).await,
        "{wire:?} {limit}"
    );
    assert!(
        !is_repeated(&scene, &server, limit + 1).await,
        "{wire:?} {limit}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_says_how_much_of_a_body_is_kept() {
    for wire in Wire::ALL {
        check(wire, retrying(), OWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_keeps_64_kib() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let scene = Scene::start(wire, retrying()).await;
        scene.serve_at("c", &[server.address]);
        assert!(is_repeated(&scene, &server, REPLAY_BYTES_MAX).await);
        assert!(!is_repeated(&scene, &server, REPLAY_BYTES_MAX + 1).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(deprecated, reason = "what it says is done")]
async fn routes_and_hosts_keep_less_or_as_much_as_they_say() {
    let less = |bytes| Some(UInt32Value { value: bytes });
    let exactly = |bytes| Some(UInt64Value { value: bytes });
    let mut of_host = retrying();
    of_host.per_request_buffer_limit_bytes = less(400);
    check(Wire::Http2, of_host.clone(), 400).await;
    // The old field cannot ask for more than the client gives.
    of_host.per_request_buffer_limit_bytes = less(5_000);
    check(Wire::Http1, of_host.clone(), OWN).await;
    // The route's wins.
    of_host.routes[0].request_body_buffer_limit = exactly(2_000);
    check(Wire::Http2, of_host.clone(), 2_000).await;
    of_host.routes[0].request_body_buffer_limit = None;
    of_host.routes[0].per_request_buffer_limit_bytes = less(300);
    check(Wire::Grpc, of_host, 300).await;
}
