//! Filters of a client's routes, over stub endpoints and paused time.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use mesh_core::{
    config::{
        Abort, AdaptiveConcurrency, ClusterExtras, Delay, Fault, FaultAbort, FaultDelay,
        FilterConfig, FilterOverrides, Forward, Fraction, HttpFilter, LocalRateLimit, TokenBucket,
        WeightedCluster,
    },
    snapshot::ConfigTree,
    testing::{HandMade, tree},
};
use mesh_tower::{ErrorKind, MeshService};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    addresses, get, grpc,
    stub::{Answer, Log, Stub},
};

fn all() -> Fraction {
    Fraction::new(1, 1).expect("not zero")
}

fn fault(delay: Option<u64>, abort: Option<Abort>) -> FilterConfig {
    FilterConfig::Fault(Arc::new(Fault {
        delay: delay.map(|seconds| FaultDelay {
            delay: Delay::Fixed(Duration::from_secs(seconds)),
            percentage: all(),
            denominator: 100,
        }),
        abort: abort.map(|abort| FaultAbort {
            abort,
            percentage: all(),
            denominator: 100,
        }),
        ..Fault::default()
    }))
}

fn tree_with(filter: FilterConfig, change: impl FnOnce(&mut Forward)) -> ConfigTree {
    let tree = tree("l").cluster("a", &addresses(1));
    let mut tree = tree.route_with("/", "a", change).build();
    tree.filters = [HttpFilter::new("f", filter)].into();
    tree
}

fn service(tree: &ConfigTree) -> (MeshService<Stub>, Log, HandMade) {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::status(200));
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(tree);
    (service, log, config)
}

#[tokio::test(start_paused = true)]
async fn an_abort_answers_without_asking_anybody() {
    for (abort, status, grpc_status) in [
        (Abort::Http(503), 503, "14"),
        (Abort::Http(404), 404, "12"),
        (Abort::Grpc(8), 200, "8"),
        (Abort::Grpc(0), 200, "0"),
    ] {
        let (service, log, _config) = service(&tree_with(fault(None, Some(abort)), |_| {}));
        service.ready().await.expect("a configuration");
        let response = service.clone().oneshot(get("/")).await.expect("answered");
        assert_eq!(response.status(), status);
        let body = response.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "fault filter abort");
        let response = service.oneshot(grpc("/")).await.expect("answered");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], grpc_status);
        assert_eq!(log.ports(), [0u16; 0], "{abort:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_comes_before_the_request_and_within_the_deadline() {
    let (delayed, log, _config) = service(&tree_with(fault(Some(5), None), |_| {}));
    let started = Instant::now();
    let response = delayed.oneshot(get("/")).await.expect("answered");
    assert_eq!(response.status(), 200);
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(log.ports(), [1]);

    let limited = tree_with(fault(Some(5), None), |forward| {
        forward.timeout = Some(Duration::from_secs(2));
    });
    let (delayed, log, _config) = service(&limited);
    let started = Instant::now();
    let error = delayed.oneshot(get("/")).await.expect_err("late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 2);
    assert_eq!(log.ports(), [0u16; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_server_is_told_what_a_delay_left_of_the_deadline() {
    let (service, log, _config) = service(&tree_with(fault(Some(5), None), |_| {}));
    let mut request = grpc("/");
    let timeout = "7S".parse().expect("a value");
    request.headers_mut().insert("grpc-timeout", timeout);
    service.oneshot(request).await.expect("answered");
    let told = log.headers()[0]["grpc-timeout"]
        .to_str()
        .expect("text")
        .to_owned();
    let (number, unit) = told.split_at(told.len() - 1);
    let scale = match unit {
        "u" => 1e-6,
        "m" => 1e-3,
        "n" => 1e-9,
        _ => 1.0,
    };
    let left = number.parse::<f64>().expect("a number") * scale;
    assert!(left <= 2.0 + 1e-3, "{told}");
}

#[tokio::test(start_paused = true)]
async fn bursts_never_get_more_through_than_the_bucket_gives() {
    const MAX: u32 = 7;
    const RATE: u32 = 3;
    let limit = LocalRateLimit::new(
        "l",
        TokenBucket {
            max_tokens: MAX,
            tokens_per_fill: RATE,
            fill_interval: Duration::from_secs(1),
        },
    );
    let filter = FilterConfig::LocalRateLimit(Arc::new(limit));
    let (service, _, _config) = service(&tree_with(filter, |_| {}));
    let started = Instant::now();
    let mut passed = 0;
    for round in 0..60u64 {
        for _ in 0..(round * 7 % 13) {
            let response = service.clone().oneshot(get("/")).await.expect("answered");
            match response.status().as_u16() {
                200 => passed += 1,
                status => assert_eq!(status, 429),
            }
        }
        let bound = f64::from(MAX) + f64::from(RATE) * started.elapsed().as_secs_f64();
        assert!(f64::from(passed) <= bound + 1e-3, "{passed} > {bound}");
        tokio::time::sleep(Duration::from_millis(round * 97 % 400)).await;
    }
    assert!(passed > MAX, "it is filled again");
}

#[tokio::test(start_paused = true)]
async fn a_weighted_clusters_override_hits_its_share_of_the_requests() {
    let mut canary = WeightedCluster::new("b", 30);
    canary.extras = Some(Box::new(ClusterExtras {
        filters: FilterOverrides::of("f", fault(None, Some(Abort::Http(418)))).boxed(),
        ..ClusterExtras::default()
    }));
    let tree = tree("l")
        .cluster("a", &addresses(1))
        .cluster("b", &addresses(2))
        .route_with("/", "a", |forward| {
            forward.clusters = vec![WeightedCluster::new("a", 70), canary];
        });
    let mut tree = tree.build();
    tree.filters = [HttpFilter::new("f", FilterConfig::Fault(Arc::default()))].into();
    let (service, log, _config) = service(&tree);
    let mut aborted = 0;
    for _ in 0..1000 {
        let response = service.clone().oneshot(get("/")).await.expect("answered");
        aborted += u32::from(response.status() == 418);
    }
    assert!((240..360).contains(&aborted), "{aborted}");
    assert!(
        log.ports().iter().all(|port| *port == 1),
        "nobody of the canary is asked"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_against_the_concurrency_limit_until_its_response_is_read() {
    let mut config = AdaptiveConcurrency::new(Duration::from_secs(1), Duration::from_secs(60));
    config.min_concurrency = 1;
    let filter = FilterConfig::AdaptiveConcurrency(Arc::new(config));
    let (mut hand, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::text(200, "body"));
    let service = MeshService::new("l", reader, stub);
    hand.publish(&tree_with(filter, |_| {}));
    let call = || service.clone().oneshot(get("/"));
    let first = call().await.expect("answered");
    assert_eq!(first.status(), 200);
    let second = call().await.expect("answered");
    assert_eq!(second.status(), 503);
    first.into_body().collect().await.expect("read");
    let third = call().await.expect("answered");
    assert_eq!(third.status(), 200);
    // Whoever goes away gives its place back.
    drop(third);
    assert_eq!(call().await.expect("answered").status(), 200);
}
