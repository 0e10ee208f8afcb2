//! What the client does with requests, over stub endpoints and paused time.

mod balance;
mod deadlines;
mod filters;
mod forward;
mod hedging;
mod idle;
mod mirrors;
mod permits;
mod reports;
mod retries;
mod stub;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use mesh_core::{
    config::{LbPolicy, RetryOn, RetryPolicy},
    snapshot::ListenerState,
    stats::Connectivity,
    testing::{HandMade, tree},
};
use mesh_tower::{Body, CONNECTING_WAIT_MAX, ErrorKind, MeshService, SelectedEndpoint};
use stub::{Answer, Stub};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

fn addresses(count: u16) -> Vec<SocketAddr> {
    (1..=count)
        .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
        .collect()
}

fn retries(retry_on: &str, num_retries: u32) -> RetryPolicy {
    RetryPolicy {
        retry_on: RetryOn::parse(retry_on).0,
        num_retries,
        ..RetryPolicy::default()
    }
}

fn get(path: &str) -> Request<Body> {
    Request::builder()
        .uri(format!("http://l{path}"))
        .body(Body::empty())
        .unwrap()
}

fn grpc(path: &str) -> Request<Body> {
    let mut request = get(path);
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_route_says_which_listener_and_path() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::status(200));
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(1))
            .route("/known", "a")
            .build(),
    );
    let error = service.oneshot(get("/other")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(error.to_string().contains("listener l") && error.to_string().contains("/other"));
}

#[tokio::test(start_paused = true)]
async fn the_first_request_waits_for_configuration_but_not_for_ever() {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, Stub::answering(|_| Answer::status(200)));
    let waiting = tokio::spawn(service.clone().oneshot(get("/")));
    tokio::task::yield_now().await;
    config.publish(
        &tree("l")
            .cluster("a", &addresses(1))
            .route("/", "a")
            .build(),
    );
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);

    let (_config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, Stub::answering(|_| Answer::status(200)));
    let error = service.oneshot(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoConfig);
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_to_another_endpoint_with_the_whole_body() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| {
        if request.endpoint.port() == 1 {
            Answer::reset()
        } else {
            Answer::echo(request)
        }
    });
    let log = stub.log();
    let service = MeshService::new("l", reader, stub).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", &addresses(2), |cluster| {
                // The policy with the most luck in it: only avoidance makes one retry enough.
                cluster.lb_policy = LbPolicy::Random;
            })
            .route_with("/", "a", |forward| {
                forward.retry = Some(retries("reset", 1))
            })
            .build(),
    );
    for _ in 0..30 {
        let chunks = [Bytes::from_static(b"hel"), Bytes::from_static(b"lo")];
        let chunks = chunks.map(|chunk| Ok::<_, std::io::Error>(http_body::Frame::data(chunk)));
        let body = StreamBody::new(futures_util::stream::iter(chunks));
        let request = Request::post("http://l/").body(body).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let selected = response
            .extensions()
            .get::<SelectedEndpoint>()
            .unwrap()
            .clone();
        assert_eq!(selected.address.port(), 2);
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "hello"
        );
    }
    let tried_first = log.ports().iter().filter(|port| **port == 1).count();
    assert!(
        tried_first >= 3,
        "some begin with the other one: {:?}",
        log.ports()
    );
}

