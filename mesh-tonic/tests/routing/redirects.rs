//! Redirects of servers that are followed for the caller.

use bytes::Bytes;
use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{CircuitBreakers, circuit_breakers::Thresholds},
        route::v3::{
            InternalRedirectPolicy, RouteAction, VirtualHost, route_action::InternalRedirectAction,
        },
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::{Body, BoxError, ErrorKind};

use super::{
    redirecting::{ANSWERS, Redirecting},
    resources::{TARGET, endpoint},
    scene::{Scene, Wire, forward, host, prefix},
    unruly::CASE,
};

/// Wires whose answers have codes of their own.
const WIRES: [Wire; 2] = [Wire::Http1, Wire::Http2];

fn following(action: &mut RouteAction) {
    action.internal_redirect_policy = Some(InternalRedirectPolicy::default());
}

/// From `/first`, which follows redirects, and from everywhere else.
fn two_routes(change: impl FnOnce(&mut RouteAction)) -> VirtualHost {
    let first = forward("one", |action| {
        following(action);
        change(action);
    });
    host(vec![
        prefix("/first", first),
        prefix("/", forward("two", |_| {})),
    ])
}

fn request(wire: Wire, case: &str, answers: &str) -> Request<Body> {
    let mut request = wire.request("/first");
    let headers = request.headers_mut();
    headers.insert(CASE, HeaderValue::from_str(case).unwrap());
    headers.insert(ANSWERS, HeaderValue::from_str(answers).unwrap());
    request
}

fn to_second() -> String {
    format!("302 http://{TARGET}/second")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirected_request_is_a_call_along_the_route_of_its_new_address() {
    for wire in WIRES {
        let (one, two) = (Redirecting::start().await, Redirecting::start().await);
        let scene = Scene::start(wire, two_routes(|_| {})).await;
        scene.serve_at("one", &[one.address]);
        scene.serve_at("two", &[two.address]);
        // The second server has not been asked before: its first answer is the same again.
        let reply = scene.send(request(wire, "c", &to_second())).await.unwrap();
        assert_eq!(
            reply.status,
            StatusCode::FOUND,
            "the second route hands it on"
        );
        assert_eq!(one.asked("c").len(), 1);
        let [asked] = &two.asked("c")[..] else {
            panic!("once")
        };
        let expected =
            format!("GET {TARGET}/second x-envoy-original-url=http://{TARGET}/first (0)");
        assert_eq!(*asked, expected, "{wire:?}");
        let scraped = scene.metrics().await;
        for cluster in ["one", "two"] {
            let line =
                format!("mesh_client_requests_total{{cluster=\"{cluster}\",code=\"3xx\"}} 1\n");
            assert!(scraped.contains(&line), "{line}{scraped}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_redirect_ends_with_the_timeout_of_the_first_route() {
    for wire in WIRES {
        let server = Redirecting::start().await;
        let routes = two_routes(|action| {
            action.timeout = Some(DurationProto {
                seconds: 0,
                nanos: 500_000_000,
            });
        });
        let scene = Scene::start(wire, routes).await;
        scene.serve_at("one", &[server.address]);
        scene.serve_at("two", &[server.address]);
        // It may be late before the redirect, too, on a machine that is too busy.
        let answers = format!("{};hang", to_second());
        let error = scene.send(request(wire, "c", &answers)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirected_request_takes_its_permit_after_the_first_has_given_it_back() {
    for wire in WIRES {
        let server = Redirecting::start().await;
        let all = forward("c", following);
        let scene = Scene::start(wire, host(vec![prefix("/", all)])).await;
        let address = server.address;
        let only = endpoint(&address.ip().to_string(), address.port());
        scene.serve_endpoints("c", vec![only], |cluster| {
            cluster.circuit_breakers = Some(CircuitBreakers {
                thresholds: vec![Thresholds {
                    max_requests: Some(UInt32Value { value: 1 }),
                    ..Thresholds::default()
                }],
                ..CircuitBreakers::default()
            });
        });
        for case in ["a", "b"] {
            let reply = scene.send(request(wire, case, &to_second())).await;
            assert_eq!(reply.unwrap().status, StatusCode::OK, "{wire:?}");
            assert_eq!(server.asked(case).len(), 2);
        }
    }
}

/// A body that streams: two buffers.
fn stream(bytes: usize) -> Body {
    let chunks = [bytes - 1, 1].map(|length| {
        let data = Bytes::from(vec![b'x'; length]);
        Ok::<_, BoxError>(Frame::data(data))
    });
    Body::new(StreamBody::new(futures_util::stream::iter(chunks)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed_with_the_whole_body_or_handed_on() {
    const KEPT: usize = 1_000;
    for wire in WIRES {
        let server = Redirecting::start().await;
        let scene = Scene::start_with(wire, two_routes(|_| {}), |mesh| {
            mesh.replay_bytes_max(KEPT as u32)
        });
        let scene = scene.await;
        scene.serve_at("one", &[server.address]);
        scene.serve_at("two", &[server.address]);
        for (length, status, requests) in
            [(KEPT, StatusCode::OK, 2), (KEPT + 1, StatusCode::FOUND, 1)]
        {
            let case = length.to_string();
            let (mut head, _) = request(wire, &case, &to_second()).into_parts();
            head.method = Method::POST;
            let sent = Request::from_parts(head, stream(length));
            let reply = scene.send(sent).await.unwrap();
            assert_eq!(reply.status, status, "{wire:?} {length}");
            let asked = server.asked(&case);
            assert_eq!(asked.len(), requests);
            let body = format!("({length})");
            assert!(
                asked.iter().all(|asked| asked.ends_with(&body)),
                "{asked:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(deprecated, reason = "what it says is done")]
async fn the_older_form_of_the_policy_follows_302_as_often_as_it_says() {
    let server = Redirecting::start().await;
    let all = forward("c", |action| {
        action.internal_redirect_action = InternalRedirectAction::HandleInternalRedirect as i32;
        action.max_internal_redirects = Some(UInt32Value { value: 2 });
    });
    let scene = Scene::start(Wire::Http2, host(vec![prefix("/", all)])).await;
    scene.serve_at("c", &[server.address]);
    let next = to_second();
    for (case, answers, status, requests) in [
        ("two", format!("{next};{next}"), 200, 3),
        ("three", format!("{next};{next};{next}"), 302, 3),
        ("moved", next.replace("302", "301"), 301, 1),
    ] {
        let reply = scene.send(request(Wire::Http2, case, &answers)).await;
        assert_eq!(reply.unwrap().status, status, "{case}");
        assert_eq!(server.asked(case).len(), requests, "{case}");
    }
}
