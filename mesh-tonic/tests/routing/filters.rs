//! Faults and limits, from YAML to requests.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
            core::v3::header_value_option::HeaderAppendAction,
            route::v3::Route,
        },
        extensions::filters::{
            common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
            http::{
                adaptive_concurrency::v3::{
                    AdaptiveConcurrency, GradientControllerConfig,
                    adaptive_concurrency::ConcurrencyControllerConfig,
                    gradient_controller_config::{
                        ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
                    },
                },
                buffer::v3::{Buffer, BufferPerRoute, buffer_per_route},
                cors::v3::{Cors, CorsPolicy},
                fault::v3::HttpFault,
                header_mutation::v3::{
                    HeaderMutation as HeaderMutationFilter, HeaderMutationPerRoute, Mutations,
                },
            },
            network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
        },
        r#type::{
            matcher::v3::{StringMatcher, string_matcher::MatchPattern},
            v3::FractionalPercent,
        },
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::Body;

use super::{
    echo::Echo,
    intent::Services,
    resources::{any, listener_with},
    scene::{Reply, Scene, Wire, add_header, forward, host, prefix},
    unruly::{CASE, Unruly},
};

/// gRPC `RESOURCE_EXHAUSTED`.
const EXHAUSTED: Option<&str> = Some("8");

fn is_limited(reply: &Reply) -> bool {
    reply.status == StatusCode::TOO_MANY_REQUESTS || reply.grpc() == EXHAUSTED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_and_limits_hold_as_they_are_declared() {
    let services = Services::start(&[("shop", &["v1"])]).await;
    services.world.write(
        "filters.yaml",
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /tea}}]
    fault: {abort: {httpStatus: 429, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - route: [{destination: {host: shop}}]
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: of-clients, namespace: default}
spec:
  host: shop
  limits:
  - {requests: 3, interval: 1h, match: {pathPrefix: /few}, per: {header: x-user}}
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: of-servers, namespace: default}
spec:
  selector: {matchLabels: {version: v1}}
  limits:
  - {requests: 2, interval: 1h, match: {pathPrefix: /scarce}, per: {header: x-user}}
",
    );
    for wire in Wire::ALL {
        let aborted = |reply: &Reply| match wire {
            Wire::Grpc => reply.grpc() == Some("14"),
            _ => reply.status == StatusCode::TOO_MANY_REQUESTS,
        };
        services.until(wire, "shop", "/tea", &[], aborted).await;
        for (path, most) in [("/few", 3), ("/scarce", 2)] {
            let probe = format!("probe-{wire:?}");
            let probe = [("x-user", probe.as_str())];
            services.until(wire, "shop", path, &probe, is_limited).await;
            for name in ["one", "two"] {
                let user = format!("{name}-{wire:?}");
                let user = [("x-user", user.as_str())];
                for _ in 0..most {
                    let reply = services.ask(wire, "shop", path, &user).await.unwrap();
                    assert_eq!(reply.seen().by, "v1", "{wire:?} {path}");
                }
                let reply = services.ask(wire, "shop", path, &user).await.unwrap();
                assert!(is_limited(&reply), "{wire:?} {path} {reply:?}");
                assert!(!reply.header("retry-after").is_empty(), "{wire:?} {path}");
            }
        }
        let reply = services.ask(wire, "shop", "/rest", &[]).await.unwrap();
        assert_eq!(reply.seen().by, "v1");
    }
}

/// Headers and bodies, of servers and of the clients of a host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filter_policies_hold_on_servers_and_on_clients() {
    let services = Services::start(&[("shop", &["v1"])]).await;
    services.world.write(
        "filters.yaml",
        "
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: of-clients, namespace: default}
spec:
  host: shop
  headers: {request: {set: {x-by: client}}, response: {add: {x-told: client}}}
---
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: of-servers, namespace: default}
spec:
  selector: {matchLabels: {version: v1}}
  headers: {request: {add: {x-by: server}, remove: [x-debug]}, response: {add: {x-told: server}}}
  buffer: {maxRequestBytes: 3}