#[tokio::test(start_paused = true)]
async fn retries_stop_at_their_number_and_pause_in_between() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::status(503));
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(3))
            .route_with("/", "a", |forward| forward.retry = Some(retries("5xx", 3)))
            .build(),
    );
    let started = Instant::now();
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(log.ports().len(), 4);
    // 25 + 50 + 100 ms, each ± 20 %.
    let waited = started.elapsed();
    assert!((140..=211).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_left_is_sent_elsewhere_without_a_policy() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| {
        if request.endpoint.port() == 1 {
            Answer::unsent(request)
        } else {
            Answer::echo(request)
        }
    });
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route("/", "a")
            .build(),
    );
    for _ in 0..10 {
        let request = Request::post("http://l/").body(Body::from("once")).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "once"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_failures_costs_at_most_the_budget() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::later(Duration::from_millis(50), 503));
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(3))
            .route_with("/", "a", |forward| forward.retry = Some(retries("5xx", 4)))
            .build(),
    );
    let calls: Vec<_> = (0..500)
        .map(|_| tokio::spawn(service.clone().oneshot(get("/"))))
        .collect();
    for call in calls {
        assert_eq!(
            call.await.unwrap().unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
    let attempts = log.ports().len();
    assert!(
        attempts <= 500 + 100 + 16,
        "{attempts} attempts for 500 calls"
    );
    assert!(attempts > 500, "the budget is used");
}

#[tokio::test(start_paused = true)]
async fn requests_past_the_limit_fail_at_once_and_permits_come_back_when_bodies_end() {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader.clone(), Stub::answering(Answer::echo));
    config.publish(
        &tree("l")
            .cluster_with("a", &addresses(1), |cluster| {
                cluster.circuit_breakers.max_requests = 2
            })
            .route("/", "a")
            .build(),
    );
    let post = || Request::post("http://l/").body(Body::from("x")).unwrap();
    let first = service.clone().oneshot(post()).await.unwrap();
    let second = service.clone().oneshot(post()).await.unwrap();
    let error = service.clone().oneshot(post()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CircuitOpen);
    // Load reports tell of it, without a category.
    let ListenerState::Ready(snapshot) = reader.load() else {
        panic!("it is published")
    };
    let dropped = snapshot.clusters[0].load.dropped();
    assert_eq!((dropped.total, dropped.by_category.len()), (1, 0));
    first.into_body().collect().await.unwrap();
    let third = service.clone().oneshot(post()).await.unwrap();
    drop((second, third));
    // A dropped response future gives its permit back too.
    let mut held = service.clone();
    drop(held.call(post()));
    for _ in 0..5 {
        service.clone().oneshot(post()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_route_timeout_covers_all_attempts_and_the_body() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| match request.uri.path() {
        "/head" => Answer::later(Duration::from_secs(60), 200),
        _ => Answer::stalled_body(),
    });
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route_with("/", "a", |forward| {
                forward.timeout = Some(Duration::from_secs(1));
                forward.retry = Some(retries("5xx,reset", 4));
            })
            .build(),
    );
    let started = Instant::now();
    let error = service.clone().oneshot(get("/head")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 1);

    let response = service.oneshot(get("/body")).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_per_try_timeout_moves_on_to_another_endpoint() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| {
        let slow = request.endpoint.port() == 1;
        Answer::later(Duration::from_millis(if slow { 10_000 } else { 1 }), 200)
    });
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route_with("/", "a", |forward| {
                let per_try_timeout = Some(Duration::from_millis(100));
                forward.retry = Some(RetryPolicy {
                    per_try_timeout,
                    ..retries("5xx", 1)
                });
            })
            .build(),
    );
    for _ in 0..6 {
        let started = Instant::now();
        let response = service.clone().oneshot(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(started.elapsed() < Duration::from_millis(200));
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_deadline_reaches_the_server_and_retries_say_so() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| {
        let trailers_only = |code| {
            let mut response = Response::new(Full::default());
            response
                .headers_mut()
                .insert("grpc-status", http::HeaderValue::from_static(code));
            response
        };
        let again = request.headers.contains_key("grpc-previous-rpc-attempts");
        Answer::Response(trailers_only(if again { "0" } else { "14" }))
    });
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route_with("/", "a", |forward| {
                forward.timeout = Some(Duration::from_secs(2));
                forward.retry = Some(retries("unavailable", 1));
            })
            .build(),
    );
    let mut request = grpc("/s/m");
    request
        .headers_mut()
        .insert("grpc-timeout", "30S".parse().unwrap());
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    let seen = log.headers();
    assert_eq!(seen.len(), 2);
    assert!(!seen[0].contains_key("grpc-previous-rpc-attempts"));
    assert_eq!(seen[1]["grpc-previous-rpc-attempts"], "1");
    for headers in seen {
        let timeout = mesh_tower::context::parse_grpc_timeout(&headers["grpc-timeout"]).unwrap();
        assert!(
            timeout <= Duration::from_secs(2),
            "the shorter limit wins: {timeout:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_cannot_be_reached_fail_at_once_and_connecting_ones_are_waited_for() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::connecting(Connectivity::TransientFailure);
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route("/", "a")
            .build(),
    );
    let started = Instant::now();
    let error = service.oneshot(get("/")).await.unwrap_err();
    assert_eq!(
        (error.kind(), started.elapsed().as_millis()),
        (ErrorKind::NoEndpoint, 0)
    );

    let (mut config, reader) = HandMade::new();
    let stub = Stub::connecting(Connectivity::Connecting);
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route("/", "a")
            .build(),
    );
    let started = Instant::now();
    let error = service.oneshot(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoint);
    assert_eq!(started.elapsed(), CONNECTING_WAIT_MAX);

    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, Stub::answering(|_| Answer::status(200)));
    config.publish(&tree("l").cluster("a", &[]).route("/", "a").build());
    let error = service.oneshot(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoint);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_endpoints_and_weights_takes_effect_without_a_failed_request() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::later(Duration::from_millis(5), 200));
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    let all = addresses(6);
    let world = |from: usize, to: &str| {
        tree("l")
            .cluster("a", &all[from..from + 2])
            .cluster("b", &all[4..])
            .route("/", to)
            .build()
    };
    config.publish(&world(0, "a"));
    let traffic = tokio::spawn({
        let service = service.clone();
        async move {
            for _ in 0..200 {
                let response = service.clone().oneshot(get("/")).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
            }
        }
    });
    for step in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        config.publish(&world(step % 3, if step % 2 == 0 { "b" } else { "a" }));
    }
    traffic.await.unwrap();
    config.publish(&world(2, "a"));
    tokio::task::yield_now().await;
    let before = log.ports().len();
    for _ in 0..10 {
        service.clone().oneshot(get("/")).await.unwrap();
    }
    let after = &log.ports()[before..];
    assert!(after.iter().all(|port| [3, 4].contains(port)), "{after:?}");
}

#[test]
fn services_are_send_sync_and_static() {
    fn check<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    check::<MeshService<mesh_tower::connect::HyperConnector>>();
    #[cfg(feature = "xds")]
    check::<mesh_tower::HttpClient>();
    #[cfg(feature = "xds")]
    check::<mesh_tower::Mesh>();
    fn check_error<T: std::error::Error + Send + Sync + 'static>() {}
    check_error::<mesh_tower::Error>();
}
