//! Copies of requests.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use mesh_core::config::{Fraction, Mirror, MirrorTarget};
use mesh_tower::{MIRRORS_IN_FLIGHT_MAX, telemetry::Telemetry};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};

use super::*;
use crate::stub::Asked;

/// The port of the one endpoint that gets copies.
const SHADOW: u16 = 9;

struct World {
    _config: HandMade,
    service: MeshService<Stub>,
    log: stub::Log,
    telemetry: Telemetry,
}

fn mirror(cluster: &str) -> Mirror {
    Mirror {
        cluster: MirrorTarget::Cluster(cluster.into()),
        fraction: None,
        shadow_suffix: true,
        trace_sampled: None,
    }
}

fn world(mirrors: Vec<Mirror>, answer: impl Fn(Asked) -> Answer + Send + Sync + 'static) -> World {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(answer);
    let log = stub.log();
    let telemetry = Telemetry::disabled();
    let service = MeshService::with_telemetry("l", reader, stub, telemetry.clone());
    config.publish(
        &tree("l")
            .cluster("a", &addresses(1))
            .cluster("shadow", &[SocketAddr::from(([10, 0, 0, 1], SHADOW))])
            .route_with("/", "a", |forward| {
                forward.extras.get_or_insert_default().mirrors = mirrors;
            })
            .build(),
    );
    World {
        _config: config,
        service,
        log,
        telemetry,
    }
}

