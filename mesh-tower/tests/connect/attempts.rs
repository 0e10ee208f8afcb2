//! Bodies of all sizes through retries, hedges and mirrors, over all protocols.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::StreamBody;
use mesh_core::config::{Forward, HedgeDelay, HedgePolicy, Mirror, MirrorTarget};
use mesh_tower::telemetry::Telemetry;
use tokio::sync::watch;

use super::*;
use crate::backend::{Backend, digest, failure, is_grpc, ok};

/// Generous: the machine may be busy.
const MUST_HAPPEN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    Grpc,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Http1, Protocol::Http2, Protocol::Grpc];

const SIZES: [usize; 4] = [0, 1, 64 << 10, 10 << 20];

/// Bytes of a streamed body's frames.
const FRAME: usize = 16 << 10;

fn content(size: usize) -> Bytes {
    // A length that no frame is a multiple of.
    let pattern: Vec<u8> = (0..4_093).map(|i| (i / 7 + i / 251) as u8).collect();
    let mut content = pattern.repeat(size / pattern.len() + 1);
    content.truncate(size);
    content.into()
}

fn request(protocol: Protocol, content: &Bytes, streams: bool) -> Request<Body> {
    let body = match streams {
        false => Body::from(content.clone()),
        true => {
            let mut rest = content.clone();
            let frames = std::iter::from_fn(move || {
                let next = rest.split_to(rest.len().min(FRAME));
                (!next.is_empty()).then(|| Ok::<_, std::io::Error>(http_body::Frame::data(next)))
            });
            Body::new(StreamBody::new(futures_util::stream::iter(frames)))
        }
    };
    let mut request = Request::post("http://l.test/s/m").body(body).unwrap();
    if protocol == Protocol::Grpc {
        let grpc = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert("content-type", grpc);
    }
    request
}

struct World {
    _config: HandMade,
    service: Client,
    telemetry: Telemetry,
}

fn world(
    protocol: Protocol,
    clusters: &[(&str, &[SocketAddr])],
    route: impl FnOnce(&mut Forward),
) -> World {
    let (mut config, reader) = HandMade::new();
    let telemetry = Telemetry::disabled();
    let connector = HyperConnector::new(None);
    let service = MeshService::with_telemetry("l.test", reader, connector, telemetry.clone());
    let mut world = tree("l.test");
    for (name, addresses) in clusters {
        world = world.cluster_with(name, addresses, |cluster| {
            cluster.http_version = match protocol {
                Protocol::Http1 => HttpVersion::Http1,
                Protocol::Http2 | Protocol::Grpc => HttpVersion::Http2,
            };
        });
    }
    config.publish(&world.route_with("/", "a", route).build());
    World {
        _config: config,
        service,
        telemetry,
    }
}

impl World {
    fn metric(&self, name: &str) -> f64 {
        let text = self.telemetry.metrics().encode();
        let values = text.lines().filter(|line| line.starts_with(name));
        values
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    async fn at_rest(&self, clusters: &[&str]) {
        until("nothing is held", || {
            clusters
                .iter()
                .all(|name| self.service.in_flight(name) == Some(Default::default()))
        })
        .await;
    }
}

/// Looks again and again: what it waits for happens in another task.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let happens = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let happened = tokio::time::timeout(MUST_HAPPEN, happens).await;
    assert!(happened.is_ok(), "{what} did not come to pass");
}

