//! Load reports over real sockets.

use std::{net::SocketAddr, pin::Pin};

use envoy_types::pb::{
    envoy::service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
    },
    google::protobuf::Duration,
};
use futures_util::Stream;
use mesh_core::snapshot::ListenerState;
use mesh_xds_client::{
    Bootstrap, XdsClient,
    bootstrap::{Authority, Server as ServerConfig, ServerUri},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{builder, server::*, wait_for_port, within};

struct Reports {
    requests: mpsc::UnboundedSender<LoadStatsRequest>,
}

/// A server of load reports alone.
async fn reports_server() -> (SocketAddr, mpsc::UnboundedReceiver<LoadStatsRequest>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (requests, reports) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(LoadReportingServiceServer::new(Reports { requests }));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(socket)));
    (address, reports)
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
    snapshot.clusters[0].load.record_drop("throttle");
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
    assert_eq!(seen.total_dropped_requests, 1);
    assert_eq!(seen.dropped_requests[0].category, "throttle");

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

/// Two clusters in use name two servers: each hears of its own, and of the last requests too.
#[tokio::test]
async fn load_goes_to_the_server_that_each_cluster_names() {
    let mut control_plane = Server::start().await;
    let (one, mut reports_one) = reports_server().await;
    let (two, mut reports_two) = reports_server().await;
    let known = [one, two].map(|at| ServerConfig::new(ServerUri::parse(&at.to_string()).unwrap()));
    let bootstrap = Bootstrap::builder(control_plane.address.to_string())
        .authority("load", Authority::new("load", known.to_vec()))
        .node_id("me")
        .build()
        .unwrap();
    let (client, driver) = XdsClient::builder(bootstrap).build_with_driver().unwrap();
    let run = tokio::spawn(driver.run());
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = control_plane.accept().await;
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    let names = ["c1", "c2"].map(str::to_owned);
    stream.serve(RDS, "1", vec![routes_to("r", &names)]).await;
    let clusters = vec![
        cluster_with_load_reports_at("c1", &one.to_string()),
        cluster_with_load_reports_at("c2", &two.to_string()),
    ];
    stream.serve(CDS, "1", clusters).await;
    let both = vec![endpoints("c1", 1), endpoints("c2", 2)];
    stream.serve(EDS, "1", both).await;
    wait_for_port(&mut reader, 1).await;
    // Each server has the stream, and has been told who we are.
    for reports in [&mut reports_one, &mut reports_two] {
        assert!(within(reports.recv()).await.unwrap().node.is_some());
    }
    let ListenerState::Ready(snapshot) = reader.load() else {
        panic!("it has been waited for")
    };
    for handle in &snapshot.clusters {
        let stats = handle.current.borrow().endpoints[0].stats.clone();
        stats.begin();
        stats.end(true);
    }
    drop((snapshot, client, reader));
    for (reports, expected) in [(&mut reports_one, "c1"), (&mut reports_two, "c2")] {
        let report = loop {
            let report = within(reports.recv()).await.expect("a last report");
            if !report.cluster_stats.is_empty() {
                break report;
            }
        };
        let names: Vec<_> = report
            .cluster_stats
            .iter()
            .map(|c| &*c.cluster_name)
            .collect();
        assert_eq!(names, [expected]);
    }
    within(run).await.unwrap();
}
