//! What the retry policy asks for beyond another attempt.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, RateLimitedBackoff, ResetHeader, RetryExtras,
};
use mesh_tower::DispatchErrorKind;

use super::*;
use crate::stub::Asked;

/// A service whose first answer to each call is `first`, and whose others are 200.
fn failing_first(
    policy: RetryPolicy,
    first: impl Fn(Asked) -> Answer + Send + Sync + 'static,
) -> (HandMade, MeshService<Stub>, stub::Log) {
    let (mut config, reader) = HandMade::new();
    let asked = AtomicU32::new(0);
    let stub = Stub::answering(move |request| match asked.fetch_add(1, Relaxed) {
        0 => first(request),
        _ => Answer::status(200),
    });
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route_with("/", "a", |forward| forward.retry = Some(policy))
            .build(),
    );
    (config, service, log)
}

fn with_header(status: u16, name: &'static str, value: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let value = http::HeaderValue::from_static(value);
    response.headers_mut().insert(name, value);
    Answer::Response(response)
}

fn extras(extras: RetryExtras, policy: RetryPolicy) -> RetryPolicy {
    RetryPolicy {
        extras: Some(Arc::new(extras)),
        ..policy
    }
}

/// Whether one call, whose first attempt ends so, makes a second one.
async fn is_retried(
    policy: RetryPolicy,
    request: Request<Body>,
    first: impl Fn(Asked) -> Answer + Send + Sync + 'static,
) -> bool {
    let (_config, service, log) = failing_first(policy, first);
    _ = service.oneshot(request).await;
    log.ports().len() == 2
}

#[tokio::test(start_paused = true)]
async fn what_is_no_failure_of_the_endpoint_is_tried_again_all_the_same() {
    let conflict = |_| Answer::status(409);
    assert!(is_retried(retries("retriable-4xx", 1), get("/"), conflict).await);
    assert!(!is_retried(retries("5xx", 1), get("/"), conflict).await);
    for (token, status) in [("cancelled", "1"), ("resource-exhausted", "8")] {
        let trailers_only = move |_| with_header(200, "grpc-status", status);
        assert!(is_retried(retries(token, 1), grpc("/s/m"), trailers_only).await);
        assert!(!is_retried(retries("unavailable", 1), grpc("/s/m"), trailers_only).await);
    }
    let again = RetryExtras {
        retriable_headers: vec![HeaderMatcher::new(
            "x-again",
            HeaderPredicate::Present(true),
        )],
        ..RetryExtras::default()
    };
    let policy = extras(again, retries("retriable-headers", 1));
    assert!(
        is_retried(policy.clone(), get("/"), |_| with_header(
            200, "x-again", "1"
        ))
        .await
    );
    assert!(!is_retried(policy, get("/"), |_| Answer::status(503)).await);
    let limited = |_| with_header(429, "x-envoy-ratelimited", "true");
    assert!(is_retried(retries("envoy-ratelimited", 1), get("/"), limited).await);
    assert!(!is_retried(retries("5xx,retriable-4xx", 1), get("/"), limited).await);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_the_headers_that_are_asked_for_is_sent_once() {
    let asked = RetryExtras {
        retriable_request_headers: vec![HeaderMatcher::new(
            "x-idempotent",
            HeaderPredicate::Present(true),
        )],
        ..RetryExtras::default()
    };
    let policy = extras(asked, retries("5xx", 1));
    assert!(!is_retried(policy.clone(), get("/"), |_| Answer::status(503)).await);
    let mut request = get("/");
    let value = http::HeaderValue::from_static("1");
    request.headers_mut().insert("x-idempotent", value);
    assert!(is_retried(policy, request, |_| Answer::status(503)).await);
}

#[tokio::test(start_paused = true)]
async fn a_server_says_when_to_come_back() {
    let limit = RetryExtras {
        rate_limited: Some(RateLimitedBackoff {
            reset_headers: vec![ResetHeader {
                name: http::HeaderName::from_static("retry-after"),
                is_unix_time: false,
            }],
            max_interval: Duration::from_secs(300),
        }),
        ..RetryExtras::default()
    };
    let policy = extras(limit, retries("5xx", 1));
    let (_config, service, _) = failing_first(policy, |_| with_header(503, "retry-after", "7"));
    let started = Instant::now();
    service.oneshot(get("/")).await.unwrap();
    let waited = started.elapsed().as_millis();
    assert!((7_000..=10_501).contains(&waited), "{waited}");

    let pushback = |ms| {
        move |_| {
            let mut response = Response::new(Full::default());
            let headers = response.headers_mut();
            headers.insert("grpc-status", http::HeaderValue::from_static("14"));
            headers.insert("grpc-retry-pushback-ms", http::HeaderValue::from_static(ms));
            Answer::Response(response)
        }
    };
    let policy = retries("unavailable", 1);
    let (_config, service, _) = failing_first(policy.clone(), pushback("1234"));
    let started = Instant::now();
    service.oneshot(grpc("/s/m")).await.unwrap();
    assert_eq!(started.elapsed().as_millis(), 1234);
    assert!(!is_retried(policy, grpc("/s/m"), pushback("-1")).await);
}

#[tokio::test(start_paused = true)]
async fn a_streaming_request_that_its_server_refused_is_sent_elsewhere_whole() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|request| match request.endpoint.port() {
        1 => Answer::Failed(mesh_tower::DispatchError::new(
            DispatchErrorKind::Refused,
            "REFUSED_STREAM",
        )),
        _ => Answer::echo(request),
    });
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            // A policy that does not name the condition: nobody has looked at the request.
            .route_with("/", "a", |forward| {
                forward.retry = Some(retries("retriable-4xx", 1))
            })
            .build(),
    );
    for _ in 0..10 {
        let chunks = [Bytes::from_static(b"hel"), Bytes::from_static(b"lo")];
        let chunks = chunks.map(|chunk| Ok::<_, std::io::Error>(http_body::Frame::data(chunk)));
        let body = StreamBody::new(futures_util::stream::iter(chunks));
        let request = Request::post("http://l/").body(body).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "hello");
    }
}

