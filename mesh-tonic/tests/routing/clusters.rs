//! Clusters that a request's head decides.

use envoy_types::pb::{
    envoy::config::route::v3::{
        RouteAction, WeightedCluster,
        route::Action,
        route_action::ClusterSpecifier,
        weighted_cluster::{ClusterWeight, RandomValueSpecifier},
    },
    google::protobuf::UInt32Value,
};
use mesh_tower::ErrorKind;

use super::{
    echo::Echo,
    scene::{Scene, Wire, forward, host, prefix},
};

fn named_by(header: &str) -> Action {
    Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader(header.into())),
        ..RouteAction::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_names_the_cluster_although_no_route_does() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let routes = vec![
            prefix("/plain", forward("one", |_| {})),
            prefix("/", named_by("x-cluster")),
        ];
        let scene = Scene::start(wire, host(routes)).await;
        scene.serve("one", &[&one]);
        scene.serve("two", &[&two]);
        for (cluster, expected) in [("two", "two"), ("one", "one"), ("two", "two")] {
            let seen = scene.get_with("/", &[("x-cluster", cluster)]).await.seen();
            assert_eq!(seen.by, expected, "{wire:?}");
        }
        // Many at once ask once and get the same.
        let calls = (0..20).map(|_| scene.get_with("/", &[("x-cluster", "two")]));
        for reply in futures_util::future::join_all(calls).await {
            assert_eq!(reply.seen().by, "two");
        }
        assert_eq!(scene.get("/plain").await.seen().by, "one");

        let error = scene.try_with("/", &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute);
        assert!(error.to_string().contains("header x-cluster"), "{error}");
        let unknown = [("x-cluster", "nobody")];
        let error = scene.try_with("/", &unknown).await.unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
        // It may come later.
        scene.serve("nobody", &[&one]);
        let reply = scene.until("/", &unknown, Result::is_ok).await.unwrap();
        assert_eq!(reply.seen().by, "one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_decides_among_weighted_clusters() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let weight = |(name, value): (&str, u32)| ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value }),
            ..ClusterWeight::default()
        };
        let action = Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: [("one", 90), ("two", 10)].map(weight).into(),
                random_value_specifier: Some(RandomValueSpecifier::HeaderName("x-user".into())),
                ..WeightedCluster::default()
            })),
            ..RouteAction::default()
        });
        let scene = Scene::start(wire, host(vec![prefix("/", action)])).await;
        scene.serve("one", &[&one]);
        scene.serve("two", &[&two]);
        for (user, expected) in [("0", "one"), ("89", "one"), ("90", "two"), ("199", "two")] {
            for _ in 0..3 {
                let seen = scene.get_with("/", &[("x-user", user)]).await.seen();
                assert_eq!(seen.by, expected, "{wire:?} {user}");
            }
        }
    }
}
