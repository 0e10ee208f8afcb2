//! Answers in place of the application's: counted with their reason, and told by spans.

use std::sync::Arc;

use axum::{Router, routing::any};
use mesh_core::config::{
    CorsPolicy, DirectResponse, FilterConfig, FilterOverrides, HttpFilter, JwtAuthn, JwtProvider,
    LocalRateLimit, PathMatcher, PathPattern, Principal, RbacAction, Redirect, Route, RouteAction,
    RouteConfig, RouteMatch, RouteSource, StringMatcher, StringPattern, TokenBucket, VirtualHost,
};
use mesh_tower::{
    server::InboundState,
    telemetry::{Telemetry, serve_metrics},
    tls::Alpn,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    kit::{Ca, Client, Mode, World, listener, rbac, within},
    telemetry::{Kept, text},
};

fn route(prefix: &str, action: RouteAction) -> Route {
    let mut route = Route::new(prefix, RouteMatch::any(), action);
    route.matcher.path = PathMatcher::new(PathPattern::Prefix(prefix.into()));
    route
}

fn saying(prefix: &str, filter: &str, config: FilterConfig) -> Route {
    let mut route = route(prefix, RouteAction::NonForwarding);
    route.filters = Some(Box::new(FilterOverrides::of(filter, config)));
    route
}

/// A server of which each path is answered for another reason.
fn state() -> InboundState {
    let redirect = Redirect {
        host: Some("elsewhere".into()),
        status: 308,
        ..Redirect::default()
    };
    let direct = DirectResponse {
        status: 410,
        body: "closed".into(),
    };
    let empty = TokenBucket {
        max_tokens: 1,
        tokens_per_fill: 1,
        fill_interval: std::time::Duration::from_secs(3600),
    };
    let limit = FilterConfig::LocalRateLimit(Arc::new(LocalRateLimit::new("l", empty)));
    let cors = FilterConfig::Cors(Some(Arc::new(CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://a")],
        ..CorsPolicy::default()
    })));
    let routes = vec![
        route("/old", RouteAction::Redirect(Box::new(redirect))),
        route("/closed", RouteAction::DirectResponse(Box::new(direct))),
        saying("/scarce", "limit", limit),
        saying(
            "/short",
            "buffer",
            FilterConfig::Buffer {
                max_request_bytes: 4,
            },
        ),
        saying("/page", "cors", cors),
        route("/app", RouteAction::NonForwarding),
    ];
    let evil = StringMatcher::new(StringPattern::Prefix("/app/evil".into())).expect("a matcher");
    let deny = rbac(RbacAction::Deny, "no-evil", Principal::Path(evil));
    let tokens = JwtAuthn {
        providers: vec![JwtProvider::new("issuer", "me", "{\"keys\":[]}")],
    };
    let unlimited = LocalRateLimit {
        token_bucket: None,
        ..LocalRateLimit::new("l", empty)
    };
    let filters = [
        ("cors", FilterConfig::Cors(None)),
        ("jwt", FilterConfig::JwtAuthn(Arc::new(tokens))),
        ("rbac", FilterConfig::Rbac(Some(deny))),
        ("limit", FilterConfig::LocalRateLimit(Arc::new(unlimited))),
        (
            "buffer",
            FilterConfig::Buffer {
                max_request_bytes: 1 << 20,
            },
        ),
    ];
    let InboundState::Ready(listener) = listener(Mode::Disable, &[]) else {
        unreachable!("it is ready")
    };
    let mut listener = (*listener).clone();
    let host = VirtualHost::new("all", ["*"], routes);
    let config = Arc::new(RouteConfig::new("inbound", vec![host]));
    for chain in &mut listener.filter_chains {
        chain.filters = filters
            .iter()
            .map(|(name, config)| HttpFilter::new(*name, config.clone()))
            .collect();
        chain.routes = RouteSource::Inline(Arc::clone(&config));
    }
    InboundState::Ready(Arc::new(listener))
}

/// What a scraper reads, over a socket.
async fn scrape(world: &World) -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = socket.local_addr().expect("address");
    let serving = tokio::spawn(serve_metrics(socket, world.telemetry.metrics().clone()));
    let mut scraper = TcpStream::connect(addr).await.expect("connects");
    let request = b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    scraper.write_all(request).await.expect("asks");
    let mut text = String::new();
    within(scraper.read_to_string(&mut text))
        .await
        .expect("reads");
    serving.abort();
    text
}

