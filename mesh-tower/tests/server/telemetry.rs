//! Spans that a collector gets, and metrics that a scraper sees.

use std::{
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
    routing::any,
};
use http::{HeaderMap, Method};
use mesh_core::config::RbacAction;
use mesh_tower::{
    telemetry::{CallHead, Code, Protocol, Telemetry, serve_metrics},
    tls::Alpn,
};
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{SpanKind, Status, TraceContextExt},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tokio::net::TcpListener;

use crate::kit::{ALICE, Ca, Client, Mode, World, listener, rbac, within};

/// Keeps what is exported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        self.0.lock().expect("kept").extend(batch);
        ready(Ok(()))
    }
}

impl Kept {
    pub(crate) fn take(&self) -> Vec<SpanData> {
        std::mem::take(&mut self.0.lock().expect("kept"))
    }
}

fn attribute<'s>(span: &'s SpanData, key: &str) -> Option<&'s Value> {
    span.attributes
        .iter()
        .find(|KeyValue { key: k, .. }| k.as_str() == key)
        .map(|kv| &kv.value)
}

pub(crate) fn text(span: &SpanData, key: &str) -> String {
    attribute(span, key).map_or_else(|| format!("no {key}"), |value| value.as_str().into_owned())
}

/// Answers with the trace and span that are current in the application.
fn router() -> Router {
    Router::new().fallback(any(|| async {
        let context = Context::current();
        let span = context.span();
        format!(
            "{} {}",
            span.span_context().trace_id(),
            span.span_context().span_id()
        )
    }))
}

#[tokio::test]
async fn a_served_request_is_a_span_of_the_callers_trace_and_current_in_the_application() {
    let ca = Ca::new();
    let kept = Kept::default();
    let telemetry = Telemetry::builder()
        .service_name("server")
        .exporter(kept.clone())
        .build()
        .expect("built");
    let state = listener(Mode::Strict, &[]);
    let world = World::traced(&ca, state, router(), telemetry.clone(), |server| server).await;
    let mut client = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let http = client
        .send("/x?q=1", &[("traceparent", &parent)])
        .await
        .expect("answer");
    let grpc = client
        .grpc("/pkg.Greeter/SayHello", &[("grpc-timeout", "0n")])
        .await;
    assert_eq!(grpc.expect("answer").grpc_status(), Some("4"));
    telemetry.flush().await;

    let spans = kept.take();
    let [served, refused] = &spans[..] else {
        panic!("two spans: {spans:?}")
    };
    assert_eq!(
        http.text(),
        format!("{trace} {}", served.span_context.span_id())
    );
    assert_eq!(served.name, "POST");
    assert_eq!(served.span_kind, SpanKind::Server);
    assert_eq!(served.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(served.parent_span_is_remote);
    for (key, expected) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/x"),
        ("url.scheme", "https"),
        ("server.address", "server.default"),
        ("network.peer.address", "127.0.0.1"),
        ("mesh.principal", ALICE),
    ] {
        assert_eq!(text(served, key), expected);
    }
    assert_eq!(served.status, Status::Unset);

    assert_eq!(refused.name, "pkg.Greeter/SayHello");
    assert_ne!(refused.span_context.trace_id().to_string(), trace);
    for (key, expected) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "pkg.Greeter/SayHello"),
        ("rpc.response.status_code", "DEADLINE_EXCEEDED"),
        ("error.type", "DEADLINE_EXCEEDED"),
    ] {
        assert_eq!(text(refused, key), expected);
    }
    assert!(matches!(refused.status, Status::Error { .. }));
}

