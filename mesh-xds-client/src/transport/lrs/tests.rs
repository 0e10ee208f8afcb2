//! What is counted when, and how it is told.

use envoy_types::pb::{
    envoy::config::endpoint::v3::ClusterStats, google::protobuf::Duration as DurationProto,
};
use mesh_core::{
    config::{
        Cluster, ClusterEndpoints, Discovery, Endpoint as Declared, HealthStatus,
        LocalityEndpoints, LocalityId,
    },
    load::BackendMetrics,
    snapshot::{ClusterTree, Compiler},
    stats::EndpointStats,
};

use super::{source::Lists, *};

fn tree(hosts: &[u8]) -> ClusterTree {
    let endpoint = |host: &u8| Declared {
        address: ([10, 0, 0, *host], 80).into(),
        weight: 1,
        health: HealthStatus::Healthy,
        details: None,
    };
    let locality = LocalityEndpoints {
        locality: LocalityId::default(),
        priority: 0,
        weight: 1,
        endpoints: hosts.iter().map(endpoint).collect(),
    };
    ClusterTree {
        cluster: Ok(Arc::new(Cluster {
            discovery: Discovery::Eds("e".into()),
            ..Cluster::new("c")
        })),
        endpoints: Ok(Arc::new(ClusterEndpoints::new("e", vec![locality]))),
    }
}

/// A cluster of two endpoints, and what reads its load.
fn source() -> (Compiler, LoadSource) {
    let mut compiler = Compiler::new(1);
    let host = mesh_core::config::VirtualHost::new("h", ["*"], vec![]);
    let routes = mesh_core::config::RouteConfig::new("r", vec![host]);
    let snapshot = compiler
        .compile(&mesh_core::snapshot::ConfigTree {
            listener: "l".into(),
            authority: "a".into(),
            max_stream_duration: None,
            stream_idle_timeout: None,
            filters: [].into(),
            router: mesh_core::config::RouterOptions::default(),
            routes: Arc::new(routes),
            clusters: [("c".into(), tree(&[1, 2]))].into(),
        })
        .unwrap();
    let source = LoadSource {
        cluster: "c".into(),
        service: "e".into(),
        server: "cp:1".into(),
        current: snapshot.clusters[0].current.clone(),
        load: Arc::clone(&snapshot.clusters[0].load),
    };
    (compiler, source)
}

fn current(source: &LoadSource) -> Lists {
    Lists {
        current: vec![source.clone()],
        gone: vec![],
    }
}

fn stats(source: &LoadSource, i: usize) -> Arc<EndpointStats> {
    Arc::clone(&source.current.borrow().endpoints[i].stats)
}

const ALL: Wanted = Wanted {
    interval: INTERVAL_DEFAULT,
    clusters: None,
    endpoints: false,
};

/// Succeeded, failed, in progress, issued.
fn counts(report: &[ClusterStats]) -> (u64, u64, u64, u64) {
    let stats = &report[0].upstream_locality_stats[0];
    (
        stats.total_successful_requests,
        stats.total_error_requests,
        stats.total_requests_in_progress,
        stats.total_issued_requests,
    )
}

#[test]
fn counts_are_since_the_last_report_and_in_progress_is_absolute() {
    let (_compiler, source) = source();
    let mut counted = Counted::default();
    let second = Duration::from_secs(1);
    let sources = &current(&source);
    assert!(counted.report(sources, &ALL, second).is_empty(), "no data");
    let (one, two) = (stats(&source, 0), stats(&source, 1));
    for stats in [&one, &one, &two] {
        stats.begin();
    }
    one.end(true);
    two.end(false);
    let report = counted.report(sources, &ALL, second);
    assert_eq!(counts(&report), (1, 1, 1, 3));
    assert_eq!(report[0].cluster_service_name, "e");
    let elapsed = report[0].load_report_interval.as_ref().unwrap();
    assert_eq!((elapsed.seconds, elapsed.nanos), (1, 0), "as it was");
    let report = counted.report(sources, &ALL, second);
    assert_eq!(counts(&report), (0, 0, 1, 0));
    one.end(true);
    assert_eq!(counts(&counted.report(sources, &ALL, second)), (1, 0, 0, 0));
    assert!(counted.report(sources, &ALL, second).is_empty());
}