",
    );
    for wire in Wire::ALL {
        let sent = [("x-debug", "1"), ("x-by", "caller")];
        let holds = |reply: &Reply| reply.header("x-told") == ["server", "client"];
        // A gRPC call has five bytes.
        let is_small = wire != Wire::Grpc;
        let reply = services.until(wire, "shop", "/", &sent, holds).await;
        if is_small {
            let seen = reply.seen();
            assert_eq!(seen.header("x-by"), ["client", "server"], "{wire:?}");
            assert_eq!(seen.header("x-debug"), [""; 0]);
        } else {
            assert_eq!(reply.grpc(), EXHAUSTED);
        }
    }
    services.world.write(
        "filters.yaml",
        "
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: of-clients, namespace: default}
spec: {host: shop, buffer: {maxRequestBytes: 4}}
",
    );
    for wire in Wire::ALL {
        // The listener and its routes come one after the other.
        let holds = |reply: &Reply| {
            let is_refused = reply.grpc() == EXHAUSTED;
            reply.header("x-told").is_empty() && is_refused == (wire == Wire::Grpc)
        };
        services.until(wire, "shop", "/", &[], holds).await;
    }
}

const NAME: &str = "filter";

/// A filter of a listener.
pub(crate) fn filter<T: prost::Message + prost::Name>(name: &str, config: &T) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(ConfigType::TypedConfig(any(config))),
        ..HttpFilter::default()
    }
}

/// A route that says something of a filter.
pub(crate) fn saying<T>(mut route: Route, filter: &str, config: &T) -> Route
where
    T: prost::Message + prost::Name,
{
    let config = (filter.to_owned(), any(config));
    route.typed_per_filter_config.extend([config]);
    route
}

/// A scene whose listener has `config`; `/own` says something else.
async fn scene_with<T, O>(wire: Wire, config: &T, own: &O) -> Scene
where
    T: prost::Message + prost::Name,
    O: prost::Message + prost::Name,
{
    let special = saying(prefix("/own", forward("c", |_| {})), NAME, own);
    let routes = vec![special, prefix("/", forward("c", |_| {}))];
    let scene = Scene::start(wire, host(routes)).await;
    scene.plane.set([listener_with(vec![filter(NAME, config)])]);
    scene
}