/// The answer's text; `None` when it is a failure.
async fn call(service: &Client, request: Request<Body>) -> Option<String> {
    let response = tokio::time::timeout(MUST_HAPPEN, service.clone().oneshot(request));
    let response = response.await.expect("an answer").unwrap();
    let headers = response.headers();
    if response.status() != 200 || headers.get("grpc-status").is_some_and(|s| s != "0") {
        return None;
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Some(String::from_utf8(body.to_vec()).unwrap())
}

async fn echoing() -> Backend {
    Backend::start(|request| async {
        let grpc = is_grpc(&request);
        ok(grpc, digest(request.into_body()).await.unwrap())
    })
    .await
}

#[tokio::test]
async fn a_retry_sends_the_whole_body_again() {
    for protocol in PROTOCOLS {
        let bad = Backend::start(|request| async {
            let grpc = is_grpc(&request);
            digest(request.into_body()).await.unwrap();
            failure(grpc)
        })
        .await;
        let good = echoing().await;
        let world = world(
            protocol,
            &[("a", &[bad.address, good.address])],
            |forward| {
                forward.retry = Some(RetryPolicy {
                    retry_on: RetryOn::parse("5xx,unavailable").0,
                    ..RetryPolicy::default()
                });
            },
        );
        for size in SIZES {
            let content = content(size);
            let expected = digest(http_body_util::Full::new(content.clone()))
                .await
                .unwrap();
            for streams in [false, true] {
                let before = world.metric("mesh_client_retries_total");
                // In turn: one of two begins with the bad one.
                for _ in 0..2 {
                    let answer = call(&world.service, request(protocol, &content, streams)).await;
                    // What is too long to be kept is sent once.
                    let is_kept = !streams || size <= mesh_tower::REPLAY_BYTES_MAX;
                    if answer.is_some() || is_kept {
                        let case = format!("{protocol:?} {size} {streams}");
                        assert_eq!(answer.as_ref(), Some(&expected), "{case}");
                    }
                }
                let retries = world.metric("mesh_client_retries_total") - before;
                let is_kept = !streams || size <= mesh_tower::REPLAY_BYTES_MAX;
                assert!(retries <= 2.0 && (retries > 0.0 || !is_kept), "{retries}");
            }
        }
        world.at_rest(&["a"]).await;
    }
}

#[tokio::test]
async fn a_hedge_sends_the_whole_body_and_the_loser_is_reset() {
    for protocol in PROTOCOLS {
        let (cancelled, mut seen) = watch::channel(0);
        let cancelled = Arc::new(cancelled);
        // Reads, and never answers.
        let hung = Backend::start(move |request| {
            let cancelled = Cancelled(Arc::clone(&cancelled));
            async move {
                _ = digest(request.into_body()).await;
                let _cancelled = cancelled;
                std::future::pending().await
            }
        })
        .await;
        let good = echoing().await;
        let world = world(
            protocol,
            &[("a", &[hung.address, good.address])],
            |forward| {
                forward.extras.get_or_insert_default().hedge = Some(HedgePolicy {
                    delay: Some(HedgeDelay::Fixed(Duration::from_millis(50))),
                    attempts_max: 2,
                    ..HedgePolicy::default()
                });
            },
        );
        for (size, streams) in SIZES
            .into_iter()
            .flat_map(|size| [(size, false), (size, true)])
            // That is too long to be kept for another attempt.
            .filter(|case| *case != (10 << 20, true))
        {
            let content = content(size);
            let expected = digest(http_body_util::Full::new(content.clone()))
                .await
                .unwrap();
            for _ in 0..2 {
                let answer = call(&world.service, request(protocol, &content, streams)).await;
                assert_eq!(
                    answer.as_ref(),
                    Some(&expected),
                    "{protocol:?} {size} {streams}"
                );
            }
        }
        assert!(world.metric("mesh_client_hedges_total") > 0.0);
        world.at_rest(&["a"]).await;
        let reset = seen.wait_for(|count| *count > 0);
        tokio::time::timeout(MUST_HAPPEN, reset)
            .await
            .expect("a reset")
            .unwrap();
    }
}

/// Counts when it is dropped: its request was given up.
struct Cancelled(Arc<watch::Sender<usize>>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count += 1);
    }
}