#[test]
fn an_endpoint_that_has_left_is_counted_to_its_last_request() {
    let (mut compiler, source) = source();
    let mut counted = Counted::default();
    let second = Duration::from_secs(1);
    let sources = &current(&source);
    let gone = stats(&source, 1);
    gone.begin();
    counted.report(sources, &ALL, second);
    compiler.update_cluster(&"c".into(), &tree(&[1]));
    assert_eq!(counts(&counted.report(sources, &ALL, second)), (0, 0, 1, 0));
    gone.end(true);
    assert_eq!(counts(&counted.report(sources, &ALL, second)), (1, 0, 0, 0));
    assert!(counted.report(sources, &ALL, second).is_empty());
}

#[test]
fn only_clusters_that_are_asked_for_are_reported() {
    let (_compiler, source) = source();
    stats(&source, 0).begin();
    let mut counted = Counted::default();
    let some = |clusters: &[&str]| Wanted {
        clusters: Some(clusters.iter().map(|name| (*name).to_owned()).collect()),
        ..ALL
    };
    let second = Duration::from_secs(1);
    let sources = &current(&source);
    assert!(counted.report(sources, &some(&["x"]), second).is_empty());
    assert_eq!(counted.report(sources, &some(&["c"]), second).len(), 1);
}

#[test]
fn an_interval_has_a_default_and_a_lower_bound() {
    let wanted = |seconds, nanos| {
        Wanted::new(&LoadStatsResponse {
            load_reporting_interval: Some(DurationProto { seconds, nanos }),
            ..LoadStatsResponse::default()
        })
    };
    assert_eq!(wanted(3, 0).interval, Duration::from_secs(3));
    assert_eq!(wanted(0, 0).interval, INTERVAL_MIN);
    assert_eq!(wanted(-1, 0).interval, INTERVAL_DEFAULT);
    let none = Wanted::new(&LoadStatsResponse::default());
    assert_eq!(none.interval, INTERVAL_DEFAULT);
}

const SECOND: Duration = Duration::from_secs(1);

/// Drops (grpc-go's lrsclient): those of a category, and those of circuit breakers.
#[test]
fn drops_are_told_by_category_and_in_the_total_without_any_request_served() {
    let (_compiler, source) = source();
    let mut counted = Counted::default();
    let sources = &current(&source);
    source.load.record_drop("throttle");
    source.load.record_drop("lb");
    source.load.record_drop("lb");
    source.load.record_drop("");
    let drops = |report: &[ClusterStats]| {
        let stats = &report[0];
        let named = stats.dropped_requests.iter();
        let named: Vec<_> = named
            .map(|d| (d.category.clone(), d.dropped_count))
            .collect();
        (stats.total_dropped_requests, named)
    };
    let report = counted.report(sources, &ALL, SECOND);
    let expected = [("lb".to_owned(), 2), ("throttle".to_owned(), 1)];
    assert_eq!(drops(&report), (4, expected.to_vec()));
    assert!(report[0].upstream_locality_stats.is_empty());
    assert!(
        counted.report(sources, &ALL, SECOND).is_empty(),
        "told once"
    );
    source.load.record_drop("lb");
    let report = counted.report(sources, &ALL, SECOND);
    assert_eq!(drops(&report), (1, vec![("lb".to_owned(), 1)]));
}

