//! When a call ends: the caller's deadline, and the limits of route and listener (gRFC A31).

use mesh_core::config::MaxStreamDuration;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Seconds: what the caller asks for, `timeout`, `grpc_timeout_header_max`, `max_stream_duration`, and
/// the listener's.
type Limits = [Option<u64>; 5];

/// After how many seconds a call ends to which nobody answers; `None`: not within an hour.
async fn ends_after(is_grpc: bool, limits: Limits) -> Option<u64> {
    let limits = limits.map(|limit| limit.map(Duration::from_secs));
    let [asked, timeout, header_max, stream_max, listener_max] = limits;
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::later(SECOND * 7_200, 200));
    let service = MeshService::new("l", reader, stub);
    let tree = tree("l").cluster("a", &addresses(1));
    let mut tree = tree
        .route_with("/", "a", |forward| {
            forward.timeout = timeout;
            forward.max_stream_duration = Some(MaxStreamDuration {
                max_stream_duration: stream_max,
                grpc_timeout_header_max: header_max,
            });
        })
        .build();
    tree.max_stream_duration = listener_max;
    config.publish(&tree);
    let mut request = if is_grpc { grpc("/") } else { get("/") };
    if let Some(asked) = asked {
        let value = format!("{}S", asked.as_secs()).parse().unwrap();
        request.headers_mut().insert("grpc-timeout", value);
    }
    let started = Instant::now();
    let ended = tokio::time::timeout(SECOND * 3_600, service.oneshot(request)).await;
    let error = ended.ok()?.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    Some(started.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn the_least_of_what_caller_and_route_say_ends_a_grpc_call() {
    for (limits, expected) in [
        ([None, None, None, None, None], None),
        ([Some(5), None, None, None, None], Some(5)),
        // The table of gRFC A31.
        ([None, None, None, Some(0), Some(10)], None),
        ([None, None, None, Some(10), Some(5)], Some(10)),
        ([None, None, Some(20), Some(0), Some(5)], Some(20)),
        ([None, None, Some(20), Some(10), None], Some(20)),
        ([None, None, Some(0), Some(10), Some(5)], None),
        ([None, None, None, None, Some(10)], Some(10)),
        ([None, None, None, None, Some(0)], None),
        // The caller's own never grows.
        ([Some(3), None, Some(20), Some(10), None], Some(3)),
        ([Some(30), None, Some(20), None, None], Some(20)),
        ([Some(30), None, None, Some(0), Some(5)], Some(30)),
        // The route's timeout, too; zero is none.
        ([Some(30), Some(4), None, None, Some(10)], Some(4)),
        ([None, Some(0), None, None, Some(10)], Some(10)),
    ] {
        assert_eq!(ends_after(true, limits).await, expected, "{limits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_maximum_of_grpcs_header_says_nothing_to_http() {
    for (limits, expected) in [
        ([None, None, Some(0), Some(10), None], Some(10)),
        ([None, None, Some(20), None, Some(5)], Some(5)),
        ([None, None, Some(20), None, None], None),
        ([None, Some(4), Some(20), Some(10), None], Some(4)),
        // Nor does the header itself.
        ([Some(3), None, None, Some(10), None], Some(10)),
    ] {
        assert_eq!(ends_after(false, limits).await, expected, "{limits:?}");
    }
}
