//! Retries and what callers ask for in headers, beside Envoy: the same routes and servers, the same
//! requests, and the same attempts with the same headers.

use std::fmt::Write as _;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{CircuitBreakers, circuit_breakers::Thresholds},
            core::v3::CidrRange,
            route::v3::{
                HedgePolicy, RetryPolicy, RouteAction, VirtualHost,
                retry_policy::{RetryPriority, retry_priority},
            },
        },
        extensions::{
            filters::http::router::v3::Router,
            retry::priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use futures_util::future::join_all;
use mesh_core::config::StrictHeaders;
use mesh_tower::ErrorKind;

use super::{
    beside::{Beside, Options},
    http,
    resources::{any, endpoint},
    scene::{Scene, Wire, add_header, forward, host, prefix, priorities},
    unruly::{CASE, Unruly},
};

/// Headers of a request.
type Headers = &'static [(&'static str, &'static str)];

/// Both sides with the same routes, servers and router.
struct Sides {
    ours: Scene,
    envoy: Beside,
    servers: Vec<Unruly>,
}

impl Sides {
    /// As many servers as priorities ask for.
    async fn start(by_priority: &[usize], router: Router, mut host: VirtualHost) -> Self {
        let mut servers = Vec::new();
        let mut endpoints = Vec::new();
        for count in by_priority {
            let mut of_priority = Vec::new();
            for _ in 0..*count {
                let server = Unruly::start().await;
                let address = server.address;
                of_priority.push(endpoint(&address.ip().to_string(), address.port()));
                servers.push(server);
            }
            endpoints.push(of_priority);
        }
        let assignment = priorities("c", endpoints);
        let ours = Scene::start_with(Wire::Http1, host.clone(), |builder| {
            builder.read_caller_headers(true)
        });
        let ours = ours.await;
        ours.listen(&router);
        let breakers = circuit_breakers();
        ours.serve_priorities(&assignment, "c", |cluster| {
            cluster.circuit_breakers = Some(breakers);
        });
        host.name = "envoy".into();
        let options = Options {
            router,
            internal: Some(CidrRange {
                address_prefix: "127.0.0.0".into(),
                prefix_len: Some(UInt32Value { value: 8 }),
            }),
            breakers: Some(circuit_breakers()),
            ..Options::default()
        };
        let envoy = Beside::start(host, assignment, options).await;
        Self {
            ours,
            envoy,
            servers,
        }
    }

    /// What comes of a request on both sides: status, and of each server what its attempts said.
    async fn ask(&self, name: &str, path: &str, headers: Headers) -> [String; 2] {
        let (mine, theirs) = (format!("mine {name}"), format!("theirs {name}"));
        let mut all = headers.to_vec();
        all.push((CASE, &mine));
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{CASE}: {theirs}\r\n");
        for (name, value) in headers {
            _ = write!(request, "{name}: {value}\r\n");
        }
        request.push_str("connection: close\r\n\r\n");
        let (reply, answer) = tokio::join!(
            self.ours.try_with(path, &all),
            http(self.envoy.address, &request)
        );
        let status = match reply {
            Ok(reply) => reply.status.as_u16(),
            Err(error) => match error.kind() {
                ErrorKind::DeadlineExceeded | ErrorKind::PerTryTimeout => 504,
                _ => 503,
            },
        };
        let of_envoy = answer.split(' ').nth(1).unwrap_or_default();
        [
            format!("{status}: {}", self.told(&mine)),
            format!("{of_envoy}: {}", without_internal(&self.told(&theirs))),
        ]
    }

    fn told(&self, case: &str) -> String {
        let servers = self.servers.iter().enumerate().map(|(number, server)| {
            let told = server.told(case);
            let told = told.into_iter().enumerate();
            let told = told.map(|(attempt, told)| match (number, attempt) {
                (0, 0) => format!("[{told}]"),
                // What is left of the time differs.
                _ => format!("[{}]", without_number(&told)),
            });
            told.collect::<String>()
        });
        servers.collect::<Vec<_>>().join(" | ")
    }
}

/// That the caller is one to be believed is between Envoy and it.
fn without_internal(told: &str) -> String {
    let told = told.replace(" x-envoy-internal=true", "");
    told.replace("x-envoy-internal=true", "")
}

fn without_number(told: &str) -> String {
    let mut words = told.split(' ');
    let word = |word: &str| match word.split_once('=') {
        Some((name @ "x-envoy-expected-rq-timeout-ms", _)) => name.to_owned(),
        _ => word.to_owned(),
    };
    let first = words.next().map(word).unwrap_or_default();
    words
        .map(word)
        .fold(first, |all, word| format!("{all} {word}"))
}

/// Room for the retries of all cases that are asked at a time.
fn circuit_breakers() -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_retries: Some(UInt32Value { value: 100 }),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn millis(millis: i32) -> Option<DurationProto> {
    Some(DurationProto {
        seconds: i64::from(millis / 1_000),
        nanos: millis % 1_000 * 1_000_000,
    })
}

fn to(change: impl FnOnce(&mut RouteAction)) -> VirtualHost {
    let action = forward("c", |action| {
        action.timeout = millis(8_000);
        change(action);
    });
    host(vec![prefix("/", action)])
}

/// Cases of a route without a policy: name, path, headers.
const PLAIN: &[(&str, &str, Headers)] = &[
    ("nothing", "/503", &[]),
    ("max alone", "/503", &[("x-envoy-max-retries", "3")]),
    ("5xx", "/503", &[("x-envoy-retry-on", "5xx")]),
    ("5xx upper case", "/503", &[("x-envoy-retry-on", "5XX")]),
    (
        "list",
        "/409",
        &[("x-envoy-retry-on", "reset, retriable-4xx")],
    ),
    (
        "twice",
        "/409",
        &[
            ("x-envoy-retry-on", "reset"),
            ("x-envoy-retry-on", "retriable-4xx"),
        ],
    ),
    (
        "grpc in http",
        "/grpc",
        &[("x-envoy-retry-on", "unavailable")],
    ),
    ("http in grpc", "/503", &[("x-envoy-retry-grpc-on", "5xx")]),
    (
        "none",
        "/503",
        &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "0")],
    ),
    (
        "negative",
        "/503",
        &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "-1")],
    ),
    (
        "codes",
        "/418",
        &[
            ("x-envoy-retry-on", "retriable-status-codes"),
            ("x-envoy-retriable-status-codes", "x, 418"),
        ],
    ),
    (
        "codes without",
        "/418",
        &[("x-envoy-retriable-status-codes", "418")],
    ),
    (
        "names",
        "/again",
        &[
            ("x-envoy-retry-on", "retriable-headers"),
            ("x-envoy-retriable-header-names", "x-other, X-Again"),
        ],
    ),
    (
        "timeout",
        "/good",
        &[("x-envoy-upstream-rq-timeout-ms", "5123")],
    ),
    (
        "no timeout",
        "/good",
        &[("x-envoy-upstream-rq-timeout-ms", "0")],
    ),
    (
        "bad timeout",
        "/good",
        &[("x-envoy-upstream-rq-timeout-ms", "soon")],
    ),
    (
        "plus",
        "/good",
        &[("x-envoy-upstream-rq-timeout-ms", "+5123")],
    ),
    (
        "two timeouts",
        "/good",
        &[
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-upstream-rq-timeout-ms", "2"),
        ],
    ),
    (
        "per try",
        "/good",
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "5123")],
    ),
    (
        "long per try",
        "/good",
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "99999")],
    ),
    (
        "both",
        "/good",
        &[
            ("x-envoy-upstream-rq-timeout-ms", "7200"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "6800"),
        ],
    ),
    (
        "hedged",
        "/good",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "5123"),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
        ],
    ),
    (
        "not hedged",
        "/good",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "5123"),
            ("x-envoy-hedge-on-per-try-timeout", "yes"),
        ],
    ),
    (
        "promised",
        "/good",
        &[("x-envoy-expected-rq-timeout-ms", "2800")],
    ),
    (
        "promised and asked",
        "/good",
        &[
            ("x-envoy-expected-rq-timeout-ms", "2800"),
            ("x-envoy-upstream-rq-timeout-ms", "2400"),
        ],
    ),
    (
        "promised nonsense",
        "/good",
        &[("x-envoy-expected-rq-timeout-ms", "x")],
    ),
    (
        "promised for ever",
        "/good",
        &[
            ("x-envoy-expected-rq-timeout-ms", "0"),
            ("x-envoy-upstream-rq-timeout-ms", "2400"),
        ],
    ),
    (
        "stream",
        "/good",
        &[("x-envoy-upstream-stream-duration-ms", "6000")],
    ),
    (
        "late",
        "/hangs",
        &[("x-envoy-upstream-rq-timeout-ms", "300")],
    ),
    (
        "late and 204",
        "/hangs",
        &[
            ("x-envoy-upstream-rq-timeout-ms", "300"),
            ("x-envoy-upstream-rq-timeout-alt-response", "1"),
        ],
    ),
    (
        "late try",
        "/hangs",
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "300")],
    ),
    (
        "late try and 204",
        "/hangs",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "300"),
            ("x-envoy-upstream-rq-timeout-alt-response", ""),
        ],
    ),
    (
        "late try again",
        "/hangs",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "300"),
            ("x-envoy-retry-on", "5xx"),
        ],
    ),
    (
        "late try and other conditions",
        "/hangs",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "300"),
            ("x-envoy-retry-on", "retriable-4xx"),
        ],
    ),
    (
        "late try goes on",
        "/hangs",
        &[
            ("x-envoy-upstream-rq-per-try-timeout-ms", "300"),
            ("x-envoy-retry-on", "retriable-4xx"),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
        ],
    ),
    ("attempt", "/good", &[("x-envoy-attempt-count", "9")]),
];

