//! Whatever happens to calls, at the end nothing is held.

use std::sync::{Arc, Mutex};

use mesh_core::{
    config::{HedgeDelay, HedgePolicy, Mirror, MirrorTarget, RetryExtras},
    rng::{Rng, SplitMix64},
};
use mesh_tower::telemetry::Telemetry;

use super::*;

/// What an endpoint does next, at random.
fn answer(rng: &mut SplitMix64, asked: stub::Asked) -> Answer {
    let after = Duration::from_millis(rng.below(200));
    match rng.below(10) {
        0 => Answer::reset(),
        1 => Answer::unsent(asked),
        2 => Answer::later(after, 503),
        3 => Answer::later(after, 409),
        4 => Answer::stalled_body(),
        5 => Answer::Swallow(asked.into_request()),
        6 => Answer::echo(asked),
        7 => Answer::Ticks(after, 3),
        _ => Answer::later(after, 200),
    }
}

/// Routes by their features: each bit of the path's number is one.
fn route(number: u64, forward: &mut mesh_core::config::Forward) {
    let has = |bit: u32| number & 1 << bit != 0;
    if has(0) {
        let idle = Duration::from_millis(150);
        forward.retry = Some(RetryPolicy {
            per_try_timeout: has(3).then(|| Duration::from_millis(60)),
            extras: has(4).then(|| {
                Arc::new(RetryExtras {
                    per_try_idle_timeout: Some(idle),
                    ..RetryExtras::default()
                })
            }),
            ..retries("5xx,retriable-4xx,reset", 3)
        });
    }
    let extras = forward.extras.get_or_insert_default();
    if has(1) {
        extras.hedge = Some(HedgePolicy {
            delay: Some(HedgeDelay::Fixed(Duration::from_millis(30))),
            on_per_try_timeout: has(5),
            ..HedgePolicy::default()
        });
    }
    if has(2) {
        extras.mirrors = vec![Mirror {
            cluster: MirrorTarget::Cluster("b".into()),
            fraction: None,
            shadow_suffix: true,
            trace_sampled: None,
        }];
    }
    if has(4) {
        extras.idle_timeout = Some(Duration::from_millis(400));
    }
    if has(3) {
        forward.timeout = Some(Duration::from_millis(300));
    }
}

async fn run(seed: u64) {
    let mut rng = SplitMix64::new(seed);
    let answers = Mutex::new(SplitMix64::new(rng.next_u64()));
    let stub = Stub::answering(move |asked| answer(&mut answers.lock().unwrap(), asked));
    let (mut config, reader) = HandMade::new();
    let telemetry = Telemetry::disabled();
    let service = MeshService::with_telemetry("l", reader, stub, telemetry.clone());
    let mut world = tree("l")
        .cluster("a", &addresses(3))
        .cluster("b", &addresses(2));
    for number in 0..64 {
        world = world.route_with(&format!("/{number}/"), "a", |forward| {
            route(number, forward)
        });
    }
    config.publish(&world.build());

    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let path = format!("http://l/{}/", rng.below(64));
        let frames: Vec<_> = (0..rng.below(3))
            .map(|_| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"x"))))
            .collect();
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let call = service
            .clone()
            .oneshot(Request::post(path).body(body).unwrap());
        // Some callers go away, before the head or in the middle of the body.
        let patience = Duration::from_millis(rng.below(600));
        calls.spawn(async move {
            let whole = async { call.await?.into_body().collect().await };
            _ = tokio::time::timeout(patience, whole).await;
        });
        tokio::time::sleep(Duration::from_millis(rng.below(20))).await;
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    // Copies end by themselves.
    tokio::time::sleep(mesh_tower::MIRROR_TIMEOUT * 2).await;
    for cluster in ["a", "b"] {
        let held = service.in_flight(cluster).unwrap();
        assert_eq!(held, Default::default(), "seed {seed}, cluster {cluster}");
    }
    let text = telemetry.metrics().encode();
    let in_flight = |line: &&str| line.starts_with("mesh_client_requests_in_flight{");
    for line in text.lines().filter(in_flight) {
        assert!(line.ends_with(" 0"), "seed {seed}: {line}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_any_schedule_of_answers_and_cancellations_no_permit_is_held() {
    for seed in 0..40 {
        run(seed).await;
    }
}
