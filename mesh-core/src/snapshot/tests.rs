//! What compile reuses, what it swaps, and which endpoints it keeps.

use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::config::*;

fn endpoint(port: u16, health: HealthStatus) -> Endpoint {
    Endpoint {
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        weight: 1,
        health,
        hostname: String::new(),
    }
}

fn assignment(tiers: &[&[(u16, HealthStatus)]]) -> Arc<ClusterEndpoints> {
    Arc::new(ClusterEndpoints {
        name: "c".into(),
        localities: tiers
            .iter()
            .enumerate()
            .map(|(priority, tier)| LocalityEndpoints {
                locality: LocalityId::default(),
                priority: priority as u32,
                weight: 1,
                endpoints: tier
                    .iter()
                    .map(|(port, health)| endpoint(*port, *health))
                    .collect(),
            })
            .collect(),
    })
}

fn cluster_tree(tiers: &[&[(u16, HealthStatus)]]) -> ClusterTree {
    let cluster = Cluster {
        name: "c".into(),
        discovery: Discovery::Eds("c".into()),
        lb_policy: LbPolicy::RoundRobin,
        circuit_breakers: CircuitBreakers::default(),
        connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        http_version: HttpVersion::ByRequest,
        tls: None,
    };
    ClusterTree {
        cluster: Ok(Arc::new(cluster)),
        endpoints: Ok(assignment(tiers)),
    }
}

fn tree(cluster: ClusterTree) -> ConfigTree {
    let forward = Forward::to("c");
    let route = Route::new("", RouteMatch::any(), RouteAction::Forward(forward));
    let routes = RouteConfig::new("r", vec![VirtualHost::new("h", ["*"], vec![route])]);
    ConfigTree {
        listener: "l".into(),
        authority: "l".into(),
        max_stream_duration: None,
        routes: Arc::new(routes),
        clusters: [("c".into(), cluster)].into(),
    }
}

#[test]
fn an_endpoint_change_swaps_its_cluster_and_keeps_counters_and_routes() {
    use HealthStatus::Healthy;
    let mut compiler = Compiler::new(1);
    let snapshot = compiler
        .compile(&tree(cluster_tree(&[&[(1, Healthy), (2, Healthy)]])))
        .unwrap();
    let mut current = snapshot.clusters[0].current.clone();
    let before = current.borrow_and_update().clone();
    before.endpoints[1].stats.begin();

    compiler.update_cluster(&"c".into(), &cluster_tree(&[&[(2, Healthy), (3, Healthy)]]));
    assert!(current.has_changed().unwrap());
    let after = current.borrow_and_update().clone();
    assert!(after.generation > before.generation);
    assert_eq!(
        after.endpoints[0].stats.in_flight(),
        1,
        "the counters belong to the address"
    );

    compiler.update_cluster(&"c".into(), &cluster_tree(&[&[(2, Healthy), (3, Healthy)]]));
    assert!(
        !current.has_changed().unwrap(),
        "equal config changes nothing"
    );
}

#[test]
fn the_first_priority_with_a_usable_endpoint_is_used() {
    use HealthStatus::{Draining, Healthy, Unhealthy, Unknown};
    let ports = |tiers: &[&[(u16, HealthStatus)]]| {
        let snapshot = Compiler::new(1)
            .compile(&tree(cluster_tree(tiers)))
            .unwrap();
        let cluster = snapshot.clusters[0].current.borrow().clone();
        let note = cluster.resolution_note.is_some();
        (
            cluster
                .endpoints
                .iter()
                .map(|e| e.address.port())
                .collect::<Vec<_>>(),
            note,
        )
    };
    assert_eq!(
        ports(&[&[(1, Healthy), (2, Unhealthy)], &[(3, Healthy)]]),
        (vec![1], false)
    );
    assert_eq!(
        ports(&[&[(1, Draining), (2, Unhealthy)], &[(3, Unknown)]]),
        (vec![3], false)
    );
    assert_eq!(ports(&[&[(1, Unhealthy)]]), (vec![], true));
    assert_eq!(ports(&[]), (vec![], true));
}

#[test]
fn a_failed_cluster_fails_alone_and_a_listener_failure_keeps_what_works() {
    let error = ConfigError::new("cluster c", "", "was refused");
    let failed = ClusterTree {
        cluster: Err(error.clone()),
        endpoints: Err(error.clone()),
    };
    let snapshot = Compiler::new(1).compile(&tree(failed)).unwrap();
    assert_eq!(
        snapshot.clusters[0].current.borrow().config,
        Err(error.clone())
    );

    let (writer, mut reader) = pair();
    writer.fail(error.clone(), false);
    assert!(matches!(reader.load_and_mark(), ListenerState::Failed(_)));
    writer.publish(snapshot);
    writer.fail(error.clone(), false);
    assert!(matches!(reader.load_and_mark(), ListenerState::Ready(_)));
    writer.fail(error, true);
    assert!(matches!(reader.load_and_mark(), ListenerState::Failed(_)));
    drop(writer);
}
