//! Requests that another service must permit: a real authorization server, asked through the mesh.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::HttpRequest,
            authorization_server::{Authorization, AuthorizationServer},
            check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::rpc,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use mesh_tower::{Body, Mesh, identity::PeerIdentity};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, Response, Status};
use tower::ServiceExt;

use crate::world::{MUST_HAPPEN, World, bind, endpoints, greeter_client};

/// Decides by the header `x-ask` of a request; remembers what it was told.
#[derive(Clone, Default)]
struct Decider {
    told: Arc<Mutex<Vec<Told>>>,
}

/// What a decider was told, and by whom.
#[derive(Clone, Debug)]
struct Told {
    by: String,
    check: CheckRequest,
}

impl Told {
    fn http(&self) -> &HttpRequest {
        let request = self.check.attributes.as_ref().unwrap().request.as_ref();
        request.unwrap().http.as_ref().unwrap()
    }
}

pub(crate) fn option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.into(),
            value: value.into(),
            ..HeaderValue::default()
        }),
        append_action: action as i32,
        ..HeaderValueOption::default()
    }
}

fn answer(code: Code, http_response: HttpResponse) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code: code as i32,
            ..rpc::Status::default()
        }),
        http_response: Some(http_response),
        ..CheckResponse::default()
    }
}

#[tonic::async_trait]
impl Authorization for Decider {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let peer = request.extensions().get::<PeerIdentity>();
        let by = peer.map_or_else(String::new, |peer| peer.principal().to_owned());
        let check = request.into_inner();
        let told = Told { by, check };
        let asked = told.http().headers.get("x-ask").cloned();
        self.told.lock().unwrap().push(told);
        let overwrite = HeaderAppendAction::OverwriteIfExistsOrAdd;
        Ok(Response::new(match asked.as_deref() {
            Some("pass") => answer(
                Code::Ok,
                HttpResponse::OkResponse(OkHttpResponse {
                    headers: vec![option("x-user", "alice", overwrite)],
                    headers_to_remove: vec!["x-ask".into()],
                    response_headers_to_add: vec![option("x-decided", "yes", overwrite)],
                    ..OkHttpResponse::default()
                }),
            ),
            Some("fail") => return Err(Status::unavailable("asked to fail")),
            _ => answer(
                Code::PermissionDenied,
                HttpResponse::DeniedResponse(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 401 }),
                    headers: vec![option("x-why", "no ticket", overwrite)],
                    body: "who are you?".into(),
                }),
            ),
        }))
    }
}

/// A running decider, itself a member of the mesh.
struct Running {
    decider: Decider,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(world: &World) -> Self {
        let mesh: Mesh = world.member("authz").await;
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = listener.local_addr().unwrap();
        let decider = Decider::default();
        let server = AuthorizationServer::new(decider.clone());
        let routes = tonic::service::Routes::new(server).prepare();
        let task = tokio::spawn(async move { _ = mesh.serve(listener, routes).await });
        Self {
            decider,
            address,
            task,
        }
    }

    fn told(&self) -> Vec<Told> {
        self.decider.told.lock().unwrap().clone()
    }
}

/// The decider's service, and who asks it about what.
fn objects(decider: SocketAddr, provider: &str) -> String {
    format!(
        "
kind: ServiceEntry
metadata: {{name: authz}}
spec:
  hosts: [authz.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {}}}, labels: {{app: authz}}, serviceAccount: authz}}]
---
kind: MeshPolicy
metadata: {{name: providers}}
spec:
  extensionProviders:
  - name: decider
    envoyExtAuthzGrpc: {{service: authz, port: 9000, timeout: 15s, {provider}}}
---
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
kind: AuthorizationPolicy
metadata: {{name: decided}}
spec:
  action: CUSTOM
  targetRefs: [{{kind: Service, group: '', name: greeter}}]
  provider: {{name: decider}}
  rules:
  - to: [{{operation: {{notPaths: [/open]}}}}]
",
        decider.port()
    )
}

