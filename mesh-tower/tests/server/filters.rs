//! Filters of a server, over real connections.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_core::config::{
    AdaptiveConcurrency, CorsPolicy, DescriptorEntry, DescriptorSource, FilterConfig,
    FilterOverrides, HttpFilter, LocalRateLimit, PathMatcher, PathPattern, RateLimit,
    RateLimitDescriptor, RbacAction, Route, RouteAction, RouteConfig, RouteMatch, RouteSource,
    StringMatcher, TokenBucket, VirtualHost,
};
use mesh_tower::{Body, server::InboundState, tls::Alpn};

use crate::kit::{ALICE, Ca, Client, Mode, World, deny_all, listener, rbac};

fn bucket(max_tokens: u32) -> TokenBucket {
    TokenBucket {
        max_tokens,
        tokens_per_fill: 1,
        fill_interval: std::time::Duration::from_secs(3600),
    }
}

fn limit(max_tokens: u32) -> LocalRateLimit {
    let mut limit = LocalRateLimit::new("l", bucket(max_tokens));
    limit.retry_after_header = true;
    limit.x_ratelimit_headers = true;
    limit
}

fn limited(limit: LocalRateLimit) -> HttpFilter {
    HttpFilter::new("limit", FilterConfig::LocalRateLimit(Arc::new(limit)))
}

/// A listener with these filters, and what its one route says.
fn with(mode: Mode, filters: &[HttpFilter], says: Option<FilterOverrides>) -> InboundState {
    let InboundState::Ready(listener) = listener(mode, &[]) else {
        unreachable!("it is ready")
    };
    let mut listener = (*listener).clone();
    let mut route = Route::new("limited", RouteMatch::any(), RouteAction::NonForwarding);
    route.matcher.path = PathMatcher::new(PathPattern::Prefix("/who".into()));
    route.filters = says.map(Box::new);
    let all = Route::new("all", RouteMatch::any(), RouteAction::NonForwarding);
    let host = VirtualHost::new("all", ["*"], vec![route, all]);
    let routes = Arc::new(RouteConfig::new("inbound", vec![host]));
    for chain in &mut listener.filter_chains {
        chain.filters = filters.to_vec();
        chain.routes = RouteSource::Inline(Arc::clone(&routes));
    }
    InboundState::Ready(Arc::new(listener))
}

#[tokio::test]
async fn over_the_limit_http_gets_429_and_grpc_resource_exhausted() {
    let ca = Ca::new();
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let world = World::start(&ca, with(Mode::Disable, &[limited(limit(2))], None)).await;
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        for left in ["1", "0"] {
            let answer = client.get("/").await.expect("answered");
            assert_eq!(answer.status, 200);
            assert_eq!(answer.headers["x-ratelimit-limit"], "2");
            assert_eq!(answer.headers["x-ratelimit-remaining"], left);
        }
        let refused = client.get("/").await.expect("answered");
        assert_eq!(
            (refused.status.as_u16(), refused.text()),
            (429, "local_rate_limited")
        );
        assert_eq!(refused.headers["retry-after"], "3600");
        if matches!(alpn, Alpn::Http2) {
            let refused = client.grpc("/a.B/C", &[]).await.expect("answered");
            assert_eq!(refused.grpc_status(), Some("8"));
            assert_eq!(refused.status, 200);
        }
        let line =
            "mesh_filter_actions_total{side=\"server\",filter=\"limit\",action=\"rate_limited\"}";
        assert!(world.metrics().contains(line), "{}", world.metrics());
    }
}

#[tokio::test]
async fn a_routes_limit_takes_the_place_of_the_listeners_for_its_requests() {
    let ca = Ca::new();
    let says = FilterOverrides::of("limit", FilterConfig::LocalRateLimit(Arc::new(limit(1))));
    let state = with(Mode::Disable, &[limited(limit(3))], Some(says));
    let world = World::start(&ca, state).await;
    let mut client = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connects");
    let mut statuses = Vec::new();
    for path in ["/who", "/who", "/", "/", "/", "/"] {
        statuses.push(client.get(path).await.expect("answered").status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 200, 200, 200, 429]);
}