/// Path, headers, status, reason, and the class of the status.
type Case<'c> = (
    &'c str,
    &'c [(&'static str, &'c str)],
    u16,
    &'c str,
    &'c str,
);

#[tokio::test]
async fn every_answer_in_place_of_the_applications_is_counted_with_its_reason() {
    let ca = Ca::new();
    let kept = Kept::default();
    let telemetry = Telemetry::builder()
        .service_name("server")
        .exporter(kept.clone())
        .build()
        .expect("built");
    let router = Router::new().fallback(any(|| async { "hello" }));
    let world = World::traced(&ca, state(), router, telemetry, |server| server).await;
    let bearer = ("authorization", "Bearer x");
    let preflight = [
        ("origin", "https://a"),
        ("access-control-request-method", "PUT"),
    ];
    let mut http = Client::plain(world.addr, Alpn::Http1).await.expect("h1");
    let mut h2 = Client::plain(world.addr, Alpn::Http2).await.expect("h2");
    let cases: [Case<'_>; 8] = [
        ("/old", &[], 308, "redirect", "3xx"),
        ("/closed", &[], 410, "direct_response", "4xx"),
        ("/scarce", &[], 429, "rate_limited", "4xx"),
        ("/short", &[], 413, "too_large", "4xx"),
        ("/app", &[bearer], 401, "unauthenticated", "4xx"),
        ("/app/evil", &[], 403, "denied", "4xx"),
        ("/nowhere", &[], 404, "no_route", "4xx"),
        ("/app", &[("host", "b")], 400, "bad_authority", "4xx"),
    ];
    // The only one that passes.
    assert_eq!(http.get("/scarce").await.expect("answered").status, 200);
    for (path, headers, status, reason, _) in cases {
        let body = mesh_tower::Body::from(bytes::Bytes::from_static(b"more than four"));
        let answer = http.post(path, headers, body).await.expect("answered");
        assert_eq!(answer.status, status, "{reason}");
    }
    let answer = http.options("/page", &preflight).await.expect("answered");
    assert_eq!(answer.status, 200);
    let grpc = [
        ("/closed", &[][..], "UNKNOWN", "direct_response"),
        ("/scarce", &[], "RESOURCE_EXHAUSTED", "rate_limited"),
        ("/app/evil", &[], "PERMISSION_DENIED", "denied"),
        ("/app", &[bearer], "UNAUTHENTICATED", "unauthenticated"),
        ("/nowhere", &[], "UNAVAILABLE", "no_route"),
        (
            "/app",
            &[("grpc-timeout", "0n")],
            "DEADLINE_EXCEEDED",
            "deadline_exceeded",
        ),
        (
            "/app",
            &[("grpc-timeout", "soon")],
            "INTERNAL",
            "bad_timeout",
        ),
    ];
    for (path, headers, ..) in grpc {
        h2.grpc(path, headers).await.expect("answered");
    }

    let scraped = scrape(&world).await;
    let of_http = cases.iter().map(|(.., reason, code)| (*reason, *code));
    let of_grpc = grpc.iter().map(|(_, _, code, reason)| (*reason, *code));
    let all: Vec<_> = of_http
        .chain(of_grpc)
        .chain([("preflight", "2xx")])
        .collect();
    for (reason, code) in &all {
        let line =
            format!("mesh_server_local_replies_total{{reason=\"{reason}\",code=\"{code}\"}} 1\n");
        assert!(scraped.contains(&line), "{line} is missing in\n{scraped}");
    }
    let rows = scraped.matches("mesh_server_local_replies_total{").count();
    assert_eq!(rows, all.len(), "and nothing else: {scraped}");
    assert!(scraped.contains("mesh_server_requests_total{code=\"2xx\"} 2\n"));

    world.telemetry.flush().await;
    let spans = kept.take();
    let mut told: Vec<_> = spans
        .iter()
        .map(|span| text(span, "mesh.local_reply"))
        .collect();
    let mut expected: Vec<_> = all.iter().map(|(reason, _)| (*reason).to_owned()).collect();
    expected.push("no mesh.local_reply".to_owned());
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}
