//! Limits of streams without data.

use mesh_core::config::RetryExtras;

use super::*;
use crate::stub::Asked;

const LIMIT: Duration = Duration::from_secs(5);

fn world(
    retry: Option<RetryPolicy>,
    idle: Option<Duration>,
    answer: impl Fn(Asked) -> Answer + Send + Sync + 'static,
) -> (HandMade, MeshService<Stub>, stub::Log) {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(answer);
    let log = stub.log();
    let service = MeshService::new("l", reader, stub);
    config.publish(
        &tree("l")
            .cluster("a", &addresses(2))
            .route_with("/", "a", |forward| {
                forward.retry = retry;
                if idle.is_some() {
                    forward.extras.get_or_insert_default().idle_timeout = idle;
                }
            })
            .build(),
    );
    (config, service, log)
}

/// A body that a test feeds.
fn fed() -> (
    tokio::sync::mpsc::UnboundedSender<Bytes>,
    impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send,
) {
    let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        let data = fed.poll_recv(cx);
        data.map(|data| data.map(|data| Ok(http_body::Frame::data(data))))
    });
    (feed, StreamBody::new(frames))
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_data_ends_before_and_after_its_head() {
    let (_config, service, _) = world(None, Some(LIMIT), |request| match request.uri.path() {
        "/head" => Answer::later(Duration::from_secs(600), 200),
        _ => Answer::stalled_body(),
    });
    let started = Instant::now();
    let error = service.clone().oneshot(get("/head")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdleTimeout);
    assert_eq!(started.elapsed(), LIMIT);

    let started = Instant::now();
    let response = service.oneshot(get("/body")).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdleTimeout);
    assert_eq!(started.elapsed(), LIMIT);
}

#[tokio::test(start_paused = true)]
async fn both_directions_count() {
    let (_config, service, _) = world(None, Some(LIMIT), |request| match request.uri.path() {
        "/up" => Answer::Swallow(request.into_request()),
        _ => Answer::Ticks(Duration::from_secs(4), 5),
    });
    // The request streams for 20 s, never silent for more than 4: only then does it count.
    let (feed, body) = fed();
    let request = Request::post("http://l/up").body(body).unwrap();
    let started = Instant::now();
    let call = tokio::spawn(service.clone().oneshot(request));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        feed.send("x".into()).unwrap();
    }
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdleTimeout);
    assert_eq!(started.elapsed(), Duration::from_secs(20) + LIMIT);

    // So does the response.
    let response = service.oneshot(get("/down")).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_no_limit() {
    let (_config, service, _) = world(None, Some(Duration::ZERO), |_| {
        Answer::later(Duration::from_secs(100_000), 200)
    });
    assert_eq!(service.oneshot(get("/")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_data_moves_on_to_another_endpoint() {
    let extras = RetryExtras {
        per_try_idle_timeout: Some(LIMIT),
        ..RetryExtras::default()
    };
    let policy = RetryPolicy {
        extras: Some(extras.into()),
        ..retries("reset", 1)
    };
    let (_config, service, log) = world(Some(policy), None, |request| {
        match request.endpoint.port() {
            1 => Answer::later(Duration::from_secs(600), 200),
            _ => Answer::stalled_body(),
        }
    });
    let started = Instant::now();
    let mut response = None;
    while log.ports().len() < 2 {
        response = Some(service.clone().oneshot(get("/")).await.unwrap());
    }
    assert!(started.elapsed() >= LIMIT && started.elapsed() < LIMIT * 2);
    // It covers the body of the attempt that answered.
    let error = response.unwrap().into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdleTimeout);
}