#[tokio::test]
async fn each_client_has_a_limit_of_its_own_by_the_name_in_its_certificate() {
    let ca = Ca::new();
    let mut config = limit(1000);
    config.rate_limits = vec![RateLimit {
        stage: 0,
        entries: vec![DescriptorEntry {
            key: "client".into(),
            source: DescriptorSource::PeerIdentity,
        }],
    }];
    config.descriptors = vec![RateLimitDescriptor {
        entries: vec![("client".into(), "".into())],
        token_bucket: bucket(1),
    }];
    let world = World::start(&ca, with(Mode::Strict, &[limited(config)], None)).await;
    for name in [ALICE, "spiffe://cluster.local/ns/default/sa/bob"] {
        for expected in [200, 429] {
            // A connection of its own: it is the name that counts.
            let mut client = Client::tls(world.addr, ca.identity(name))
                .await
                .expect("connects");
            let answer = client.get("/").await.expect("answered");
            assert_eq!(answer.status, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn filters_act_in_the_order_of_the_listener() {
    let ca = Ca::new();
    let denied = HttpFilter::of_rbac(&[deny_all()]).remove(0);
    for (filters, expected) in [
        ([denied.clone(), limited(limit(1))], [403, 403]),
        ([limited(limit(1)), denied.clone()], [403, 429]),
    ] {
        let world = World::start(&ca, with(Mode::Disable, &filters, None)).await;
        let mut client = Client::plain(world.addr, Alpn::Http1)
            .await
            .expect("connects");
        for expected in expected {
            assert_eq!(client.get("/").await.expect("answered").status, expected);
        }
    }
}

#[tokio::test]
async fn a_route_can_switch_authorisation_off_and_only_for_itself() {
    let ca = Ca::new();
    let mut says = FilterOverrides::default();
    let off = mesh_core::config::FilterOverride::off();
    says.by_name.insert("envoy.filters.http.rbac.0".into(), off);
    let filters = HttpFilter::of_rbac(&[deny_all()]);
    let world = World::start(&ca, with(Mode::Disable, &filters, Some(says))).await;
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    assert_eq!(client.get("/who").await.expect("answered").status, 200);
    assert_eq!(client.get("/").await.expect("answered").status, 403);
}

#[tokio::test]
async fn tokens_stay_when_something_else_of_the_listener_changes() {
    let ca = Ca::new();
    let filters = [limited(limit(1))];
    let world = World::start(&ca, with(Mode::Disable, &filters, None)).await;
    let mut client = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connects");
    assert_eq!(client.get("/").await.expect("answered").status, 200);
    let allow = rbac(RbacAction::Allow, "all", mesh_core::config::Principal::Any);
    let mut more = HttpFilter::of_rbac(&[allow]);
    more.extend(filters);
    world.state.send_replace(with(Mode::Disable, &more, None));
    // The server takes it over in a task of its own; in either case nothing is left.
    assert_eq!(client.get("/").await.expect("answered").status, 429);
    assert_eq!(client.get("/").await.expect("answered").status, 429);
}

#[tokio::test]
async fn pages_of_other_origins_are_told_what_they_may_do() {
    let ca = Ca::new();
    let policy = CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://a")],
        ..CorsPolicy::default()
    };
    let says = FilterOverrides::of("cors", FilterConfig::Cors(Some(Arc::new(policy))));
    let filters = [HttpFilter::new("cors", FilterConfig::Cors(None))];
    let world = World::start(&ca, with(Mode::Disable, &filters, Some(says))).await;
    let mut client = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connects");
    for (origin, is_allowed) in [("https://a", true), ("https://b", false)] {
        let answer = client
            .send("/who", &[("origin", origin)])
            .await
            .expect("answered");
        assert_eq!(answer.status, 200);
        let allowed = answer.headers.get("access-control-allow-origin");
        assert_eq!(
            allowed.map(|value| value.to_str().expect("text")),
            is_allowed.then_some(origin)
        );
    }
}

fn buffered(max_request_bytes: u32) -> HttpFilter {
    HttpFilter::new("buffer", FilterConfig::Buffer { max_request_bytes })
}

/// A body of two parts whose end nobody knows before.
fn in_parts(first: &'static str, second: &'static str) -> Body {
    let parts = [first, second].map(|part| Ok::<_, std::io::Error>(Frame::data(part.into())));
    // The first poll gives nothing, so that no length can be known.
    let mut parts = parts.into_iter();
    let mut is_ready = false;
    Body::new(StreamBody::new(futures_util::stream::poll_fn(move |cx| {
        is_ready = !is_ready;
        if is_ready {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(parts.next())
    })))
}

/// Says how long its request said to be, and how long it is.
fn measuring() -> axum::Router {
    axum::Router::new().fallback(|headers: http::HeaderMap, body: Bytes| async move {
        let said = headers.get("content-length");
        let said = said.map_or("nothing", |said| said.to_str().expect("text"));
        format!("{said} {}", body.len())
    })
}

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

#[tokio::test]
async fn a_buffered_request_reaches_the_application_whole_or_not_at_all() {
    let ca = Ca::new();
    let mut says = FilterOverrides::default();
    let off = mesh_core::config::FilterOverride::off();
    says.by_name.insert("buffer".into(), off);
    let state = with(Mode::Disable, &[buffered(8)], Some(says));
    let world = World::with(&ca, state, measuring(), |server| server).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        let short = client.post("/", &[], in_parts("1234", "5678")).await;
        assert_eq!(short.expect("answered").text(), "8 8", "{alpn:?}");
        let none = client.get("/").await.expect("answered");
        assert!(none.text().ends_with(" 0"), "{}", none.text());
        // Where a route switches it off, bodies stream.
        let streamed = client.post("/who", &[], in_parts("1234", "56789")).await;
        assert_eq!(streamed.expect("answered").text(), "nothing 9");
        for body in [Body::from("123456789"), in_parts("1234", "56789")] {
            let mut client = Client::plain(world.addr, alpn).await.expect("connects");
            let long = client.post("/", &[], body).await.expect("answered");
            let status = long.status.as_u16();
            assert_eq!(
                (status, long.text()),
                (413, "Payload Too Large"),
                "{alpn:?}"
            );
        }
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    let short = client.post("/", &GRPC, in_parts("\0\0\0", "\0\0")).await;
    assert_eq!(short.expect("answered").text(), "5 5");
    let long = client
        .post("/", &GRPC, in_parts("\0\0\0\0\u{4}", "1234"))
        .await;
    assert_eq!(long.expect("answered").grpc_status(), Some("8"));
    let line =
        "mesh_filter_actions_total{side=\"server\",filter=\"buffer\",action=\"too_large\"} 5";
    assert!(world.metrics().contains(line), "{}", world.metrics());
}

#[tokio::test]
async fn a_servers_concurrency_limit_counts_requests_until_their_responses_are_sent() {
    let ca = Ca::new();
    let second = std::time::Duration::from_secs(1);
    let mut config = AdaptiveConcurrency::new(second, second * 60);
    config.min_concurrency = 1;
    let filter = FilterConfig::AdaptiveConcurrency(Arc::new(config));
    let state = with(Mode::Disable, &[HttpFilter::new("limit", filter)], None);
    for (alpn, is_grpc) in [
        (Alpn::Http1, false),
        (Alpn::Http2, false),
        (Alpn::Http2, true),
    ] {
        let (waiting, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        let (free, freed) = tokio::sync::watch::channel(false);
        let router = axum::Router::new()
            .route(
                "/wait",
                axum::routing::any(move || {
                    waiting.send(()).expect("the test is there");
                    let mut freed = freed.clone();
                    async move {
                        freed
                            .wait_for(|freed| *freed)
                            .await
                            .map(|_| "")
                            .expect("freed")
                    }
                }),
            )
            .fallback(|| async { "" });
        let world = World::with(&ca, state.clone(), router, |server| server).await;
        let mut slow = Client::plain(world.addr, alpn).await.expect("connects");
        let mut other = Client::plain(world.addr, alpn).await.expect("connects");
        let waits = async { slow.get("/wait").await.expect("answered").status };
        let others = async {
            arrived.recv().await.expect("it has come");
            let headers = if is_grpc { &GRPC[..] } else { &[] };
            let refused = other.send("/", headers).await.expect("answered");
            match is_grpc {
                true => assert_eq!(refused.grpc_status(), Some("14")),
                false => assert_eq!(refused.status, 503),
            }
            free.send_replace(true);
        };
        let (waited, ()) = tokio::join!(waits, others);
        assert_eq!(waited, 200);
        let line = "mesh_filter_actions_total{side=\"server\",filter=\"limit\",\
                    action=\"concurrency_limited\"} 1";
        assert!(world.metrics().contains(line), "{}", world.metrics());
    }
}
