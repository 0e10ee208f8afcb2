//! Metrics of a client (gRFC A78): rows ConnectedMetric, ServerFailureMetrics and ResourceMetrics of
//! grpc-go's catalogue.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use mesh_core::config::ClusterEndpoints;
use mesh_xds_client::{
    ClusterSpec, Variant,
    metrics::{ClientMetrics, MetricsReader},
};

use crate::{client, server::*, within};

/// Waits until the metrics are as wanted.
async fn until(reader: &MetricsReader, wanted: impl Fn(&ClientMetrics) -> bool) -> ClientMetrics {
    within(async {
        loop {
            let metrics = reader.load();
            if wanted(&metrics) {
                return metrics;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Resources of a type by the label of their state.
fn states(metrics: &ClientMetrics, type_url: &str) -> BTreeMap<&'static str, u64> {
    let of_type = metrics.resources.iter();
    let of_type = of_type.filter(|(key, _)| key.type_url == type_url);
    of_type
        .map(|(key, count)| (key.state.as_str(), *count))
        .collect()
}

/// ConnectedMetric, ConnectedMetric_Reconnection, ServerFailureMetrics_{Before,After}ResponseRecv.
pub(crate) async fn a_stream_counts_as_working_until_it_fails_and_from_the_next_response(
    variant: Variant,
) {
    let mut server = Server::start().await;
    let address = server.address;
    let client = client(&server, variant);
    let reader = client.metrics();
    let mut watcher = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    until(&reader, |m| m.servers[0].connected).await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    drop(within(watcher.next()).await);
    // One that worked ends: that is no failure.
    drop(stream);
    let mut stream = server.accept().await;
    stream.next().await.unwrap();
    let metrics = reader.load();
    assert!(metrics.servers[0].connected);
    assert_eq!(metrics.servers[0].failures, 0);

    drop(stream);
    drop(server);
    let gone = until(&reader, |m| m.servers[0].failures > 0).await;
    assert!(!gone.servers[0].connected);
    let mut server = Server::start_at(address).await;
    let mut stream = server.accept().await;
    stream.next().await.unwrap();
    assert!(!reader.load().servers[0].connected, "not before a response");
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    until(&reader, |m| m.servers[0].connected).await;
}

/// ResourceMetrics(_Extended).
pub(crate) async fn resources_are_counted_by_type_and_by_what_became_of_them(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let reader = client.metrics();
    let watchers = ["good", "bad", "slow"].map(|name| client.watch::<ClusterSpec>(name));
    let stream = server.accept().await;
    let all = until(&reader, |m| states(m, CDS).get("requested") == Some(&3)).await;
    assert_eq!(states(&all, CDS).len(), 1);
    stream.send(CDS, "1", vec![cluster("good"), bad_cluster("bad")]);
    let expected = BTreeMap::from([("acked", 1), ("nacked", 1), ("requested", 1)]);
    let metrics = until(&reader, |m| states(m, CDS) == expected).await;
    let updates = metrics.servers[0].updates[CDS];
    assert_eq!((updates.valid, updates.invalid), (1, 1));
    stream.send(CDS, "2", vec![bad_cluster("good"), cluster("bad")]);
    let expected = BTreeMap::from([("acked", 1), ("nacked_but_cached", 1), ("requested", 1)]);
    // The first response is finished with when its events are dropped.
    let [mut good, mut bad, slow] = watchers;
    drop((within(good.next()).await, within(bad.next()).await));
    until(&reader, |m| states(m, CDS) == expected).await;
    drop((good, bad, slow));
    until(&reader, |m| m.resources.is_empty()).await;
}