async fn compare(sides: &Sides, cases: &[(&str, &str, Headers)]) {
    let difference = async |(name, path, headers): &(&str, &str, Headers)| {
        let [ours, theirs] = sides.ask(name, path, headers).await;
        (ours != theirs).then(|| format!("{name}\n  ours    {ours}\n  Envoy's {theirs}"))
    };
    // Those that wait for their timeouts wait side by side.
    let (late, quick): (Vec<_>, Vec<_>) = cases.iter().partition(|(_, path, _)| *path == "/hangs");
    let quick = async {
        let mut differences = Vec::new();
        for case in quick {
            differences.extend(difference(case).await);
        }
        differences
    };
    let late = join_all(late.into_iter().map(difference));
    let (mut differences, late) = tokio::join!(quick, late);
    differences.extend(late.into_iter().flatten());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_headers_do_what_envoy_does() {
    // A policy that says how often, for callers who say when.
    let often = to(|action| {
        action.retry_policy = Some(RetryPolicy {
            num_retries: Some(UInt32Value { value: 3 }),
            per_try_timeout: millis(6_000),
            ..RetryPolicy::default()
        });
        action.hedge_policy = Some(HedgePolicy {
            hedge_on_per_try_timeout: true,
            ..HedgePolicy::default()
        });
    });
    let starts = tokio::join!(
        Sides::start(&[1], Router::default(), to(|_| {})),
        Sides::start(&[1], Router::default(), often),
    );
    let (plain, often) = starts;
    tokio::join!(compare(&plain, PLAIN), compare(&often, PLAIN));
    let unhedged: Headers = &[("x-envoy-hedge-on-per-try-timeout", "false")];
    compare(&often, &[("unhedged", "/good", unhedged)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_say_and_believe_how_long_is_waited_as_envoys_do() {
    let quiet = Router {
        suppress_envoy_headers: true,
        ..Router::default()
    };
    let counting = VirtualHost {
        include_request_attempt_count: true,
        ..to(|_| {})
    };
    let believing = Router {
        respect_expected_rq_timeout: true,
        ..Router::default()
    };
    let (quiet, believing) = tokio::join!(
        Sides::start(&[1], quiet, counting),
        Sides::start(&[1], believing, to(|_| {})),
    );
    tokio::join!(compare(&quiet, PLAIN), compare(&believing, PLAIN));
}

/// Words and numbers at the edges of what can be read.
const EDGES: &[(&str, &str, Headers)] = &[
    ("empty on", "/good", &[("x-envoy-retry-on", "")]),
    (
        "commas on",
        "/good",
        &[("x-envoy-retry-on", "5xx,, reset ,")],
    ),
    (
        "http3 on",
        "/good",
        &[("x-envoy-retry-on", "http3-post-connect-failure")],
    ),
    (
        "early on",
        "/good",
        &[("x-envoy-retry-on", "reset-before-request")],
    ),
    (
        "unknown on",
        "/good",
        &[("x-envoy-retry-on", "5xx,sometimes")],
    ),
    ("code on", "/good", &[("x-envoy-retry-on", "503")]),
    (
        "grpc on",
        "/good",
        &[("x-envoy-retry-grpc-on", "cancelled, unavailable")],
    ),
    (
        "unknown grpc",
        "/good",
        &[("x-envoy-retry-grpc-on", "aborted")],
    ),
    (
        "many",
        "/good",
        &[("x-envoy-max-retries", "18446744073709551616")],
    ),
    ("no number", "/good", &[("x-envoy-max-retries", "")]),
    (
        "fraction",
        "/good",
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "1.5")],
    ),
    (
        "other header",
        "/good",
        &[("x-envoy-hedge-on-per-try-timeout", "?")],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_cannot_be_read_are_answered_where_envoy_does() {
    for names in [&StrictHeaders::NAMES[..], &StrictHeaders::NAMES[2..4]] {
        let strict = Router {
            strict_check_headers: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Router::default()
        };
        let sides = Sides::start(&[1], strict, to(|_| {})).await;
        compare(&sides, EDGES).await;
        compare(&sides, PLAIN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_add_conditions_of_retries_but_no_timeout() {
    let mut adding = to(|_| {});
    adding.request_headers_to_add = vec![
        add_header("x-envoy-retry-on", "5xx"),
        add_header("x-envoy-max-retries", "2"),
        add_header("x-envoy-upstream-rq-timeout-ms", "4000"),
    ];
    let sides = Sides::start(&[1], Router::default(), adding).await;
    compare(&sides, &[("503", "/503", &[]), ("good", "/good", &[])]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_leave_priorities_as_envoys_do() {
    for (by_priority, update_frequency) in [
        (&[1, 1, 1][..], 1),
        (&[1, 1], 1),
        (&[1, 1, 1], 2),
        (&[1], 1),
    ] {
        let config = PreviousPrioritiesConfig { update_frequency };
        let leaving = to(|action| {
            action.retry_policy = Some(RetryPolicy {
                retry_on: "5xx".into(),
                num_retries: Some(UInt32Value { value: 3 }),
                retry_priority: Some(RetryPriority {
                    name: "envoy.retry_priorities.previous_priorities".into(),
                    config_type: Some(retry_priority::ConfigType::TypedConfig(any(&config))),
                }),
                ..RetryPolicy::default()
            });
        });
        let sides = Sides::start(by_priority, Router::default(), leaving).await;
        compare(&sides, &[("503", "/503", &[])]).await;
    }
}