fn setting(name: &str, value: &str) -> HeaderMutation {
    let mut option = add_header(name, value);
    option.append_action = HeaderAppendAction::OverwriteIfExistsOrAdd as i32;
    HeaderMutation {
        action: Some(Action::Append(option)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_header_mutation_filter_changes_requests_and_responses() {
    let mutations = |by: &str| Mutations {
        request_mutations: vec![setting("x-by", by)],
        response_mutations: vec![
            setting("x-answered", "%REQ(x-by)%"),
            HeaderMutation {
                action: Some(Action::Remove("x-internal".into())),
            },
        ],
        ..Mutations::default()
    };
    for wire in Wire::ALL {
        let listener = HeaderMutationFilter {
            mutations: Some(mutations("listener")),
            most_specific_header_mutations_wins: true,
        };
        let own = HeaderMutationPerRoute {
            mutations: Some(mutations("route")),
        };
        let server = Echo::start("server").await;
        let scene = scene_with(wire, &listener, &own).await;
        scene.serve("c", &[&server]);
        for (path, by) in [("/", "listener"), ("/own", "route")] {
            let reply = scene.get_with(path, &[("x-by", "caller")]).await;
            assert_eq!(reply.seen().header("x-by"), [by], "{wire:?}");
            assert_eq!(reply.header("x-answered"), [by]);
            assert!(reply.header("x-internal").is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_holds_requests_back_until_their_bodies_are_there_or_refuses_them() {
    const MAX: u32 = 1024;
    let limit = |max| Buffer {
        max_request_bytes: Some(UInt32Value { value: max }),
    };
    let off = BufferPerRoute {
        r#override: Some(buffer_per_route::Override::Disabled(true)),
    };
    for wire in Wire::ALL {
        let server = Echo::start("server").await;
        let scene = scene_with(wire, &limit(MAX), &off).await;
        scene.serve("c", &[&server]);
        let send = |path: &str, parts: usize| {
            let (mut head, _) = wire.request(path).into_parts();
            head.method = http::Method::POST;
            scene.send(Request::from_parts(head, in_parts(parts, 512)))
        };
        for parts in [0, 1, 2] {
            let reply = send("/", parts).await.unwrap();
            let seen = reply.seen();
            assert_eq!(seen.body.len(), parts * 512, "{wire:?}");
            if parts > 0 && wire != Wire::Grpc {
                assert_eq!(seen.header("content-length"), [(parts * 512).to_string()]);
            }
        }
        let before = server.served.load(SeqCst);
        let refused = send("/", 3).await.unwrap();
        match wire {
            Wire::Grpc => assert_eq!(refused.grpc(), EXHAUSTED),
            _ => assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE),
        }
        assert_eq!(server.served.load(SeqCst), before, "nobody was asked");
        // Where a route switches it off, bodies stream.
        let reply = send("/own", 3).await.unwrap();
        assert_eq!(reply.seen().body.len(), 3 * 512);
        assert!(reply.seen().header("content-length").is_empty());
    }
}

/// A body of so many parts, each of so many bytes, whose end nobody knows before.
fn in_parts(parts: usize, bytes: usize) -> Body {
    let stream = futures_util::stream::unfold(parts, move |left| async move {
        tokio::task::yield_now().await;
        let frame = Frame::data(Bytes::from(vec![b'a'; bytes]));
        (left > 0).then(|| (Ok::<_, std::io::Error>(frame), left - 1))
    });
    Body::new(StreamBody::new(stream))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_concurrency_limit_refuses_what_is_too_much_at_a_time() {
    let second = |seconds| {
        Some(DurationProto {
            seconds,
            ..DurationProto::default()
        })
    };
    let gradient = GradientControllerConfig {
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            concurrency_update_interval: second(1),
            ..ConcurrencyLimitCalculationParams::default()
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams {
            interval: second(60),
            min_concurrency: Some(UInt32Value { value: 1 }),
            ..MinimumRttCalculationParams::default()
        }),
        ..GradientControllerConfig::default()
    };
    let config = AdaptiveConcurrency {
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(
            gradient,
        )),
        ..AdaptiveConcurrency::default()
    };
    for wire in Wire::ALL {
        let server = Unruly::start().await;
        let routes = vec![prefix("/", forward("c", |_| {}))];
        let scene = Scene::start(wire, host(routes)).await;
        scene
            .plane
            .set([listener_with(vec![filter(NAME, &config)])]);
        scene.serve_at("c", &[server.address]);
        scene.get_with("/good", &[(CASE, "first")]).await;
        let hangs = scene.try_with("/hangs", &[(CASE, "hangs")]);
        let refused = async {
            while server.attempts("hangs") == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            scene.get("/good").await
        };
        let refused = tokio::select! {
            refused = refused => refused,
            _ = hangs => unreachable!("it hangs"),
        };
        match wire {
            Wire::Grpc => assert_eq!(refused.grpc(), Some("14")),
            _ => assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE),
        }
        // Whoever gives up gives its place back.
        let reply = scene.get_with("/good", &[(CASE, "last")]).await;
        assert_eq!(reply.status, StatusCode::OK, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_delays_what_it_is_told_to_and_no_other() {
    const DELAY: Duration = Duration::from_millis(300);
    let fault = HttpFault {
        delay: Some(FaultDelay {
            percentage: Some(FractionalPercent {
                numerator: 100,
                ..FractionalPercent::default()
            }),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(DurationProto {
                nanos: 300_000_000,
                ..DurationProto::default()
            })),
        }),
        ..HttpFault::default()
    };
    for wire in Wire::ALL {
        let server = Echo::start("server").await;
        let scene = scene_with(wire, &HttpFault::default(), &fault).await;
        scene.serve("c", &[&server]);
        scene.get("/").await;
        let asked = std::time::Instant::now();
        scene.get("/own").await;
        assert!(asked.elapsed() >= DELAY, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_answers_pages_of_other_origins_as_the_route_says() {
    let policy = CorsPolicy {
        allow_origin_string_match: vec![StringMatcher {
            match_pattern: Some(MatchPattern::Exact("https://a".into())),
            ..StringMatcher::default()
        }],
        allow_methods: "PUT".into(),
        ..CorsPolicy::default()
    };
    for wire in Wire::ALL {
        let server = Echo::start("server").await;
        let scene = scene_with(wire, &Cors::default(), &policy).await;
        scene.serve("c", &[&server]);
        for (origin, allowed) in [("https://a", true), ("https://b", false)] {
            let reply = scene.get_with("/own", &[("origin", origin)]).await;
            let told = reply.header("access-control-allow-origin");
            assert_eq!(told, allowed.then_some(origin).as_slice(), "{wire:?}");
            if wire == Wire::Grpc {
                continue;
            }
            let mut preflight = wire.request("/own");
            *preflight.method_mut() = http::Method::OPTIONS;
            let headers = preflight.headers_mut();
            headers.insert("origin", origin.parse().unwrap());
            headers.insert("access-control-request-method", "PUT".parse().unwrap());
            let before = server.served.load(SeqCst);
            let reply = scene.send(preflight).await.unwrap();
            let told = reply.header("access-control-allow-methods");
            assert_eq!(told, allowed.then_some("PUT").as_slice());
            let asked = server.served.load(SeqCst) - before;
            assert_eq!(asked, usize::from(!allowed));
        }
    }
}