#[tokio::test]
async fn a_mirror_gets_the_body_as_it_is_sent() {
    for protocol in PROTOCOLS {
        let copies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&copies);
        let shadow = Backend::start(move |request| {
            let kept = Arc::clone(&kept);
            async move {
                let grpc = is_grpc(&request);
                let host = match request.uri().host() {
                    Some(host) => host.to_owned(),
                    None => request.headers()["host"].to_str().unwrap().to_owned(),
                };
                assert_eq!(host, "l.test-shadow");
                if let Ok(copy) = digest(request.into_body()).await {
                    kept.lock().unwrap().push(copy);
                }
                failure(grpc)
            }
        })
        .await;
        let good = echoing().await;
        let world = world(
            protocol,
            &[("a", &[good.address]), ("shadow", &[shadow.address])],
            |forward| {
                forward.extras.get_or_insert_default().mirrors = vec![Mirror {
                    cluster: MirrorTarget::Cluster("shadow".into()),
                    fraction: None,
                    shadow_suffix: true,
                    trace_sampled: None,
                }];
            },
        );
        for size in SIZES {
            let content = content(size);
            let expected = digest(http_body_util::Full::new(content.clone()))
                .await
                .unwrap();
            for streams in [false, true] {
                let case = format!("{protocol:?} {size} {streams}");
                let dropped = world.metric("mesh_client_mirrors_dropped_total");
                copies.lock().unwrap().clear();
                let answer = call(&world.service, request(protocol, &content, streams)).await;
                assert_eq!(answer.as_ref(), Some(&expected), "{case}");
                until(&case, || {
                    let is_whole = copies.lock().unwrap().contains(&expected);
                    let lags = world.metric("mesh_client_mirrors_dropped_total") > dropped;
                    // One that lags too far behind is given up, if there is that much.
                    is_whole || lags && streams && size > mesh_tower::MIRROR_LAG_BYTES_MAX
                })
                .await;
            }
        }
        world.at_rest(&["a", "shadow"]).await;
    }
}

#[tokio::test]
async fn both_directions_stream_through_a_retry_policy_a_hedge_and_a_mirror() {
    let echo = || {
        Backend::start(|request| async {
            let frames = request.into_body().map_err(|_| unreachable!());
            let mut response = http::Response::new(frames.boxed());
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert("content-type", grpc);
            response
        })
    };
    let (one, two, shadow) = (echo().await, echo().await, echo().await);
    let clusters: [(&str, &[SocketAddr]); 2] = [
        ("a", &[one.address, two.address]),
        ("shadow", &[shadow.address]),
    ];
    let world = world(Protocol::Grpc, &clusters, |forward| {
        forward.retry = Some(RetryPolicy {
            retry_on: RetryOn::UNAVAILABLE,
            ..RetryPolicy::default()
        });
        let extras = forward.extras.get_or_insert_default();
        extras.idle_timeout = Some(MUST_HAPPEN);
        extras.hedge = Some(HedgePolicy {
            delay: Some(HedgeDelay::Fixed(Duration::from_millis(1))),
            ..HedgePolicy::default()
        });
        extras.mirrors = vec![Mirror {
            cluster: MirrorTarget::Cluster("shadow".into()),
            fraction: None,
            shadow_suffix: false,
            trace_sampled: None,
        }];
    });
    let (feed, mut fed) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        let data = fed.poll_recv(cx);
        data.map(|data| data.map(|data| Ok::<_, std::io::Error>(http_body::Frame::data(data))))
    });
    let mut request = Request::post("http://l.test/s/m")
        .body(StreamBody::new(frames))
        .unwrap();
    let grpc = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert("content-type", grpc);
    let response = world.service.clone().oneshot(request).await.unwrap();
    let mut body = response.into_body();
    let mut bytes = 0;
    // Each frame is sent when the one before it came back.
    for round in 0..200_usize {
        let sent = content(round * 37 % 5_000 + 1);
        feed.send(sent.clone()).unwrap();
        let mut came = Vec::new();
        while came.len() < sent.len() {
            let frame = tokio::time::timeout(MUST_HAPPEN, body.frame()).await;
            let frame = frame.expect("it comes back").unwrap().unwrap();
            came.extend(frame.into_data().unwrap());
        }
        assert_eq!(came, sent);
        bytes += sent.len();
    }
    assert!(bytes > mesh_tower::REPLAY_BYTES_MAX, "more than is kept");
    drop(feed);
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.is_empty());
    world.at_rest(&["a", "shadow"]).await;
}