impl World {
    fn metric(&self, name: &str) -> f64 {
        let name = format!("{name}{{cluster=\"shadow\"}}");
        let text = self.telemetry.metrics().encode();
        let mut lines = text.lines().filter(|line| line.starts_with(&name));
        let line = lines.next().unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits in simulated time.
    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{what} did not come to pass");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_sent_with_another_host_and_its_failure_is_nobodys_business() {
    let world = world(vec![mirror("shadow")], |request| {
        match request.endpoint.port() {
            SHADOW => Answer::reset(),
            _ => Answer::status(200),
        }
    });
    let response = world.service.clone().oneshot(get("/x?y=1")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    world
        .until("the copy", || world.log.ports().len() == 2)
        .await;
    let mut uris = world.log.uris();
    uris.sort();
    assert_eq!(uris, ["http://l-shadow/x?y=1", "http://l/x?y=1"]);
    world
        .until("it is counted", || {
            world.metric("mesh_client_mirrors_dropped_total") == 1.0
        })
        .await;
    assert_eq!(world.metric("mesh_client_requests_in_flight"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_hangs_holds_nothing_up_and_more_than_its_budget_are_dropped() {
    const CALLS: u32 = MIRRORS_IN_FLIGHT_MAX + 20;
    let world = world(vec![mirror("shadow")], |request| {
        match request.endpoint.port() {
            SHADOW => Answer::later(Duration::from_secs(3_600), 200),
            _ => Answer::later(Duration::from_millis(1), 200),
        }
    });
    let started = Instant::now();
    for _ in 0..CALLS {
        world.service.clone().oneshot(get("/")).await.unwrap();
    }
    assert_eq!(started.elapsed().as_millis(), u128::from(CALLS));
    let sent = f64::from(MIRRORS_IN_FLIGHT_MAX);
    assert_eq!(world.metric("mesh_client_mirrors_total"), sent);
    assert_eq!(world.metric("mesh_client_mirrors_dropped_total"), 20.0);
    // They are given up in the end, and their permits come back.
    world
        .until("all are given up", || {
            world.metric("mesh_client_mirrors_dropped_total") == f64::from(CALLS)
        })
        .await;
    assert_eq!(
        started.elapsed().as_secs(),
        mesh_tower::MIRROR_TIMEOUT.as_secs()
    );
    world.service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(world.metric("mesh_client_mirrors_total"), sent + 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_copy_gets_the_body_as_it_streams() {
    let copied = Arc::new(Mutex::new(Bytes::new()));
    let kept = Arc::clone(&copied);
    let world = world(vec![mirror("shadow")], move |request| {
        match request.endpoint.port() {
            SHADOW => Answer::Keep(request.into_request(), Arc::clone(&kept)),
            _ => Answer::echo(request),
        }
    });
    for parts in [&[][..], &["x"], &["one ", "two ", "three"]] {
        let frames = parts.iter().map(|part| {
            let data = Bytes::from_static(part.as_bytes());
            Ok::<_, std::io::Error>(http_body::Frame::data(data))
        });
        let frames: Vec<_> = frames.collect();
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let request = Request::post("http://l/").body(body).unwrap();
        let response = world.service.clone().oneshot(request).await.unwrap();
        let whole = parts.concat();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, whole);
        world
            .until("the copy is whole", || *copied.lock().unwrap() == whole)
            .await;
    }
    assert_eq!(world.metric("mesh_client_mirrors_dropped_total"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn only_its_share_is_copied_and_a_cluster_that_is_not_there_gets_none() {
    let mut half = mirror("shadow");
    half.fraction = Fraction::new(1, 2);
    half.shadow_suffix = false;
    let header = Mirror {
        cluster: MirrorTarget::Header(http::HeaderName::from_static("x-copy-to")),
        ..mirror("")
    };
    let world = world(vec![half, mirror("gone"), header], |_| Answer::status(200));
    for _ in 0..1_000 {
        world.service.clone().oneshot(get("/")).await.unwrap();
        tokio::task::yield_now().await;
    }
    let copies = world.metric("mesh_client_mirrors_total");
    assert!((400.0..=600.0).contains(&copies), "{copies}");
    let mut request = get("/");
    let shadow = http::HeaderValue::from_static("shadow");
    request.headers_mut().insert("x-copy-to", shadow);
    let before = world.metric("mesh_client_mirrors_total");
    world.service.clone().oneshot(request).await.unwrap();
    assert!(world.metric("mesh_client_mirrors_total") >= before + 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_takes_an_unfinished_copy_along() {
    let broke_off = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broke_off);
    let world = world(vec![mirror("shadow")], move |request| {
        match request.endpoint.port() {
            SHADOW => Answer::Report(request.into_request(), Arc::clone(&seen)),
            _ => Answer::Swallow(request.into_request()),
        }
    });
    let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        let data = fed.poll_recv(cx);
        data.map(|data| data.map(|data| Ok::<_, std::io::Error>(http_body::Frame::data(data))))
    });
    let request = Request::post("http://l/")
        .body(StreamBody::new(frames))
        .unwrap();
    feed.send("half".into()).unwrap();
    let call = tokio::spawn(world.service.clone().oneshot(request));
    world
        .until("the copy", || world.log.ports().len() == 2)
        .await;
    call.abort();
    world
        .until("it breaks off", || broke_off.load(Relaxed))
        .await;
}

/// Counts what is exported.
#[derive(Clone, Debug, Default)]
struct Exported(Arc<Mutex<usize>>);

impl SpanExporter for Exported {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        *self.0.lock().unwrap() += batch.len();
        std::future::ready(Ok(()))
    }
}

/// Whether the call is recorded, what the mirror says of its copy, and whether that is recorded.
const SAMPLED: [(bool, Option<bool>, bool); 6] = [
    (true, None, true),
    (true, Some(true), true),
    (true, Some(false), false),
    (false, None, false),
    (false, Some(true), true),
    (false, Some(false), false),
];

#[tokio::test(start_paused = true)]
async fn a_copy_is_recorded_as_its_policy_says_and_otherwise_as_its_call_is() {
    for (recorded, trace_sampled, expected) in SAMPLED {
        let (mut config, reader) = HandMade::new();
        let stub = Stub::answering(|_| Answer::status(200));
        let log = stub.log();
        let spans = Exported::default();
        let telemetry = Telemetry::builder().sampler_ratio(if recorded { 1.0 } else { 0.0 });
        let telemetry = telemetry.exporter(spans.clone()).build();
        let telemetry = telemetry.expect("telemetry");
        let service = MeshService::with_telemetry("l", reader, stub, telemetry.clone());
        let mirrors = vec![Mirror {
            trace_sampled,
            ..mirror("shadow")
        }];
        let tree = tree("l")
            .cluster("a", &addresses(1))
            .cluster("shadow", &[SocketAddr::from(([10, 0, 0, 1], SHADOW))]);
        let tree = tree.route_with("/", "a", |forward| {
            forward.extras.get_or_insert_default().mirrors = mirrors;
        });
        config.publish(&tree.build());
        service.oneshot(get("/")).await.unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let sent = log.headers();
        let sent = sent.iter().map(|headers| {
            let parent = headers["traceparent"].to_str().unwrap();
            let (trace, flags) = (&parent[3..35], &parent[53..]);
            (trace.to_owned(), flags == "01")
        });
        let sent: Vec<_> = sent.collect();
        let case = format!("{recorded} {trace_sampled:?} {sent:?}");
        assert_eq!(sent.len(), 2, "{case}");
        assert_eq!(sent[0].0, sent[1].0, "one trace: {case}");
        let is_recorded = sent.iter().filter(|(_, sampled)| *sampled).count();
        let of_call = usize::from(recorded);
        assert_eq!(is_recorded, of_call + usize::from(expected), "{case}");
        // A call and a copy have a span each, and one for their attempt.
        telemetry.flush().await;
        assert_eq!(*spans.0.lock().unwrap(), 2 * is_recorded, "{case}");
    }
}
