//! What compile reuses, what it swaps, and which endpoints it keeps.

use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::{balance::*, config::*, stats::Connectivity};

fn endpoint(port: u16, health: HealthStatus) -> Endpoint {
    Endpoint {
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        weight: 1,
        health,
        details: None,
    }
}

fn assignment(tiers: &[&[(u16, HealthStatus)]]) -> Arc<ClusterEndpoints> {
    Arc::new(ClusterEndpoints::new(
        "c",
        tiers
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
    ))
}

fn cluster_tree(tiers: &[&[(u16, HealthStatus)]]) -> ClusterTree {
    let cluster = Cluster::new("c");
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
        stream_idle_timeout: None,
        filters: [].into(),
        router: RouterOptions::default(),
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

/// Where requests go when all endpoints are connected, and whether there is a note.
fn picked(tree_of: ClusterTree) -> (Vec<u16>, bool) {
    let snapshot = Compiler::new(1).compile(&tree(tree_of)).unwrap();
    let cluster = snapshot.clusters[0].current.borrow().clone();
    let mut rng = crate::rng::SplitMix64::new(1);
    for endpoint in &cluster.endpoints {
        endpoint.stats.set_connectivity(Connectivity::Ready);
    }
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let mut context = PickContext::new(&mut rng, &[]);
        if let PickResult::Endpoint(index) = cluster.pick(&mut context) {
            ports.insert(cluster.endpoints[index].address.port());
        }
    }
    (
        ports.into_iter().collect(),
        cluster.resolution_note.is_some(),
    )
}

#[test]
fn the_first_priority_with_a_usable_endpoint_is_used() {
    use HealthStatus::{Degraded, Draining, Healthy, Timeout, Unhealthy, Unknown};
    for (tiers, expected) in [
        (
            &[&[(1, Healthy), (2, Unhealthy)][..], &[(3, Healthy)]][..],
            &[1][..],
        ),
        (&[&[(1, Draining), (2, Timeout)], &[(3, Unknown)]], &[3]),
        (&[&[(1, Degraded)], &[(3, Unknown)]], &[3]),
        (&[&[(1, Degraded), (2, Healthy)]], &[2]),
        (&[&[(1, Unhealthy)], &[(2, Degraded)]], &[2]),
        (&[&[(1, Unhealthy)]], &[]),
        (&[], &[]),
    ] {
        let is_empty = expected.is_empty();
        assert_eq!(
            picked(cluster_tree(tiers)),
            (expected.to_vec(), is_empty),
            "{tiers:?}"
        );
    }
}

fn changed(tiers: &[&[(u16, HealthStatus)]], change: impl FnOnce(&mut Cluster)) -> ClusterTree {
    let mut tree = cluster_tree(tiers);
    if let Ok(cluster) = &mut tree.cluster {
        change(Arc::make_mut(cluster));
    }
    tree
}

#[test]
fn in_a_panic_unhealthy_endpoints_are_used_too() {
    use HealthStatus::{Healthy, Unhealthy};
    let tiers: &[&[_]] = &[&[(1, Healthy), (2, Unhealthy), (3, Unhealthy)]];
    assert_eq!(picked(changed(tiers, |_| {})).0, [1]);
    let panic = |cluster: &mut Cluster| {
        cluster.common_lb_config.healthy_panic_threshold = Some(50);
    };
    assert_eq!(picked(changed(tiers, panic)).0, [1, 2, 3]);
    assert_eq!(picked(changed(&[&[(1, Unhealthy)]], panic)).0, [1]);
    let half: &[&[_]] = &[&[(1, Healthy), (2, Unhealthy)]];
    assert_eq!(
        picked(changed(half, panic)).0,
        [1],
        "half of them is enough"
    );
}

#[test]
fn a_session_sticks_to_a_draining_endpoint_where_that_is_allowed() {
    use HealthStatus::{Draining, Healthy};
    let tiers: &[&[_]] = &[&[(1, Healthy), (2, Draining)]];
    use Connectivity::{Connecting, Ready, TransientFailure};
    let stick = |allowed: &[HealthStatus], port: u16, state: Connectivity| {
        let tree = tree(changed(tiers, |cluster| {
            cluster.common_lb_config.override_host_status = allowed.to_vec();
        }));
        let snapshot = Compiler::new(1).compile(&tree).unwrap();
        let cluster = snapshot.clusters[0].current.borrow().clone();
        for endpoint in &cluster.endpoints {
            endpoint
                .stats
                .set_connectivity(match endpoint.address.port() {
                    same if same == port => state,
                    _ => Ready,
                });
        }
        let mut rng = crate::rng::SplitMix64::new(1);
        let mut context = PickContext::new(&mut rng, &[]);
        context.override_host = Some(endpoint(port, Healthy).address);
        match cluster.pick(&mut context) {
            PickResult::Endpoint(index) => Some(cluster.endpoints[index].address.port()),
            _ => None,
        }
    };
    assert_eq!(stick(&[], 1, Ready), Some(1));
    assert_eq!(
        stick(&[], 2, Ready),
        Some(1),
        "draining is not allowed by default"
    );
    assert_eq!(stick(&[Healthy, Draining], 2, Ready), Some(2));
    assert_eq!(stick(&[Draining], 1, Ready), Some(1), "balanced, as any");
    assert_eq!(stick(&[Healthy, Draining], 2, Connecting), None, "waits");
    assert_eq!(stick(&[Healthy, Draining], 2, TransientFailure), Some(1));
    assert_eq!(stick(&[Healthy, Draining], 9, Ready), Some(1), "it is gone");
    // A draining endpoint that is kept gets nothing else.
    let tree = changed(tiers, |cluster| {
        cluster.common_lb_config.override_host_status = vec![Healthy, Draining];
    });
    assert_eq!(picked(tree).0, [1]);
}