#[tokio::test]
async fn a_call_is_a_span_and_each_attempt_a_child_that_goes_out_as_traceparent() {
    let kept = Kept::default();
    let telemetry = Telemetry::builder()
        .exporter(kept.clone())
        .build()
        .expect("built");
    let method = Method::GET;
    let mut call = telemetry.start_call_span(|| CallHead {
        protocol: Protocol::Http,
        method: &method,
        path: "/x",
        authority: "reviews.default:9080",
    });
    let mut sent = Vec::new();
    for (number, code) in [(1, Code::ConnectFailure), (2, Code::Http(200))] {
        let mut headers = HeaderMap::new();
        let endpoint = ([10, 0, 0, number], 80).into();
        call.start_attempt(number.into(), "reviews", endpoint, &mut headers);
        call.end_attempt(code);
        sent.push(headers["traceparent"].to_str().expect("text").to_owned());
    }
    call.set_cluster("reviews");
    call.end(Code::Http(200));
    telemetry.shutdown().await;

    let spans = kept.take();
    let [first, second, call] = &spans[..] else {
        panic!("three spans: {spans:?}")
    };
    for (attempt, traceparent) in [first, second].into_iter().zip(&sent) {
        assert_eq!(attempt.parent_span_id, call.span_context.span_id());
        let (trace, span) = (call.span_context.trace_id(), attempt.span_context.span_id());
        assert_eq!(*traceparent, format!("00-{trace}-{span}-01"));
        assert_eq!(attempt.span_kind, SpanKind::Client);
        assert_eq!(text(attempt, "mesh.cluster"), "reviews");
    }
    assert_eq!(text(first, "error.type"), "connect_failure");
    assert_eq!(text(first, "mesh.endpoint"), "10.0.0.1:80");
    assert_eq!(attribute(first, "http.request.resend_count"), None);
    assert_eq!(text(second, "http.request.resend_count"), "1");
    assert_eq!(text(call, "url.full"), "http://reviews.default:9080/x");
    assert_eq!(text(call, "server.port"), "9080");
    assert_eq!(text(call, "mesh.cluster"), "reviews");
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_goes_on_and_records_nothing() {
    let kept = Kept::default();
    let telemetry = Telemetry::builder()
        .exporter(kept.clone())
        .sampler_ratio(0.0)
        .build()
        .expect("built");
    let method = Method::GET;
    let mut call = telemetry.start_call_span(|| CallHead {
        protocol: Protocol::Http,
        method: &method,
        path: "/x",
        authority: "reviews.default:9080",
    });
    let mut headers = HeaderMap::new();
    call.start_attempt(1, "reviews", ([10, 0, 0, 1], 80).into(), &mut headers);
    let sent = headers["traceparent"].to_str().expect("text");
    let trace = call
        .context()
        .expect("a context")
        .span()
        .span_context()
        .trace_id();
    assert!(
        sent.starts_with(&format!("00-{trace}-")) && sent.ends_with("-00"),
        "{sent}"
    );
    call.end_attempt(Code::Http(200));
    call.end(Code::Http(200));
    telemetry.shutdown().await;
    assert_eq!(kept.take().len(), 0);
}

#[tokio::test]
async fn without_an_exporter_nothing_goes_out() {
    let telemetry = Telemetry::disabled();
    let method = Method::GET;
    let mut call = telemetry.start_call_span(|| CallHead {
        protocol: Protocol::Http,
        method: &method,
        path: "/",
        authority: "a",
    });
    let mut headers = HeaderMap::new();
    call.start_attempt(1, "a", ([127, 0, 0, 1], 1).into(), &mut headers);
    call.end_attempt(Code::Http(200));
    assert!(call.context().is_none() && headers.is_empty());
    telemetry.shutdown().await;
}

/// What a collector gets: path, content type, and the length of the body.
type Exports = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

fn collector() -> (Router, Exports) {
    let exports = Exports::default();
    let kept = Arc::clone(&exports);
    let router = Router::new().fallback(any(move |request: Request| async move {
        let path = request.uri().path().to_owned();
        let kind = request.headers()["content-type"]
            .to_str()
            .expect("text")
            .to_owned();
        let body = to_bytes(request.into_body(), 1 << 20).await.expect("body");
        let mut response = Response::new(Body::empty());
        if kind == "application/grpc" {
            response
                .headers_mut()
                .insert("content-type", "application/grpc".parse().expect("v"));
            response
                .headers_mut()
                .insert("grpc-status", "0".parse().expect("value"));
        }
        kept.lock().expect("kept").push((path, kind, body.to_vec()));
        response
    }));
    (router, exports)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_a_collector_over_http_and_grpc() {
    let ca = Ca::new();
    let (router, exports) = collector();
    let world = World::with(&ca, listener(Mode::Disable, &[]), router, |server| server).await;
    let endpoint = format!("http://{}", world.addr);
    for (telemetry, path, kind) in [
        (
            Telemetry::builder().otlp_http(&endpoint),
            "/v1/traces",
            "application/x-protobuf",
        ),
        (
            Telemetry::builder().otlp_grpc(&endpoint),
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            "application/grpc",
        ),
    ] {
        let telemetry = telemetry
            .service_name("checkout")
            .sampler_ratio(1.0)
            .build()
            .expect("built");
        let method = Method::GET;
        let head = CallHead {
            protocol: Protocol::Http,
            method: &method,
            path: "/",
            authority: "a",
        };
        telemetry.start_call_span(|| head).end(Code::Http(200));
        within(telemetry.shutdown()).await;
        let got = exports.lock().expect("kept").pop().expect("an export");
        assert_eq!((got.0.as_str(), got.1.as_str()), (path, kind));
        assert!(
            got.2.windows(8).any(|window| window == b"checkout"),
            "the service's name"
        );
    }
}

#[tokio::test]
async fn metrics_are_served_to_a_scraper() {
    let ca = Ca::new();
    let deny = rbac(
        RbacAction::Deny,
        "nobody",
        mesh_core::config::Principal::Any,
    );
    let world = World::start(&ca, listener(Mode::Disable, &[deny])).await;
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    client.get("/").await.expect("answer");
    world
        .counted("mesh_server_requests_total{code=\"4xx\"} 1")
        .await;

    let socket = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = socket.local_addr().expect("address");
    let serving = tokio::spawn(serve_metrics(socket, world.telemetry.metrics().clone()));
    let mut scraper = Client::plain(addr, Alpn::Http1).await.expect("connect");
    assert_eq!(scraper.get("/metrics").await.expect("answer").status, 405);
    assert_eq!(scraper.get("/").await.expect("answer").status, 404);
    let Client::H1(sender) = &mut scraper else {
        panic!("HTTP/1.1")
    };
    let request = http::Request::get("/metrics")
        .header("host", "a")
        .body(Default::default());
    sender.ready().await.expect("ready");
    let response = sender
        .send_request(request.expect("request"))
        .await
        .expect("answer");
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .expect("body");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("text");
    for line in [
        "mesh_server_denied_total{policy=\"nobody\"} 1",
        "http_server_request_duration_seconds_count 1",
        "rpc_server_call_duration_seconds_count 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    serving.abort();
    tokio::time::timeout(Duration::from_secs(10), serving)
        .await
        .expect("ended")
        .unwrap_err();
}
