//! What is tried again, over real sockets: each condition takes its failure, and no other does.

use std::{collections::BTreeSet, sync::atomic::Ordering::SeqCst};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::LbPolicy,
            core::v3::Metadata,
            endpoint::v3::LbEndpoint,
            route::v3::{
                HeaderMatcher, RetryPolicy, RouteAction, VirtualHost,
                header_matcher::HeaderMatchSpecifier,
                retry_policy::{
                    RetryHostPredicate, RetryPriority, retry_host_predicate::ConfigType,
                    retry_priority,
                },
            },
        },
        extensions::retry::{
            host::{
                omit_canary_hosts::v3::OmitCanaryHostsPredicate,
                omit_host_metadata::v3::OmitHostMetadataConfig,
            },
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf::{Duration as DurationProto, Struct, UInt32Value, Value, value::Kind},
};
use mesh_examples::ports::free_address;
use mesh_tower::Error;

use super::{
    echo::Echo,
    resources::{any, endpoint},
    scene::{Reply, Scene, Wire, forward, host, prefix, priorities},
    unruly::{CASE, Unruly},
};

/// A condition, and what a server does that it takes.
struct Case {
    on: &'static str,
    behaviour: &'static str,
    wires: &'static [Wire],
}

const HTTP: &[Wire] = &[Wire::Http1, Wire::Http2];
const GRPC: &[Wire] = &[Wire::Grpc];

/// Every condition but those whose request never left, which is sent elsewhere without any.
const CASES: &[Case] = &[
    case("5xx", "500", HTTP),
    case("5xx", "reset", HTTP),
    case("gateway-error", "502", HTTP),
    case("gateway-error", "504", HTTP),
    case("reset", "reset", &Wire::ALL),
    case("retriable-4xx", "409", HTTP),
    case("retriable-status-codes", "418", HTTP),
    case("retriable-headers", "again", &Wire::ALL),
    case("envoy-ratelimited", "limited", &Wire::ALL),
    case("cancelled", "grpc-1", GRPC),
    case("deadline-exceeded", "grpc-4", GRPC),
    case("resource-exhausted", "grpc-8", GRPC),
    case("internal", "grpc-13", GRPC),
    case("unavailable", "grpc-14", GRPC),
    // HTTP statuses count as gRPC maps them.
    case("unavailable", "503", GRPC),
];

const fn case(on: &'static str, behaviour: &'static str, wires: &'static [Wire]) -> Case {
    Case {
        on,
        behaviour,
        wires,
    }
}

fn policy(on: &str) -> RetryPolicy {
    RetryPolicy {
        retry_on: on.into(),
        num_retries: Some(UInt32Value { value: 2 }),
        retriable_status_codes: vec![418],
        retriable_headers: vec![HeaderMatcher {
            name: "x-again".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..HeaderMatcher::default()
        }],
        ..RetryPolicy::default()
    }
}

fn retrying(on: &str, change: impl FnOnce(&mut RouteAction)) -> VirtualHost {
    let action = forward("c", |action| {
        action.retry_policy = Some(policy(on));
        change(action);
    });
    host(vec![prefix("/", action)])
}

fn is_good(reply: &Result<Reply, Error>) -> bool {
    reply.as_ref().is_ok_and(|reply| {
        reply.status == 200
            && reply.grpc().is_none_or(|status| status == "0")
            && reply.header("x-again").is_empty()
    })
}

async fn scene(wire: Wire, server: &Unruly, host: VirtualHost) -> Scene {
    let scene = Scene::start(wire, host).await;
    scene.serve_at("c", &[server.address]);
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_condition_takes_its_failure_and_no_other() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let mut conditions: Vec<_> = CASES.iter().map(|case| case.on).collect();
        conditions.dedup();
        // A route for each condition, by its name.
        let routes = conditions.iter().map(|on| {
            let retrying = retrying(on, |_| {}).routes.remove(0);
            let action = retrying.action.unwrap();
            prefix(&format!("/{on}/"), action)
        });
        let scene = scene(wire, &server, host(routes.collect())).await;
        let mine = || CASES.iter().filter(|case| case.wires.contains(&wire));
        let behaviours: BTreeSet<_> = mine().map(|case| case.behaviour).collect();
        for behaviour in behaviours {
            for on in &conditions {
                let name = format!("{on} {behaviour}");
                let path = format!("/{on}/{behaviour}");
                let reply = scene.try_with(&path, &[(CASE, &name)]).await;
                let takes = mine().any(|case| case.on == *on && case.behaviour == behaviour);
                let takes = takes || also(on, behaviour);
                let attempts = 1 + usize::from(takes);
                assert_eq!(server.attempts(&name), attempts, "{wire:?} {name}");
                assert_eq!(is_good(&reply), takes, "{wire:?} {name}: {reply:?}");
            }
        }
    }
}

