//! Rows of grpc-go's catalogue that need a stream: who is served, who hammers, who hangs.

use std::time::{Duration, Instant};

use mesh_core::snapshot::ListenerState;
use mesh_xds_client::{StreamStatus, Variant};

use crate::{builder, client, server::*, wait, wait_for_port, within};

/// TwoWatchesForSameName, ResourceCaching.
pub(crate) async fn a_second_watch_of_a_name_is_served_without_a_request(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut first = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut first, 1).await;
    let mut second = client.watch_listener("l", "greeter");
    wait_for_port(&mut second, 1).await;
    drop(first);
    // The next request is that of a new name: nothing was said in between.
    let _other = client.watch_inbound("other");
    assert_eq!(stream.expect(LDS).await.resource_names, ["l", "other"]);
}

/// WatchCallAnotherWatch.
pub(crate) async fn a_watch_may_be_started_and_dropped_on_news_of_another(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut first = client.watch_listener("l", "greeter");
    let task = tokio::spawn({
        let client = client.clone();
        async move {
            while !matches!(first.load_and_mark(), ListenerState::Ready(_)) {
                assert!(first.changed().await);
            }
            let second = client.watch_listener("l2", "greeter");
            drop(first);
            second
        }
    });
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    let mut second = within(task).await.unwrap();
    while stream.next().await.unwrap().resource_names != ["l2"] {}
    stream.serve(LDS, "l2", vec![listener("l2", "r2")]).await;
    stream.serve(RDS, "r2", vec![routes("r2", "c2")]).await;
    stream.serve(CDS, "c2", vec![cluster("c2")]).await;
    stream.serve(EDS, "e2", vec![endpoints("c2", 2)]).await;
    wait_for_port(&mut second, 2).await;
}

/// RetriesAfterBrokenStream, ServerFailureMetrics_AfterResponseRecv, and the floor of a pause.
pub(crate) async fn a_stream_that_worked_is_no_failure_and_not_followed_at_once(variant: Variant) {
    const PAUSE: Duration = Duration::from_millis(150);
    let mut server = Server::start().await;
    let builder = builder(server.address.to_string()).variant(variant);
    let client = builder.backoff(PAUSE, PAUSE * 2).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    for _ in 0..3 {
        let closed = Instant::now();
        drop(stream);
        stream = server.accept().await;
        assert!(closed.elapsed() >= PAUSE, "{:?}", closed.elapsed());
        stream.next().await.unwrap();
        stream.send(LDS, "l1", vec![listener("l", "r")]);
        // It is read before the stream is closed.
        while stream.next().await.unwrap().response_nonce.is_empty() {}
    }
    assert!(matches!(reader.load(), ListenerState::Ready(_)));
    let counters = client.dump().await.unwrap().counters;
    assert_eq!(counters.server_failures, 0);
}

/// ServerFailureMetrics_BeforeResponseRecv, BackoffAfterStreamFailure.
pub(crate) async fn a_stream_without_a_response_is_a_failure_and_is_told(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    drop(server.accept().await);
    wait(&mut reader, |s| matches!(s, ListenerState::Failed(_))).await;
    let counters = client.dump().await.unwrap().counters;
    assert!(counters.server_failures >= 1);
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
}

/// C-core's rule for a server that hangs.
pub(crate) async fn a_server_that_never_responds_is_given_up(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let _reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.expect(LDS).await;
    // The connection is there; from here on time jumps.
    tokio::time::pause();
    let mut status = client.status();
    let is_given_up = |status: &StreamStatus| match status {
        StreamStatus::Disconnected { error, .. } => error.contains("no response within 60 s"),
        _ => false,
    };
    status.wait_for(is_given_up).await.unwrap();
}