#[test]
fn drops_are_drawn_for_each_category_in_order() {
    let rule = |category: &str, percent| DropOverload {
        category: category.into(),
        share: Fraction::new(percent, 100).unwrap(),
    };
    let mut tree_of = cluster_tree(&[&[(1, HealthStatus::Healthy)]]);
    if let Ok(endpoints) = &mut tree_of.endpoints {
        Arc::make_mut(endpoints).drop_overloads = vec![rule("lb", 50), rule("throttle", 40)];
    }
    let mut compiler = Compiler::new(1);
    let snapshot = compiler.compile(&tree(tree_of.clone())).unwrap();
    let mut current = snapshot.clusters[0].current.clone();
    let mut rng = crate::rng::SplitMix64::new(1);
    let cluster = current.borrow_and_update().clone();
    let mut dropped = std::collections::BTreeMap::<_, usize>::new();
    for category in (0..100_000).filter_map(|_| cluster.drops.draw(&mut rng)) {
        *dropped.entry(category).or_default() += 1;
    }
    // The second is asked about what the first leaves.
    assert!((49_500..50_500).contains(&dropped["lb"]), "{dropped:?}");
    assert!(
        (19_500..20_500).contains(&dropped["throttle"]),
        "{dropped:?}"
    );
}

#[test]
fn a_subset_is_used_and_stays() {
    let tier: Vec<_> = (1..=100)
        .map(|port| (port, HealthStatus::Healthy))
        .collect();
    let subset = |cluster: &mut Cluster| cluster.common_lb_config.subset_size = Some(10);
    let tree_of = changed(&[&tier], subset);
    let (before, _) = picked(tree_of);
    assert_eq!(before.len(), 10);
    let gone: Vec<_> = tier
        .iter()
        .copied()
        .filter(|(port, _)| *port != before[0])
        .collect();
    let (after, _) = picked(changed(&[&gone], subset));
    let kept = after.iter().filter(|port| before.contains(port)).count();
    assert_eq!((after.len(), kept), (10, 9));
}

#[test]
fn clients_by_their_position_use_every_endpoint_alike() {
    let tier: Vec<_> = (1..=30).map(|port| (port, HealthStatus::Healthy)).collect();
    let tree_of = changed(&[&tier], |cluster| {
        cluster.common_lb_config.subset_size = Some(4);
        cluster.common_lb_config.subsetting = Subsetting::Deterministic;
    });
    let mut users = [0; 31];
    for index in 0..15 {
        let position = ClientPosition { index, count: 15 };
        let mut compiler = Compiler::new(u64::from(index)).with_client_position(position);
        let snapshot = compiler.compile(&tree(tree_of.clone())).unwrap();
        let used = snapshot.clusters[0].current.borrow().clone();
        assert_eq!(used.endpoints.len(), 4);
        for endpoint in &*used.endpoints {
            users[endpoint.address.port() as usize] += 1;
        }
    }
    assert_eq!(users[1..], [2; 30]);
    // Who has no position takes random ones.
    let snapshot = Compiler::new(1).compile(&tree(tree_of)).unwrap();
    assert_eq!(snapshot.clusters[0].current.borrow().endpoints.len(), 4);
}

#[test]
fn a_policy_that_nobody_brought_fails_its_cluster() {
    let tree_of = changed(&[&[(1, HealthStatus::Healthy)]], |cluster| {
        cluster.lb_policy = LbPolicy::Custom {
            name: "mine".into(),
            config: "{}".into(),
        };
    });
    let snapshot = Compiler::new(1).compile(&tree(tree_of)).unwrap();
    let error = snapshot.clusters[0]
        .current
        .borrow()
        .config
        .clone()
        .unwrap_err();
    assert!(
        error.to_string().contains("lb_policy: no policy \"mine\""),
        "{error}"
    );
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

#[test]
fn where_the_callers_are_changes_clusters_with_zone_aware_routing_alone() {
    let aware = changed(&[&[(1, HealthStatus::Healthy)]], |cluster| {
        cluster.common_lb_config.zone_aware = Some(ZoneAware::default());
    });
    let plain = cluster_tree(&[&[(1, HealthStatus::Healthy)]]);
    let mut compiler = Compiler::new(1);
    let mut both = tree(aware);
    both.clusters.insert("plain".into(), plain);
    let snapshot = compiler.compile(&both).unwrap();
    let generations = || {
        let clusters = snapshot.clusters.iter();
        clusters
            .map(|cluster| cluster.current.borrow().generation)
            .collect::<Vec<_>>()
    };
    let before = generations();
    let zones = LocalZones::new(
        LocalityId::default(),
        &assignment(&[&[(9, HealthStatus::Healthy)]]),
    );
    compiler.set_local_zones(Some(zones.clone()));
    let after = generations();
    assert!(
        after[0] > before[0] && after[1] == before[1],
        "{before:?} {after:?}"
    );
    compiler.set_local_zones(Some(zones));
    assert_eq!(generations(), after, "nothing new");
}
