//! Balancing that depends on time and on how requests end, driven by the cluster's own task.

use std::sync::Arc;

use mesh_core::{
    config::{
        ClientSideWrr, Cluster, DropOverload, Endpoint, Fraction, HealthStatus, LocalityEndpoints,
        LocalityId, OutlierDetection, PeakEwma,
    },
    snapshot::ConfigTree,
};

use http::HeaderMap;

use super::*;

/// One cluster whose priorities have so many endpoints each.
fn cluster(sizes: &[u16], change: impl FnOnce(&mut Cluster)) -> ConfigTree {
    let builder = tree("l").cluster_with("a", &[], change).route("/", "a");
    let mut tree = builder.build();
    let mut ports = 1..;
    let localities = sizes.iter().enumerate().map(|(priority, size)| {
        let endpoints = ports.by_ref().take((*size).into()).map(|port| Endpoint {
            address: SocketAddr::from(([10, 0, 0, 1], port)),
            weight: 1,
            health: HealthStatus::Healthy,
            hostname: String::new(),
            metadata: Default::default(),
        });
        LocalityEndpoints {
            locality: LocalityId::default(),
            priority: priority as u32,
            weight: 1,
            endpoints: endpoints.collect(),
        }
    });
    let localities = localities.collect();
    let cluster = tree.clusters.values_mut().next().unwrap();
    let endpoints = Arc::make_mut(cluster.endpoints.as_mut().unwrap());
    endpoints.localities = localities;
    tree
}

/// Sends requests, one after the other; which ports were asked.
async fn send(service: &MeshService<Stub>, log: &stub::Log, requests: usize) -> Vec<u16> {
    let before = log.ports().len();
    for _ in 0..requests {
        if let Ok(response) = service.clone().oneshot(get("/")).await {
            response.into_body().collect().await.unwrap();
        }
    }
    log.ports().split_off(before)
}

/// Lets the cluster's task do what is due.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_wants_dropped_is_not_sent() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|_| Answer::status(200));
    let log = stub.log();
    let mut tree = cluster(&[1], |_| {});
    let of_cluster = tree.clusters.values_mut().next().unwrap();
    let endpoints = Arc::make_mut(of_cluster.endpoints.as_mut().unwrap());
    endpoints.drop_overloads.push(DropOverload {
        category: "throttle".into(),
        share: Fraction::new(1, 1).unwrap(),
    });
    config.publish(&tree);
    let ListenerState::Ready(snapshot) = reader.load() else {
        panic!("it was published")
    };
    let service = MeshService::new("l", reader, stub);
    let error = service.oneshot(get("/")).await.unwrap_err();
    let dropped = snapshot.clusters[0].load.dropped();
    assert_eq!(dropped.by_category["throttle"], 1, "for load reports");
    assert_eq!(error.kind(), ErrorKind::Dropped);
    assert!(error.to_string().contains("throttle"), "{error}");
    assert!(log.ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    let (mut config, reader) = HandMade::new();
    let stub =
        Stub::answering(|asked| Answer::status(if asked.endpoint.port() == 1 { 503 } else { 200 }));
    let log = stub.log();
    config.publish(&cluster(&[4], |cluster| {
        cluster.outlier_detection = Some(OutlierDetection::default());
    }));
    let service = MeshService::new("l", reader, stub);
    let count = |ports: Vec<u16>| ports.into_iter().filter(|port| *port == 1).count();
    assert_eq!(count(send(&service, &log, 20).await), 5);
    pass(20 * MS).await;
    assert_eq!(count(send(&service, &log, 40).await), 0, "ejected");
    pass(Duration::from_secs(29)).await;
    assert_eq!(count(send(&service, &log, 40).await), 0);
    pass(Duration::from_secs(1)).await;
    assert_eq!(
        count(send(&service, &log, 20).await),
        5,
        "back, and as bad as before"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_although_nobody_reads_its_body() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|asked| match asked.endpoint.port() {
        1 => Answer::text(503, "down"),
        _ => Answer::text(200, "up"),
    });
    let log = stub.log();
    config.publish(&cluster(&[2], |cluster| {
        cluster.outlier_detection = Some(OutlierDetection::default());
    }));
    let service = MeshService::new("l", reader, stub);
    for _ in 0..10 {
        drop(service.clone().oneshot(get("/")).await);
    }
    pass(20 * MS).await;
    assert!(!send(&service, &log, 10).await.contains(&1), "ejected");
}

#[tokio::test(start_paused = true)]
async fn the_next_priority_takes_over_and_gives_back() {
    let (mut config, reader) = HandMade::new();
    let stub =
        Stub::answering(|asked| Answer::status(if asked.endpoint.port() == 1 { 503 } else { 200 }));
    let log = stub.log();
    config.publish(&cluster(&[1, 2], |cluster| {
        cluster.outlier_detection = Some(OutlierDetection::default());
    }));
    let service = MeshService::new("l", reader, stub);
    assert_eq!(send(&service, &log, 5).await, [1; 5]);
    pass(20 * MS).await;
    let ports = send(&service, &log, 10).await;
    assert!(ports.iter().all(|port| *port != 1), "{ports:?}");
    pass(Duration::from_secs(30)).await;
    assert_eq!(send(&service, &log, 2).await, [1; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_is_avoided_by_latency() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|asked| {
        let slow = asked.endpoint.port() == 1;
        Answer::later(if slow { 200 * MS } else { 2 * MS }, 200)
    });
    let log = stub.log();
    config.publish(&cluster(&[10], |cluster| {
        cluster.lb_policy = LbPolicy::PeakEwma(PeakEwma::default());
    }));
    let service = MeshService::new("l", reader, stub);
    let ports = send(&service, &log, 1_000).await;
    let slow = ports.into_iter().filter(|port| *port == 1).count();
    assert!(slow <= 10, "{slow} of 1000; a tenth of an even share");
}

/// `OrcaLoadReport` with `rps_fractional` 100 and `application_utilization` 0.2 and 0.8, as backends
/// send it.
const REPORTS: [&str; 2] = ["MQAAAAAAAFlASZqZmZmZmck/", "MQAAAAAAAFlASZqZmZmZmek/"];

#[tokio::test(start_paused = true)]
async fn backends_get_requests_by_the_load_that_they_report() {
    let (mut config, reader) = HandMade::new();
    let stub = Stub::answering(|asked| {
        let report = REPORTS[usize::from(asked.endpoint.port() - 1)];
        let mut trailers = HeaderMap::new();
        trailers.insert("endpoint-load-metrics-bin", report.parse().unwrap());
        Answer::Trailers(trailers)
    });
    let log = stub.log();
    config.publish(&cluster(&[2], |cluster| {
        cluster.lb_policy = LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr {
            blackout_period: Duration::ZERO,
            ..ClientSideWrr::default()
        });
    }));
    let service = MeshService::new("l", reader, stub);
    send(&service, &log, 10).await;
    pass(2_000 * MS).await;
    let ports = send(&service, &log, 100).await;
    let idle = ports.iter().filter(|port| **port == 1).count();
    assert!(
        (78..=82).contains(&idle),
        "80 : 20, it was {idle} : {}",
        100 - idle
    );
}
