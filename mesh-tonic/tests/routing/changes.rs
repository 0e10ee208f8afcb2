//! Requests and responses that are changed on the way.

use std::sync::atomic::Ordering::SeqCst;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RetryPolicy, RouteAction, RouteConfiguration, WeightedCluster,
            route::Action,
            route_action::{ClusterSpecifier, HostRewriteSpecifier},
            weighted_cluster::ClusterWeight,
        },
        r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
    },
    google::protobuf::{BoolValue, UInt32Value},
};
use http::StatusCode;

use super::{
    echo::Echo,
    resources::TARGET,
    scene::{Scene, Wire, add_header, forward, host, prefix},
};

fn substitute(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: pattern.into(),
            ..RegexMatcher::default()
        }),
        substitution: substitution.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_see_rewritten_paths_and_hosts() {
    type Change = fn(&mut RouteAction);
    let cases: [(Change, &str, &str); 6] = [
        (
            |action| action.prefix_rewrite = "/b".into(),
            "/b/c/7?q=1",
            TARGET,
        ),
        (
            |action| action.regex_rewrite = Some(substitute("^/a/(.*)/(.*)$", r"/\2/\1")),
            "/7/c?q=1",
            TARGET,
        ),
        (
            |action| {
                let host = HostRewriteSpecifier::HostRewriteLiteral("other:81".into());
                action.host_rewrite_specifier = Some(host);
            },
            "/a/c/7?q=1",
            "other:81",
        ),
        (
            |action| {
                let host = HostRewriteSpecifier::HostRewriteHeader("x-host".into());
                action.host_rewrite_specifier = Some(host);
            },
            "/a/c/7?q=1",
            "of.header",
        ),
        (
            |action| {
                let host = substitute("^/a/(.*)/.*$", r"\1.host");
                let host = HostRewriteSpecifier::HostRewritePathRegex(host);
                action.host_rewrite_specifier = Some(host);
            },
            "/a/c/7?q=1",
            "c.host",
        ),
        (
            |action| {
                let host = HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true });
                action.host_rewrite_specifier = Some(host);
            },
            "/a/c/7?q=1",
            "echo.example",
        ),
    ];
    for wire in Wire::ALL {
        let echo = Echo::start("echo").await;
        for (number, (change, path, authority)) in cases.iter().enumerate() {
            let action = forward("c", |action| {
                action.append_x_forwarded_host = true;
                change(action);
            });
            let scene = Scene::start(wire, host(vec![prefix("/a", action)])).await;
            scene.serve("c", &[&echo]);
            let headers = [("x-host", "of.header")];
            let seen = scene.get_with("/a/c/7?q=1", &headers).await.seen();
            let case = format!("{wire:?} {number} {seen:?}");
            assert_eq!(
                (seen.path.as_str(), seen.authority.as_str()),
                (*path, *authority),
                "{case}"
            );
            assert_eq!(seen.version, wire.version(), "{case}");
            let told: &[&str] = if *authority == TARGET { &[] } else { &[TARGET] };
            assert_eq!(seen.header("x-forwarded-host"), told, "{case}");
            if wire != Wire::Http1 {
                assert!(seen.header("host").is_empty(), "{case}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_change_at_every_level_from_the_cluster_to_the_configuration() {
    for wire in Wire::ALL {
        let echo = Echo::start("echo").await;
        let weight = ClusterWeight {
            name: "c".into(),
            weight: Some(UInt32Value { value: 1 }),
            request_headers_to_add: vec![add_header("x-level", "cluster")],
            response_headers_to_add: vec![add_header("x-level", "cluster %UPSTREAM_CLUSTER%")],
            ..ClusterWeight::default()
        };
        let mut route = prefix(
            "/",
            Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                    clusters: vec![weight],
                    ..WeightedCluster::default()
                })),
                ..RouteAction::default()
            }),
        );
        route.request_headers_to_add = vec![add_header("x-level", "route %REQ(x-me)%")];
        route.request_headers_to_remove = vec!["x-gone".into()];
        route.response_headers_to_add = vec![add_header("x-level", "route %REQ(:path)%")];
        let mut host = host(vec![route]);
        host.request_headers_to_add = vec![add_header("x-level", "host")];
        host.response_headers_to_add = vec![add_header("x-level", "host %RESPONSE_CODE%")];
        host.response_headers_to_remove = vec!["x-internal".into()];
        let scene = Scene::start(wire, host.clone()).await;
        scene.serve("c", &[&echo]);
        let routes = |most_specific_header_mutations_wins| RouteConfiguration {
            virtual_hosts: vec![host.clone()],
            request_headers_to_add: vec![add_header("x-level", "config")],
            response_headers_to_add: vec![add_header("x-level", "config")],
            most_specific_header_mutations_wins,
            ..RouteConfiguration::default()
        };
        for wins in [false, true] {
            scene.route(routes(wins));
            let last = if wins { "route I" } else { "config" };
            let is_so = |reply: &Result<super::scene::Reply, _>| {
                let reply = reply.as_ref().unwrap();
                reply.seen().header("x-level").last() == Some(&last)
            };
            let reply = scene
                .until("/p", &[("x-me", "I"), ("x-gone", "1")], is_so)
                .await
                .unwrap();
            let (mut request, mut response) = (
                ["cluster", "route I", "host", "config"],
                ["cluster c", "route /p", "host 200", "config"],
            );
            if wins {
                request[1..].reverse();
                response[1..].reverse();
            }
            let seen = reply.seen();
            assert_eq!(seen.header("x-level"), request, "{wire:?} {wins}");
            assert_eq!(reply.header("x-level"), response, "{wire:?} {wins}");
            assert!(seen.header("x-gone").is_empty() && reply.header("x-internal").is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_sends_the_changed_request_once_more_and_not_a_twice_changed_one() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let action = forward("c", |action| {
            action.prefix_rewrite = "/b/a".into();
            action.append_x_forwarded_host = true;
            action.host_rewrite_specifier =
                Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue {
                    value: true,
                }));
            action.retry_policy = Some(RetryPolicy {
                retry_on: "5xx,unavailable".into(),
                num_retries: Some(UInt32Value { value: 1 }),
                ..RetryPolicy::default()
            });
        });
        let mut route = prefix("/a", action);
        route.request_headers_to_add = vec![add_header("x-path", "%REQ(:path)%")];
        let scene = Scene::start(wire, host(vec![route])).await;
        scene.serve("c", &[&one, &two]);
        for round in 0..4 {
            one.fail_next.store(1, SeqCst);
            two.fail_next.store(0, SeqCst);
            let reply = scene.get("/a/x").await;
            assert_eq!(reply.status, StatusCode::OK, "{wire:?} {round}");
            let seen = reply.seen();
            assert_eq!(seen.path, "/b/a/x");
            assert_eq!(seen.authority, format!("{}.example", seen.by));
            assert_eq!(seen.header("x-path"), ["/a/x"]);
            assert_eq!(seen.header("x-forwarded-host"), [TARGET]);
        }
        let served = one.served.load(SeqCst) + two.served.load(SeqCst);
        assert!(served > 4, "there were retries: {served}");
    }
}
