//! One request through a front end and a greeter, with a retry, is one trace at an OTLP receiver.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};

use axum::{Router, extract::State, routing::get};
use http::Request;
use http_body_util::BodyExt;
use mesh_examples::greeter::HelloRequest;
use mesh_tower::{Body, telemetry::Telemetry};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};
use tower::ServiceExt;

use crate::world::{Client, MUST_HAPPEN, World, bind, endpoints, greeter_client};

/// A span and the service it is from.
#[derive(Clone, Debug)]
struct Received {
    service: String,
    span: Span,
}

struct Receiver {
    received: watch::Sender<Vec<Received>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut new = Vec::new();
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|a| a.key == "service.name");
            let service = format!("{:?}", name.and_then(|a| a.value).and_then(|v| v.value));
            for scope in resource_spans.scope_spans {
                new.extend(scope.spans.into_iter().map(|span| {
                    let service = service.clone();
                    Received { service, span }
                }));
            }
        }
        self.received.send_modify(|all| all.extend(new));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn start_receiver() -> (String, watch::Receiver<Vec<Received>>) {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (received, spans) = watch::channel(Vec::new());
    let service = TraceServiceServer::new(Receiver { received });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (endpoint, spans)
}

const FRONTEND: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: frontend, namespace: default}
spec:
  hosts: [frontend.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: PORT}, serviceAccount: frontend}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
";

async fn greet(State(mut greeter): State<Client>) -> Result<String, String> {
    let reply = greeter
        .say_hello(HelloRequest {
            name: "trace".into(),
        })
        .await;
    reply
        .map(|reply| reply.into_inner().message)
        .map_err(|status| status.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_retry_is_one_trace_with_the_right_parents() {
    let (endpoint, mut spans) = start_receiver().await;
    let telemetry = |service: &str| {
        let builder = Telemetry::builder()
            .service_name(service)
            .otlp_grpc(endpoint.clone());
        builder.build().unwrap()
    };
    let world = World::start().await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let greeter_telemetry = telemetry("greeter");
    let greeter = world.greeter_at(any, "v1", greeter_telemetry.clone()).await;
    let second = world.greeter_at(any, "v1", greeter_telemetry.clone()).await;
    let v1 = [("v1", greeter.address), ("v1", second.address)];
    world.write("endpoints.yaml", &endpoints(&v1));
    world.is_read().await;

    let frontend_telemetry = telemetry("frontend");
    let frontend = world
        .member_with("frontend", frontend_telemetry.clone())
        .await;
    let mut warm_up = greeter_client(&frontend);
    let listener = bind(any);
    let port = listener.local_addr().unwrap().port();
    let router = Router::new()
        .route("/greet", get(greet))
        .with_state(greeter_client(&frontend));
    tokio::spawn(async move { frontend.serve(listener, router).await });
    world.write(
        "frontend.yaml",
        &FRONTEND.replace("PORT", &port.to_string()),
    );

    let caller_telemetry = telemetry("caller");
    let caller = world.member_with("caller", caller_telemetry.clone()).await;
    // With both endpoints connected, a retry has somewhere else to go.
    let both_serve = async {
        while greeter.served.load(Relaxed) == 0 || second.served.load(Relaxed) == 0 {
            let name = "warm up".into();
            // Fails until the control plane has read the endpoints.
            if warm_up.say_hello(HelloRequest { name }).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    };
    timeout(MUST_HAPPEN, both_serve).await.expect("both serve");
    // Without a route of its own the greeter has the default policy: two retries.
    greeter.fail_next.store(1, Relaxed);
    second.fail_next.store(1, Relaxed);
    let request = Request::get("http://frontend.default/greet")
        .body(Body::empty())
        .unwrap();
    let response = caller.http_client().oneshot(request).await.unwrap();
    assert!(response.status().is_success(), "{response:?}");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "hello trace"
    );

    for telemetry in [&greeter_telemetry, &frontend_telemetry, &caller_telemetry] {
        telemetry.flush().await;
    }
    // Caller: call, attempt. Front end: server, call, three attempts. Greeter: three servers.
    // What came is shown by the check when it is not all.
    _ = timeout(
        MUST_HAPPEN,
        spans.wait_for(|spans| of_the_caller(spans).len() >= 10),
    )
    .await;
    let spans = of_the_caller(&spans.borrow());
    check(&spans);
}

/// The spans of the trace that the caller began.
fn of_the_caller(spans: &[Received]) -> Vec<Received> {
    let root = spans.iter().find(|r| r.service.contains("caller"));
    let trace = root.map(|r| r.span.trace_id.clone()).unwrap_or_default();
    spans
        .iter()
        .filter(|r| r.span.trace_id == trace)
        .cloned()
        .collect()
}

fn check(spans: &[Received]) {
    let describe: Vec<_> = spans
        .iter()
        .map(|r| (&r.service, &r.span.name, r.span.kind))
        .collect();
    assert_eq!(spans.len(), 10, "{describe:?}");
    assert!(
        spans
            .iter()
            .all(|r| r.span.trace_id == spans[0].span.trace_id),
        "one trace"
    );
    let children = |parent: &Span| -> Vec<&Received> {
        let mut found: Vec<_> = spans
            .iter()
            .filter(|r| r.span.parent_span_id == parent.span_id)
            .collect();
        found.sort_by_key(|r| r.span.start_time_unix_nano);
        found
    };
    let is = |received: &Received, service: &str, kind: SpanKind, name: &str| {
        assert!(received.service.contains(service), "{received:?}");
        assert_eq!(
            (received.span.kind, received.span.name.as_str()),
            (kind as i32, name)
        );
    };
    let rpc = "greeter.v1.Greeter/SayHello";

    let roots: Vec<_> = spans
        .iter()
        .filter(|r| r.span.parent_span_id.is_empty())
        .collect();
    assert_eq!(roots.len(), 1, "{describe:?}");
    is(roots[0], "caller", SpanKind::Client, "GET");
    let attempts = children(&roots[0].span);
    assert_eq!(attempts.len(), 1);
    is(attempts[0], "caller", SpanKind::Client, "GET");
    let served = children(&attempts[0].span);
    assert_eq!(served.len(), 1);
    is(served[0], "frontend", SpanKind::Server, "GET");
    let calls = children(&served[0].span);
    assert_eq!(calls.len(), 1);
    is(calls[0], "frontend", SpanKind::Client, rpc);
    let attempts = children(&calls[0].span);
    assert_eq!(attempts.len(), 3, "two failed, one worked");
    for (attempt, fails) in attempts.iter().zip([true, true, false]) {
        is(attempt, "frontend", SpanKind::Client, rpc);
        let code = attempt
            .span
            .status
            .as_ref()
            .map(|status| status.code)
            .unwrap_or_default();
        assert_eq!(code == StatusCode::Error as i32, fails, "{attempt:?}");
        let served = children(&attempt.span);
        assert_eq!(served.len(), 1);
        is(served[0], "greeter", SpanKind::Server, rpc);
    }
}