/// What a condition takes besides what it is there for.
fn also(on: &str, behaviour: &str) -> bool {
    match behaviour {
        "502" | "504" => on == "5xx",
        "503" => matches!(on, "5xx" | "gateway-error"),
        "reset" => matches!(on, "5xx" | "gateway-error" | "unavailable"),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_its_server_refused_is_sent_again_without_any_policy() {
    for wire in [Wire::Http2, Wire::Grpc] {
        let server = Unruly::start().await;
        let plain = host(vec![prefix("/", forward("c", |_| {}))]);
        let scene = scene(wire, &server, plain).await;
        let reply = scene.try_with("/refused", &[(CASE, "refused")]).await;
        assert!(is_good(&reply), "{wire:?} {reply:?}");
        assert_eq!(server.attempts("refused"), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_reached_costs_no_call() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let nobody = free_address().unwrap();
        let plain = host(vec![prefix("/", forward("c", |_| {}))]);
        let scene = Scene::start(wire, plain).await;
        scene.serve_at("c", &[nobody, server.address]);
        for call in 0..8 {
            let name = call.to_string();
            let reply = scene.try_with("/good", &[(CASE, &name)]).await;
            assert!(is_good(&reply), "{wire:?} {reply:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_hangs_is_given_up_for_another_one() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let on = match wire {
            Wire::Grpc => "deadline-exceeded",
            _ => "5xx",
        };
        let limited = retrying(on, |action| {
            let policy = action.retry_policy.get_or_insert_default();
            policy.per_try_timeout = Some(DurationProto {
                seconds: 0,
                nanos: 200_000_000,
            });
        });
        let scene = scene(wire, &server, limited).await;
        let reply = scene.try_with("/hangs", &[(CASE, "hangs")]).await;
        assert!(is_good(&reply), "{wire:?} {reply:?}");
        assert_eq!(server.attempts("hangs"), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_and_caller_are_told_which_attempt_it_is() {
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let mut telling = retrying("5xx,unavailable", |_| {});
        telling.include_request_attempt_count = true;
        telling.include_attempt_count_in_response = true;
        let scene = scene(wire, &server, telling).await;
        for (path, attempts) in [("/good", "1"), ("/503", "2")] {
            let reply = scene.get_with(path, &[(CASE, path)]).await;
            assert_eq!(reply.header("x-told"), [attempts], "{wire:?}");
            assert_eq!(reply.header("x-envoy-attempt-count"), [attempts]);
        }
    }
}

/// An endpoint whose metadata for load balancing has this.
fn marked(server: &Echo, key: &str, value: Kind) -> LbEndpoint {
    let address = server.address;
    let fields = [(key.to_owned(), Value { kind: Some(value) })];
    let metadata = Struct {
        fields: fields.into(),
    };
    LbEndpoint {
        metadata: Some(Metadata {
            filter_metadata: [("envoy.lb".to_owned(), metadata)].into(),
            ..Metadata::default()
        }),
        ..endpoint(&address.ip().to_string(), address.port())
    }
}

fn predicate<T: prost::Message + prost::Name>(config: &T) -> RetryHostPredicate {
    RetryHostPredicate {
        name: "predicate".into(),
        config_type: Some(ConfigType::TypedConfig(any(config))),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_avoids_endpoints_by_what_their_metadata_says() {
    const CALLS: usize = 40;
    let slow = Struct {
        fields: [(
            "tier".to_owned(),
            Value {
                kind: Some(Kind::StringValue("slow".into())),
            },
        )]
        .into(),
    };
    let omitted = OmitHostMetadataConfig {
        metadata_match: Some(Metadata {
            filter_metadata: [("envoy.lb".to_owned(), slow)].into(),
            ..Metadata::default()
        }),
    };
    for wire in Wire::ALL {
        let (bad, good) = (Echo::start("bad").await, Echo::start("good").await);
        let (canary, slow) = (Echo::start("canary").await, Echo::start("slow").await);
        bad.fail_next.store(usize::MAX, SeqCst);
        let mut telling = retrying("5xx,unavailable", |action| {
            let policy = action.retry_policy.get_or_insert_default();
            policy.retry_host_predicate =
                vec![predicate(&OmitCanaryHostsPredicate {}), predicate(&omitted)];
            policy.host_selection_retry_max_attempts = 3;
        });
        telling.include_attempt_count_in_response = true;
        let scene = Scene::start(wire, telling).await;
        let plain = |server: &Echo| endpoint("127.0.0.1", server.address.port());
        let endpoints = vec![
            plain(&bad),
            marked(&canary, "canary", Kind::BoolValue(true)),
            marked(&slow, "tier", Kind::StringValue("slow".into())),
            plain(&good),
        ];
        scene.serve_endpoints("c", endpoints, |cluster| {
            cluster.lb_policy = LbPolicy::Random as i32;
        });
        let mut first = BTreeSet::new();
        for _ in 0..CALLS {
            let reply = scene.get("/").await;
            let by = reply.seen().by;
            match reply.header("x-envoy-attempt-count")[..] {
                ["1"] => drop(first.insert(by)),
                _ => assert_eq!(by, "good", "{wire:?}"),
            }
        }
        // First attempts go anywhere.
        assert_eq!(first.len(), 3, "{wire:?} {first:?}");
    }
}

fn leaving_priorities(update_frequency: i32) -> RetryPriority {
    let config = PreviousPrioritiesConfig { update_frequency };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".into(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(any(&config))),
    }
}

/// The names of servers by priority, and who was asked in which order by a call that all of them fail.
async fn asked(wire: Wire, update_frequency: i32, by_priority: &[&[&'static str]]) -> String {
    let mut endpoints = Vec::new();
    let mut servers = Vec::new();
    for names in by_priority {
        let mut of_priority = Vec::new();
        for name in *names {
            let server = Unruly::start().await;
            let address = server.address;
            of_priority.push(endpoint(&address.ip().to_string(), address.port()));
            servers.push((*name, server));
        }
        endpoints.push(of_priority);
    }
    let leaving = retrying("5xx,unavailable", |action| {
        let policy = action.retry_policy.get_or_insert_default();
        policy.num_retries = Some(UInt32Value { value: 3 });
        policy.retry_priority = Some(leaving_priorities(update_frequency));
    });
    let scene = Scene::start(wire, leaving).await;
    scene.serve_priorities(&priorities("c", endpoints), "c", |_| {});
    // Each server fails the first attempt that it sees of a call; so many different ones are asked.
    let reply = scene.try_with("/503", &[(CASE, "call")]).await;
    let asked = servers.iter().map(|(name, server)| {
        let attempts = server.attempts("call");
        format!("{name}{attempts}")
    });
    let asked: Vec<_> = asked.collect();
    format!("{} {}", asked.join(" "), is_good(&reply))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_leaves_the_priorities_that_were_tried() {
    for wire in Wire::ALL {
        // One endpoint a priority: each retry goes one further, and the fourth attempt is the first
        // that a server sees again: the list starts again where nothing is left.
        assert_eq!(
            asked(wire, 1, &[&["a"], &["b"], &["c"]]).await,
            "a2 b1 c1 true",
            "{wire:?}"
        );
        // Without that, the second endpoint of the first priority would be asked before.
        assert_eq!(
            asked(wire, 1, &[&["a"], &["b"]]).await,
            "a2 b1 true",
            "{wire:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_stays_in_its_priority_until_its_turn_comes() {
    for wire in Wire::ALL {
        // Two attempts in the first priority, each on another endpoint, and then the next one.
        let asked = asked(wire, 2, &[&["a", "b"], &["c", "d"]]).await;
        assert_eq!(asked, "a1 b1 c1 d1 false", "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_in_another_priority_avoids_hosts_as_any() {
    for wire in Wire::ALL {
        let (bad, other) = (Echo::start("bad").await, Echo::start("other").await);
        let (canary, good) = (Echo::start("canary").await, Echo::start("good").await);
        for server in [&bad, &other] {
            server.fail_next.store(usize::MAX, SeqCst);
        }
        let leaving = retrying("5xx,unavailable", |action| {
            let policy = action.retry_policy.get_or_insert_default();
            policy.num_retries = Some(UInt32Value { value: 1 });
            policy.retry_host_predicate = vec![predicate(&OmitCanaryHostsPredicate {})];
            policy.host_selection_retry_max_attempts = 3;
            policy.retry_priority = Some(leaving_priorities(1));
        });
        let scene = Scene::start(wire, leaving).await;
        let plain = |server: &Echo| endpoint("127.0.0.1", server.address.port());
        let marked = marked(&canary, "canary", Kind::BoolValue(true));
        let all = vec![vec![plain(&bad), plain(&other)], vec![marked, plain(&good)]];
        scene.serve_priorities(&priorities("c", all), "c", |cluster| {
            cluster.lb_policy = LbPolicy::Random as i32;
        });
        // Who is connected first is asked until the others are.
        let by_good = |reply: &Result<Reply, Error>| {
            reply.as_ref().is_ok_and(|reply| reply.seen().by == "good")
        };
        scene.until("/", &[], by_good).await.unwrap();
        for _ in 0..20 {
            assert_eq!(scene.get("/").await.seen().by, "good", "{wire:?}");
        }
    }
}
