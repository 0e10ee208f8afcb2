//! Load reports over real sockets.

use std::pin::Pin;

use envoy_types::pb::{
    envoy::service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
    },
    google::protobuf::Duration,
};
use futures_util::Stream;
use mesh_core::snapshot::ListenerState;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{builder, server::*, wait_for_port, within};

struct Reports {
    requests: mpsc::UnboundedSender<LoadStatsRequest>,
}

#[tonic::async_trait]
impl LoadReportingService for Reports {
    type StreamLoadStatsStream =
        Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let mut incoming = request.into_inner();
        let requests = self.requests.clone();
        let (tx, rx) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut is_first = true;
            while let Ok(Some(request)) = incoming.message().await {
                _ = requests.send(request);
                if std::mem::take(&mut is_first) {
                    _ = tx.send(Ok(LoadStatsResponse {
                        send_all_clusters: true,
                        load_reporting_interval: Some(Duration {
                            seconds: 0,
                            nanos: 100_000_000,
                        }),
                        ..LoadStatsResponse::default()
                    }));
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }
}

#[tokio::test]
async fn load_is_reported_from_the_first_cluster_that_asks_to_the_last_request() {
    let listener_socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener_socket.local_addr().unwrap();
    let (ads, mut streams) = service(false);
    let (requests, mut reports) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(ads)
        .add_service(LoadReportingServiceServer::new(Reports { requests }));
    let incoming = TcpListenerStream::new(listener_socket);
    tokio::spawn(server.serve_with_incoming(incoming));

    let (client, driver) = builder(address.to_string()).build_with_driver().unwrap();
    let run = tokio::spawn(driver.run());
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = within(streams.recv()).await.unwrap();
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    stream.serve(RDS, "1", vec![routes("r", "c")]).await;
    stream
        .serve(CDS, "1", vec![cluster_with_own_load_reports("c")])
        .await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    wait_for_port(&mut reader, 1).await;

    let first = within(reports.recv()).await.unwrap();
    let features = first.node.unwrap().client_features;
    assert!(features.contains(&"envoy.lrs.supports_send_all_clusters".to_owned()));
    assert!(
        first.cluster_stats.is_empty(),
        "the first request only says who we are"
    );
    let ListenerState::Ready(snapshot) = reader.load() else {
        panic!("it has been waited for")
    };
    let stats = snapshot.clusters[0].current.borrow().endpoints[0]
        .stats
        .clone();
    stats.begin();
    stats.end(true);
    stats.begin();
    let seen = loop {
        let report = within(reports.recv()).await.unwrap();
        if let Some(cluster) = report.cluster_stats.into_iter().next() {
            break cluster;
        }
    };
    assert_eq!(seen.cluster_name, "c");
    let locality = &seen.upstream_locality_stats[0];
    assert_eq!(locality.total_successful_requests, 1);
    assert_eq!(locality.total_requests_in_progress, 1);

    // What ends before the client does is in the last report.
    stats.end(false);
    drop((snapshot, client, reader));
    let mut errors = 0;
    while errors == 0 {
        let report = within(reports.recv()).await.expect("a last report");
        let localities = report
            .cluster_stats
            .iter()
            .flat_map(|c| &c.upstream_locality_stats);
        errors += localities.map(|l| l.total_error_requests).sum::<u64>();
    }
    within(run).await.unwrap();
}
