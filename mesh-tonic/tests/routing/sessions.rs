//! Sessions that stick to an endpoint, by a cookie (gRFC A55, A60) or a header.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::CommonLbConfig,
            core::v3::{HealthStatus, HealthStatusSet},
            route::v3::{
                RouteAction, RouteConfiguration, WeightedCluster, route::Action,
                route_action::ClusterSpecifier, weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::http::stateful_session::v3::{
            StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
        },
    },
    google::protobuf::UInt32Value,
};
use mesh_tower::ErrorKind;

use super::{
    echo::Echo,
    resources::{any, listener_with},
    scene::{Reply, Scene, Wire, forward, host, prefix},
    stateful::{NAME, by_header, filter, session},
};

/// What the caller sends back.
#[track_caller]
fn pair(reply: &Reply) -> String {
    let [cookie] = reply.header("set-cookie")[..] else {
        panic!("{reply:?}")
    };
    cookie
        .split_once(';')
        .map_or(cookie, |(pair, _)| pair)
        .to_owned()
}

async fn stays(scene: &Scene, path: &str, cookie: &str, by: &str) {
    for _ in 0..8 {
        let reply = scene.get_with(path, &[("cookie", cookie)]).await;
        assert_eq!(reply.seen().by, by);
        assert!(reply.header("set-cookie").is_empty(), "it is the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_on_its_endpoint_and_moves_when_that_goes() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let routes = vec![prefix("/", forward("c", |_| {}))];
        let scene = Scene::start(wire, host(routes)).await;
        scene
            .plane
            .set([listener_with(vec![filter(&session("", false))])]);
        scene.serve("c", &[&one, &two]);
        let first = scene.get("/").await;
        let (by, cookie) = (first.seen().by, pair(&first));
        stays(&scene, "/", &cookie, &by).await;

        let left = if by == "one" { &two } else { &one };
        scene.serve("c", &[left]);
        let moved = |reply: &Result<Reply, _>| {
            let reply = reply.as_ref().unwrap();
            reply.seen().by == left.name
        };
        let reply = scene
            .until("/", &[("cookie", &cookie)], moved)
            .await
            .unwrap();
        stays(&scene, "/", &pair(&reply), left.name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_endpoint_serves_its_sessions_and_nobody_else() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let routes = vec![prefix("/", forward("c", |_| {}))];
        let scene = Scene::start(wire, host(routes)).await;
        scene
            .plane
            .set([listener_with(vec![filter(&session("", false))])]);
        let serve = |draining: &[&str]| {
            let statuses = [
                HealthStatus::Unknown,
                HealthStatus::Healthy,
                HealthStatus::Draining,
            ];
            scene.serve_as("c", &[&one, &two], draining, |cluster| {
                cluster.common_lb_config = Some(CommonLbConfig {
                    override_host_status: Some(HealthStatusSet {
                        statuses: statuses.map(|status| status as i32).into(),
                    }),
                    ..CommonLbConfig::default()
                });
            });
        };
        serve(&[]);
        let first = scene.get("/").await;
        let (by, cookie) = (first.seen().by, pair(&first));
        serve(&[&by]);
        // Until nobody new gets there.
        let mut others = 0;
        while others < 20 {
            others = match scene.get("/").await.seen().by == by {
                true => 0,
                false => others + 1,
            };
        }
        stays(&scene, "/", &cookie, &by).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_session_fails_without_its_endpoint() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let routes = vec![prefix("/", forward("c", |_| {}))];
        let scene = Scene::start(wire, host(routes)).await;
        scene
            .plane
            .set([listener_with(vec![filter(&session("", true))])]);
        scene.serve("c", &[&one, &two]);
        let first = scene.get("/").await;
        let (by, cookie) = (first.seen().by, pair(&first));
        stays(&scene, "/", &cookie, &by).await;
        let left = if by == "one" { &two } else { &one };
        scene.serve("c", &[left]);
        let failed = scene
            .until("/", &[("cookie", &cookie)], Result::is_err)
            .await;
        let error = failed.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEndpoint, "{wire:?}");
        assert!(error.to_string().contains("strict"), "{error}");
        // Who has no session begins one.
        assert_eq!(scene.get("/").await.seen().by, left.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_decides_among_weighted_clusters_and_routes_say_where_it_holds() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let weight = |name: &str| ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value: 1 }),
            ..ClusterWeight::default()
        };
        let split = || {
            Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                    clusters: vec![weight("c"), weight("d")],
                    ..WeightedCluster::default()
                })),
                ..RouteAction::default()
            })
        };
        let says = |r#override| {
            let says = StatefulSessionPerRoute {
                r#override: Some(r#override),
            };
            [(NAME.to_owned(), any(&says))].into()
        };
        let mut off = prefix("/off", split());
        off.typed_per_filter_config = says(Override::Disabled(true));
        let mut below = prefix("/below", split());
        below.typed_per_filter_config = says(Override::StatefulSession(session("/below/x", false)));
        let host = host(vec![off, below, prefix("/", split())]);
        let scene = Scene::start(wire, host.clone()).await;
        scene.route(RouteConfiguration {
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        });
        scene
            .plane
            .set([listener_with(vec![filter(&session("", false))])]);
        scene.serve("c", &[&one]);
        scene.serve("d", &[&two]);
        for _ in 0..4 {
            let first = scene.get("/").await;
            stays(&scene, "/", &pair(&first), &first.seen().by).await;
        }
        assert!(scene.get("/off").await.header("set-cookie").is_empty());
        assert!(scene.get("/below").await.header("set-cookie").is_empty());
        let below = scene.get("/below/x/y").await;
        stays(&scene, "/below/x/y", &pair(&below), &below.seen().by).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weighted_cluster_says_whether_its_own_sessions_stick() {
    for wire in Wire::ALL {
        let servers = [
            Echo::start("c1").await,
            Echo::start("c2").await,
            Echo::start("d").await,
        ];
        let [one, two, other] = &servers;
        let weight = |name: &str, says: Option<Override>| ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value: 1 }),
            typed_per_filter_config: says
                .map(|says| {
                    let says = StatefulSessionPerRoute {
                        r#override: Some(says),
                    };
                    (NAME.to_owned(), any(&says))
                })
                .into_iter()
                .collect(),
            ..ClusterWeight::default()
        };
        let own = Some(Override::StatefulSession(session("", false)));
        let off = Some(Override::Disabled(true));
        for (listener, clusters) in [
            (
                StatefulSession::default(),
                [weight("c", own), weight("d", None)],
            ),
            (session("", false), [weight("c", None), weight("d", off)]),
        ] {
            let split = Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                    clusters: clusters.into(),
                    ..WeightedCluster::default()
                })),
                ..RouteAction::default()
            });
            let scene = Scene::start(wire, host(vec![prefix("/", split)])).await;
            scene.plane.set([listener_with(vec![filter(&listener)])]);
            scene.serve("c", &[one, two]);
            scene.serve("d", &[other]);
            let mut sticky = 0;
            while sticky < 4 {
                let reply = scene.get("/").await;
                let by = reply.seen().by;
                if by == "d" {
                    assert!(reply.header("set-cookie").is_empty(), "{wire:?}");
                    continue;
                }
                stays(&scene, "/", &pair(&reply), &by).await;
                sticky += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_by_header_stays_on_its_endpoint_and_moves_or_fails_without_it() {
    for wire in Wire::ALL {
        for strict in [false, true] {
            let (one, two) = (Echo::start("one").await, Echo::start("two").await);
            let routes = vec![prefix("/", forward("c", |_| {}))];
            let scene = Scene::start(wire, host(routes)).await;
            scene
                .plane
                .set([listener_with(vec![filter(&by_header(strict))])]);
            scene.serve("c", &[&one, &two]);
            let first = scene.get("/").await;
            let by = first.seen().by;
            let [session] = first.header("x-stay")[..] else {
                panic!("{first:?}")
            };
            let session = session.to_owned();
            let sent = [("x-stay", session.as_str())];
            for _ in 0..8 {
                let reply = scene.get_with("/", &sent).await;
                assert_eq!(reply.seen().by, by, "{wire:?}");
                assert_eq!(reply.header("x-stay"), [""; 0], "it is the same");
                let told = reply.seen();
                assert_eq!(
                    told.header("x-stay"),
                    [&session],
                    "the server sees it, as in Envoy"
                );
            }
            // What is no address is no session.
            assert_eq!(
                scene
                    .get_with("/", &[("x-stay", "!")])
                    .await
                    .header("x-stay")
                    .len(),
                1
            );

            let left = if by == "one" { &two } else { &one };
            scene.serve("c", &[left]);
            if strict {
                let is_lost = |reply: &Result<Reply, mesh_tower::Error>| {
                    reply
                        .as_ref()
                        .is_err_and(|error| error.kind() == ErrorKind::NoEndpoint)
                };
                scene.until("/", &sent, is_lost).await.unwrap_err();
            } else {
                let is_moved = |reply: &Result<Reply, _>| {
                    reply
                        .as_ref()
                        .is_ok_and(|reply: &Reply| reply.seen().by == left.name)
                };
                let moved = scene.until("/", &sent, is_moved).await.unwrap();
                assert_eq!(moved.header("x-stay").len(), 1, "a new one");
            }
        }
    }
}
