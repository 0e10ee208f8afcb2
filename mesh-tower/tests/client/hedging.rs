//! Attempts side by side.

use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering::Relaxed},
};

use mesh_core::config::{Forward, Fraction, HedgeDelay, HedgePolicy, Percentile};
use mesh_tower::telemetry::Telemetry;

use super::*;
use crate::stub::Asked;

struct World {
    _config: HandMade,
    service: MeshService<Stub>,
    log: stub::Log,
    telemetry: Telemetry,
}

fn hedged(policy: HedgePolicy) -> impl FnOnce(&mut Forward) {
    move |forward| forward.extras.get_or_insert_default().hedge = Some(policy)
}

fn world(
    count: u16,
    route: impl FnOnce(&mut Forward),
    answer: impl Fn(Asked) -> Answer + Send + Sync + 'static,
) -> World {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(answer);
    let log = stub.log();
    let telemetry = Telemetry::disabled();
    let service = MeshService::with_telemetry("l", reader, stub, telemetry.clone());
    config.publish(
        &tree("l")
            .cluster("a", &addresses(count))
            .route_with("/", "a", route)
            .build(),
    );
    World {
        _config: config,
        service: service.report_endpoint(true),
        log,
        telemetry,
    }
}

impl World {
    fn metric(&self, name: &str) -> f64 {
        let text = self.telemetry.metrics().encode();
        let mut lines = text.lines().filter(|line| line.starts_with(name));
        let line = lines.next().unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Everything that is counted while it is under way.
    fn assert_at_rest(&self) {
        assert_eq!(self.metric("mesh_client_requests_in_flight"), 0.0);
    }
}

fn fixed(millis: u64) -> HedgePolicy {
    HedgePolicy {
        delay: Some(HedgeDelay::Fixed(Duration::from_millis(millis))),
        attempts_max: 2,
        ..HedgePolicy::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_attempt_gets_company_after_the_delay_and_the_first_good_head_wins() {
    let world = world(2, hedged(fixed(50)), |request| {
        let slow = request.endpoint.port() == 1;
        Answer::later(Duration::from_millis(if slow { 10_000 } else { 20 }), 200)
    });
    let mut hedged = 0.0;
    for _ in 0..6 {
        let before = world.log.ports().len();
        let started = Instant::now();
        let response = world.service.clone().oneshot(get("/")).await.unwrap();
        let selected = response.extensions().get::<SelectedEndpoint>().unwrap();
        assert_eq!(selected.address.port(), 2);
        let asked = world.log.ports()[before..].to_vec();
        let expected = match asked[..] {
            [2] => (20, 1),
            [1, 2] => (70, 2),
            _ => panic!("{asked:?}"),
        };
        let took = (started.elapsed().as_millis(), selected.attempts);
        assert_eq!(took, expected);
        hedged += f64::from(expected.1 - 1);
        response.into_body().collect().await.unwrap();
    }
    assert!(hedged > 0.0);
    assert_eq!(world.metric("mesh_client_hedges_total"), hedged);
    world.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_failed_head_does_not_win_while_another_attempt_is_under_way() {
    let world = world(2, hedged(fixed(50)), |request| {
        match request.endpoint.port() {
            1 => Answer::later(Duration::from_millis(300), 200),
            _ => Answer::later(Duration::from_millis(100), 503),
        }
    });
    for _ in 0..6 {
        let response = world.service.clone().oneshot(get("/")).await.unwrap();
        // If the failing one was first, it fails before the other one answers.
        assert_eq!(response.status(), StatusCode::OK);
    }
    world.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn when_all_attempts_fail_the_last_one_is_the_answer() {
    let world = world(2, hedged(fixed(50)), |request| {
        let first = request.endpoint.port() == 1;
        Answer::later(Duration::from_millis(if first { 300 } else { 500 }), 503)
    });
    let response = world.service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.log.ports().len(), 2);
    drop(response);
    world.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn initial_requests_begin_at_once_on_different_endpoints() {
    let policy = HedgePolicy {
        initial_requests: 2,
        additional_request_chance: Fraction::new(1, 1).unwrap(),
        ..HedgePolicy::default()
    };
    let world = world(3, hedged(policy), |_| {
        Answer::later(Duration::from_millis(10), 200)
    });
    let started = Instant::now();
    world.service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(started.elapsed().as_millis(), 10);
    let mut ports = world.log.ports();
    ports.sort();
    assert_eq!(ports, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_per_try_timeout_that_hedges_leaves_the_first_attempt_running() {
    let world = world(
        2,
        |forward| {
            forward.retry = Some(RetryPolicy {
                per_try_timeout: Some(Duration::from_millis(100)),
                ..retries("retriable-4xx", 1)
            });
            forward.extras.get_or_insert_default().hedge = Some(HedgePolicy {
                on_per_try_timeout: true,
                ..HedgePolicy::default()
            });
        },
        |_| Answer::later(Duration::from_millis(180), 200),
    );
    let started = Instant::now();
    let response = world.service.clone().oneshot(get("/")).await.unwrap();
    let selected = response.extensions().get::<SelectedEndpoint>().unwrap();
    // The second one began after 100 ms and its backoff: the first is done before it.
    assert_eq!(started.elapsed().as_millis(), 180);
    assert_eq!(selected.attempts, 2);
    assert_eq!(world.log.ports()[0], selected.address.port());
}

#[tokio::test(start_paused = true)]
async fn a_percentile_hedges_few_requests_and_cuts_the_tail() {
    const CALLS: u32 = 2_000;
    let policy = HedgePolicy {
        delay: Some(HedgeDelay::Percentile {
            percentile: Percentile::new(95.0).unwrap(),
            min: Duration::from_millis(1),
        }),
        attempts_max: 2,
        ..HedgePolicy::default()
    };
    let asked = AtomicI32::new(0);
    // One attempt in fifty takes a second instead of 10 ms.
    let world = world(3, hedged(policy), move |_| {
        let slow = asked.fetch_add(1, Relaxed) % 50 == 49;
        Answer::later(Duration::from_millis(if slow { 1_000 } else { 10 }), 200)
    });
    let mut slow = 0;
    for call in 0..CALLS {
        let started = Instant::now();
        world.service.clone().oneshot(get("/")).await.unwrap();
        // Nothing is known at first.
        slow += u32::from(call > 200 && started.elapsed() > Duration::from_millis(50));
    }
    assert!(slow <= CALLS / 1_000, "{slow} slow calls");
    let hedges = world.metric("mesh_client_hedges_total");
    assert!(hedges <= f64::from(CALLS) * 0.15, "{hedges} hedges");
}

#[tokio::test(start_paused = true)]
async fn hedges_stay_within_the_retry_budget() {
    const CALLS: u32 = 300;
    let world = world(3, hedged(fixed(10)), |_| {
        Answer::later(Duration::from_millis(500), 200)
    });
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        calls.spawn(world.service.clone().oneshot(get("/")));
    }
    while let Some(call) = calls.join_next().await {
        drop(call.unwrap().unwrap());
    }
    // A fifth, of which three at a time would be allowed anyway.
    let attempts = world.log.ports().len() as u32;
    assert_eq!(attempts, CALLS + CALLS / 5);
    let refused = world.metric("mesh_client_retries_over_budget_total");
    assert_eq!(refused, f64::from(CALLS - CALLS / 5));
    world.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_streaming_body_reaches_both_attempts_whole() {
    let world = world(2, hedged(fixed(10)), |request| {
        match request.endpoint.port() {
            // It reads the body and never answers.
            1 => Answer::Swallow(request.into_request()),
            _ => Answer::echo(request),
        }
    });
    for _ in 0..4 {
        let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::poll_fn(move |cx| {
            let data = fed.poll_recv(cx);
            data.map(|data| data.map(|data| Ok::<_, std::io::Error>(http_body::Frame::data(data))))
        });
        let request = Request::post("http://l/")
            .body(StreamBody::new(frames))
            .unwrap();
        let call = tokio::spawn(world.service.clone().oneshot(request));
        for part in ["one ", "two ", "three"] {
            feed.send(part.into()).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(feed);
        let response = call.await.unwrap().unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "one two three");
    }
    world.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn the_loser_is_cancelled_at_once() {
    let under_way = Arc::new(AtomicI32::new(0));
    let held = Arc::clone(&under_way);
    let world = world(2, hedged(fixed(10)), move |request| {
        match request.endpoint.port() {
            1 => Answer::Held(Held::new(&held)),
            _ => Answer::later(Duration::from_millis(30), 200),
        }
    });
    for _ in 0..4 {
        let response = world.service.clone().oneshot(get("/")).await.unwrap();
        assert_eq!(under_way.load(Relaxed), 0, "its exchange was dropped");
        drop(response);
    }
    world.assert_at_rest();
}

/// Counts while it lives.
pub(crate) struct Held(Arc<AtomicI32>);

impl Held {
    fn new(count: &Arc<AtomicI32>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