#[test]
fn endpoints_are_told_apart_only_when_the_server_asks_for_it() {
    let (_compiler, source) = source();
    let sources = &current(&source);
    let wanted = Wanted {
        endpoints: true,
        ..ALL
    };
    stats(&source, 1).begin();
    stats(&source, 1).end(false);
    let mut counted = Counted::default();
    let report = counted.report(sources, &wanted, SECOND);
    let locality = &report[0].upstream_locality_stats[0];
    let [endpoint] = &locality.upstream_endpoint_stats[..] else {
        panic!("{locality:?}")
    };
    let counts = (
        endpoint.total_issued_requests,
        endpoint.total_error_requests,
    );
    assert_eq!(counts, (1, 1));
    let address = format!("{:?}", endpoint.address);
    assert!(address.contains("10.0.0.2"), "{address}");
    stats(&source, 1).begin();
    let report = counted.report(sources, &ALL, SECOND);
    let locality = &report[0].upstream_locality_stats[0];
    assert!(locality.upstream_endpoint_stats.is_empty());
}

/// gRFC A85: only what CDS selects, named metrics under their prefix.
#[test]
fn metrics_of_backends_are_summed_by_locality_when_they_are_selected() {
    let (_compiler, source) = source();
    let sources = &current(&source);
    // Whoever has metrics has called it.
    assert_eq!(source.current.borrow().endpoints.len(), 2);
    let mut counted = Counted::default();
    let record = || {
        for host in [1, 2] {
            let metrics = BackendMetrics {
                cpu_utilization: Some(0.5),
                named: &[("queue", f64::from(host))],
                ..BackendMetrics::default()
            };
            let address = ([10, 0, 0, host], 80).into();
            source.load.record_metrics(address, &metrics);
        }
    };
    record();
    assert!(
        counted.report(sources, &ALL, SECOND).is_empty(),
        "not asked"
    );
    let selected = ["cpu_utilization".to_owned(), "named_metrics.*".to_owned()];
    source.load.select_metrics(&selected);
    record();
    let report = counted.report(sources, &ALL, SECOND);
    let locality = &report[0].upstream_locality_stats[0];
    let cpu = locality.cpu_utilization.as_ref().unwrap();
    let cpu = (
        cpu.num_requests_finished_with_metric,
        cpu.total_metric_value,
    );
    assert_eq!(cpu, (2, 1.0));
    assert_eq!(locality.mem_utilization, None);
    let [queue] = &locality.load_metric_stats[..] else {
        panic!("{locality:?}")
    };
    assert_eq!(&*queue.metric_name, "named_metrics.queue");
    let queue = (
        queue.num_requests_finished_with_metric,
        queue.total_metric_value,
    );
    assert_eq!(queue, (2, 3.0));
    assert!(
        counted.report(sources, &ALL, SECOND).is_empty(),
        "told once"
    );
}

/// What a cluster did since the last report is told when it leaves, though it was never reported.
#[test]
fn a_cluster_that_leaves_is_reported_once_more() {
    let (_compiler, source) = source();
    let (handed, reader) = sources();
    handed.replace(vec![source.clone()]);
    stats(&source, 0).begin();
    stats(&source, 0).end(true);
    source.load.record_drop("lb");
    handed.replace(vec![]);
    let mut counted = Counted::default();
    let report = counted.report(&reader.take(), &ALL, SECOND);
    assert_eq!(counts(&report), (1, 0, 0, 1));
    assert_eq!(report[0].total_dropped_requests, 1);
    assert!(counted.report(&reader.take(), &ALL, SECOND).is_empty());
    // It comes back before the next report: nothing is told twice.
    handed.replace(vec![source.clone()]);
    handed.replace(vec![]);
    handed.replace(vec![source.clone()]);
    source.load.record_drop("lb");
    stats(&source, 0).begin();
    stats(&source, 0).end(true);
    let report = counted.report(&reader.take(), &ALL, SECOND);
    assert_eq!(counts(&report), (1, 0, 0, 1));
    assert_eq!(report[0].total_dropped_requests, 1);
}