/// What the greeter says over HTTP: status, headers, body.
async fn ask(
    mesh: &Mesh,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HashMap<String, String>, String) {
    let mut request = Request::get(format!("http://greeter.default:8080{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = mesh.http_client().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let headers = head.headers.iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status,
        headers.collect(),
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

/// Asks until the answer has this status.
async fn comes_to(mesh: &Mesh, path: &str, headers: &[(&str, &str)], wanted: StatusCode) {
    let asked = async {
        while ask(mesh, path, headers).await.0 != wanted {
            tokio::task::yield_now().await;
        }
    };
    timeout(MUST_HAPPEN, asked).await.expect("the status");
}

/// An application that says which user it sees.
async fn application(world: &World) -> SocketAddr {
    let mesh = world.member("greeter").await;
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let address = listener.local_addr().unwrap();
    let echo = axum::Router::new().fallback(async |headers: http::HeaderMap| {
        let seen = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("-").to_owned()
        };
        format!("{} {}", seen("x-user"), seen("x-ask"))
    });
    tokio::spawn(async move { mesh.serve(listener, echo).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_custom_policy_matches_is_decided_by_its_provider() {
    let world = World::start().await;
    let decider = Running::start(&world).await;
    let address = application(&world).await;
    world.write("authz.yaml", &objects(decider.address, "failOpen: false"));
    world.write("endpoints.yaml", &endpoints(&[("v1", address)]));
    let frontend = world.member("frontend").await;
    comes_to(&frontend, "/", &[("x-ask", "pass")], StatusCode::OK).await;
    comes_to(&frontend, "/", &[], StatusCode::UNAUTHORIZED).await;

    // It passes, changed as the service says, and so does its answer.
    let headers = [("x-ask", "pass"), ("x-user", "mallory")];
    let (status, headers, body) = ask(&frontend, "/a?b=c", &headers).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "alice -"));
    assert_eq!(headers["x-decided"], "yes");
    let told = decider.told().pop().unwrap();
    assert_eq!(told.by, "spiffe://cluster.local/ns/default/sa/greeter");
    let attributes = told.check.attributes.as_ref().unwrap();
    let source = attributes.source.as_ref().unwrap();
    assert_eq!(
        source.principal,
        "spiffe://cluster.local/ns/default/sa/frontend"
    );
    let http = told.http();
    assert_eq!(
        (http.method.as_str(), http.path.as_str()),
        ("GET", "/a?b=c")
    );
    assert_eq!(http.host, "greeter.default:8080");
    assert_eq!(http.headers["x-user"], "mallory");
    assert_eq!(http.headers[":path"], "/a?b=c");

    // It does not.
    let (status, headers, body) = ask(&frontend, "/a", &[]).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::UNAUTHORIZED, "who are you?")
    );
    assert_eq!(headers["x-why"], "no ticket");
    let refused = greeter_client(&frontend).say_hello(crate::hello()).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "who are you?")
    );

    // What no rule matches is nobody's business.
    let before = decider.told().len();
    let (status, _, body) = ask(&frontend, "/open", &[]).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "- -"));
    assert_eq!(decider.told().len(), before);
    decider.task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_cannot_be_asked_refuses_unless_it_is_told_to_fail_open() {
    let world = World::start().await;
    let decider = Running::start(&world).await;
    let address = application(&world).await;
    world.write(
        "authz.yaml",
        &objects(decider.address, "statusOnError: '503'"),
    );
    world.write("endpoints.yaml", &endpoints(&[("v1", address)]));
    let frontend = world.member("frontend").await;
    comes_to(&frontend, "/", &[("x-ask", "pass")], StatusCode::OK).await;
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    comes_to(&frontend, "/", &[("x-ask", "fail")], unavailable).await;
    // Nobody listens there any more.
    decider.task.abort();
    comes_to(&frontend, "/", &[("x-ask", "pass")], unavailable).await;
    world.write("authz.yaml", &objects(decider.address, "failOpen: true"));
    comes_to(&frontend, "/", &[("x-ask", "fail")], StatusCode::OK).await;

    // A provider that nobody declared.
    let unknown =
        objects(decider.address, "failOpen: true").replace("{name: decider}", "{name: who}");
    world.write("authz.yaml", &unknown);
    comes_to(&frontend, "/open", &[], StatusCode::FORBIDDEN).await;
}

/// Who did what to what, as the control plane wrote it down.
fn written(world: &World) -> Vec<[String; 4]> {
    let text = std::fs::read_to_string(world.data_dir().join("audit.log")).unwrap_or_default();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["principal", "action", "object", "result"]
            .map(|field| line[field].as_str().unwrap().to_owned())
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_writes_down_who_changed_what() {
    let world = World::start().await;
    let is_written = async |wanted: [&str; 3], result: &str| {
        let found = async {
            loop {
                let lines = written(&world);
                let matches = |line: &&[String; 4]| {
                    line[0].contains(wanted[0])
                        && line[1] == wanted[1]
                        && line[2].contains(wanted[2])
                        && line[3].contains(result)
                };
                if lines.iter().any(|line| matches(&line)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let found = timeout(MUST_HAPPEN, found).await;
        assert!(found.is_ok(), "{wanted:?} {result}: {:?}", written(&world));
    };
    let policy = "AuthorizationPolicy default/closed";
    let text = |action: &str| {
        format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: closed}}\nspec: {{action: {action}, rules: [{{}}]}}\n"
        )
    };
    world.write("closed.yaml", &text("DENY"));
    is_written(["closed.yaml", "object.create", policy], "ok").await;
    world.write("closed.yaml", &text("CUSTOM"));
    is_written(["closed.yaml", "object.update", policy], "MESH0106").await;
    world.write("closed.yaml", "");
    is_written(["closed.yaml", "object.delete", policy], "ok").await;

    let member = world.member("frontend").await;
    is_written(["frontend", "certificate.issue", "certificate "], "ok").await;
    let body = r#"{"Name": "api", "ID": "api-1", "Address": "127.0.0.1", "Port": 1}"#;
    for (path, body) in [
        ("/v1/agent/service/register", body),
        ("/v1/agent/service/deregister/api-1", ""),
    ] {
        put(world.http_addr(), path, body).await;
    }
    is_written(
        ["127.0.0.1", "instance.register", "default/api api-1"],
        "ok",
    )
    .await;
    is_written(["127.0.0.1", "instance.deregister", "api-1"], "ok").await;
    drop(member);

    // Join tokens, who wanted to change the roots, and the deny list, which nobody asks for.
    is_written(["uid:", "token.create", "join_token "], "ok").await;
    is_written(["frontend", "token.use", "join_token "], "ok").await;
    let begin = "/v1/ca/rotation?do=begin";
    let answer = send(world.http_addr(), "POST", begin, "").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    is_written(["127.0.0.1", "admin.post", "/v1/ca/rotation"], "refused").await;
    std::fs::write(world.data_dir().join("denied"), "ns/default/sa/mallory\n").unwrap();
    is_written(["uid:", "deny.add", "ns/default/sa/mallory"], "ok").await;
}

async fn put(address: SocketAddr, path: &str, body: &str) {
    let answer = send(address, "PUT", path, body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

async fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