#[tokio::test(start_paused = true)]
async fn at_full_failure_attempts_stay_within_the_budget_for_minutes() {
    const CALLS: u32 = 6_000;
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::later(Duration::from_millis(20), 503));
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster_with("a", &addresses(3), |cluster| {
                cluster.circuit_breakers.retry_budget.min_retry_concurrency = 0;
            })
            .route_with("/", "a", |forward| forward.retry = Some(retries("5xx", 4)))
            .build(),
    );
    let mut calls = tokio::task::JoinSet::new();
    // One in 10 ms for a minute.
    for _ in 0..CALLS {
        calls.spawn(service.clone().oneshot(get("/")));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().unwrap().status(), 503);
    }
    let attempts = log.ports().len() as u32;
    assert!(
        attempts <= CALLS + CALLS / 5,
        "{attempts} for {CALLS} calls"
    );
    assert!(
        attempts >= CALLS + CALLS / 6,
        "the budget is used: {attempts}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_cluster_left_the_routes_is_tried_again_where_it_began() {
    let (mut config, reader) = HandMade::new();
    let asked = AtomicU32::new(0);
    let stub = Stub::answering(move |_| match asked.fetch_add(1, Relaxed) {
        0 => Answer::later(Duration::from_millis(20), 503),
        _ => Answer::status(200),
    });
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    let routes = |cluster: &str| {
        let forward = |forward: &mut mesh_core::config::Forward| {
            forward.retry = Some(retries("5xx", 1));
        };
        let clusters = tree("l").cluster("a", &addresses(1));
        let clusters = match cluster {
            "a" => clusters,
            other => tree("l").cluster(other, &addresses(2)),
        };
        clusters.route_with("/", cluster, forward).build()
    };
    config.publish(&routes("a"));
    let call = tokio::spawn(service.clone().oneshot(get("/")));
    while log.ports().is_empty() {
        tokio::task::yield_now().await;
    }
    config.publish(&routes("b"));
    let response = call.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(log.ports(), [1, 1]);
}
