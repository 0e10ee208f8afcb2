//! External authorisation: one service decides for Envoy and for our server, and both must do the same
//! with what it says, and tell it the same.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter},
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            authorization_client::AuthorizationClient,
            authorization_server::{Authorization, AuthorizationServer},
            check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::{protobuf::BoolValue, rpc},
};
use mesh_core::{config::ExtAuthz, filter};
use mesh_examples::ports::free_address;
use mesh_tower::server::{AuthorizationService, AuthorizationServices, CheckError, CheckFuture};
use mesh_xds_client::check;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::{Response, Status, transport::Channel};

use super::{for_envoy, listener, proxy, serve_with};

const AUTHZ: &str = "outbound|9000||authz.default.svc.cluster.local";

fn objects(provider: &str) -> String {
    format!(
        "
kind: ServiceEntry
metadata: {{name: authz}}
spec:
  hosts: [authz.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: grpc, protocol: GRPC}}]
---
kind: MeshPolicy
metadata: {{name: providers}}
spec: {{extensionProviders: [{{name: p, envoyExtAuthzGrpc: {{service: authz, port: 9000, {provider}}}}}]}}
---
kind: AuthorizationPolicy
metadata: {{name: decided}}
spec:
  action: CUSTOM
  provider: {{name: p}}
  rules: [{{to: [{{operation: {{notPaths: [/open, /envoy.service.auth.v3.Authorization/*]}}}}]}}]
---
kind: AuthorizationPolicy
metadata: {{name: closed}}
spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/closed]}}}}]}}]}}
"
    )
}

/// A change of a header: `append`, where it is set, else `append_action`.
#[expect(deprecated, reason = "services in use set append")]
fn option(name: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.into(),
            value: value.into(),
            ..HeaderValue::default()
        }),
        append: append.map(|value| BoolValue { value }),
        append_action: action,
        ..HeaderValueOption::default()
    }
}

/// The same for a header that is there, twice, and for one that is not.
fn both(append: Option<bool>, action: i32) -> Vec<HeaderValueOption> {
    vec![
        option("x-t-there", "new", append, action),
        option("x-t-missing", "new", append, action),
    ]
}

fn allowed(ok: OkHttpResponse) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
        ..CheckResponse::default()
    }
}

fn refused(response: Option<HttpResponse>) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code: 7,
            ..rpc::Status::default()
        }),
        http_response: response,
        ..CheckResponse::default()
    }
}

fn denied(code: i32, headers: Vec<HeaderValueOption>, body: &str) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: (code > 0).then_some(HttpStatus { code }),
        headers,
        body: body.to_owned(),
    }
}

/// What the service says in each case; `None` is a call that fails.
fn verdicts() -> BTreeMap<&'static str, Option<CheckResponse>> {
    let headers = |headers| {
        Some(allowed(OkHttpResponse {
            headers,
            ..OkHttpResponse::default()
        }))
    };
    let answer = |response_headers_to_add| {
        Some(allowed(OkHttpResponse {
            response_headers_to_add,
            ..OkHttpResponse::default()
        }))
    };
    let query = |set: &[(&str, &str)], remove: &[&str]| {
        let set = set.iter().map(|(key, value)| QueryParameter {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        });
        Some(allowed(OkHttpResponse {
            query_parameters_to_set: set.collect(),
            query_parameters_to_remove: remove.iter().map(|name| (*name).to_owned()).collect(),
            ..OkHttpResponse::default()
        }))
    };
    let deny = |said: DeniedHttpResponse| Some(refused(Some(HttpResponse::DeniedResponse(said))));
    let twice = |append| {
        vec![
            option("x-t-why", "a", append, 0),
            option("x-t-why", "b", append, 0),
        ]
    };
    BTreeMap::from([
        ("ok", headers(Vec::new())),
        ("bare", Some(CheckResponse::default())),
        ("fails", None),
        ("append", headers(both(Some(true), 0))),
        ("set", headers(both(Some(false), 0))),
        ("action-append", headers(both(None, 0))),
        ("action-add", headers(both(None, 1))),
        ("action-overwrite", headers(both(None, 2))),
        ("action-overwrite-existing", headers(both(None, 3))),
        (
            "remove",
            Some(allowed(OkHttpResponse {
                headers_to_remove: vec!["x-t-there".into(), "host".into(), ":path".into()],
                ..OkHttpResponse::default()
            })),
        ),
        ("answer-append", answer(both(None, 0))),
        ("answer-add", answer(both(None, 1))),
        ("answer-overwrite", answer(both(None, 2))),
        ("answer-overwrite-existing", answer(both(None, 3))),
        ("query-set", query(&[("a", "9")], &[])),
        ("query-remove", query(&[], &["a"])),
        ("query-new", query(&[("c", "1")], &["a", "b"])),
        ("denied", Some(refused(None))),
        ("denied-empty", deny(denied(0, Vec::new(), ""))),
        (
            "denied-told",
            deny(denied(401, both(Some(false), 0), "why?")),
        ),
        ("denied-twice", deny(denied(429, twice(None), ""))),
        ("denied-append", deny(denied(429, twice(Some(true)), ""))),
        ("set-twice", headers(twice(None))),
        (
            "denied-ok",
            Some(refused(Some(HttpResponse::OkResponse(
                OkHttpResponse::default(),
            )))),
        ),
        (
            "error",
            Some(refused(Some(HttpResponse::ErrorResponse(denied(
                418,
                Vec::new(),
                "broken",
            ))))),
        ),
        ("invalid", headers(vec![option("x t", "new", None, 2)])),
    ])
}

/// What a service is told that both must tell alike.
type Told = BTreeMap<String, String>;

#[derive(Clone, Default)]
struct Decider {
    told: Arc<Mutex<BTreeMap<(String, String), Told>>>,
}

#[tonic::async_trait]
impl Authorization for Decider {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        let header = |name: &str| http.headers.get(name).cloned().unwrap_or_default();
        let case = header("x-case");
        let mut told = Told::from([
            ("method".to_owned(), http.method.clone()),
            ("path".to_owned(), http.path.clone()),
            ("host".to_owned(), http.host.clone()),
            ("scheme".to_owned(), http.scheme.clone()),
            ("protocol".to_owned(), http.protocol.clone()),
            ("size".to_owned(), http.size.to_string()),
        ]);
        let ours = [":authority", ":method", ":path", ":scheme", "host"];
        for (name, value) in &http.headers {
            if ours.contains(&name.as_str()) || name.starts_with("x-t-") {
                told.insert(name.clone(), value.clone());
            }
        }
        let key = (header("x-who"), format!("{case} {}", header("x-number")));
        self.told.lock().unwrap().insert(key, told);
        match verdicts().get(case.as_str()) {
            Some(Some(verdict)) => Ok(Response::new(verdict.clone())),
            _ => Err(Status::internal("asked to fail")),
        }
    }
}

/// Asks the service by a client of its own: there is no mesh here.
struct Direct(AuthorizationClient<Channel>);

impl AuthorizationServices for Direct {
    fn service(&self, _: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService> {
        Arc::new(Self(self.0.clone()))
    }
}

impl AuthorizationService for Direct {
    fn check(&self, request: &filter::CheckRequest<'_>) -> CheckFuture {
        let request = CheckRequest::decode(check::encode(request)).unwrap();
        let mut client = self.0.clone();
        Box::pin(async move {
            let answer = client.check(request).await;
            let answer = answer.map_err(|status| CheckError::Unavailable(status.to_string()))?;
            check::decode(&answer.into_inner().encode_to_vec()).map_err(CheckError::Invalid)
        })
    }
}

/// What the caller sees: status, headers `x-t-…`, body.
pub(super) async fn ask(address: SocketAddr, request: &str) -> (u16, Vec<String>, String) {
    let answer = super::super::http(address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let headers = head.lines().filter(|line| line.starts_with("x-t-"));
    let mut headers: Vec<_> = headers.map(str::to_owned).collect();
    headers.sort_unstable();
    let body = super::unchunked(head, body).trim_end().to_owned();
    (status.unwrap_or(0), headers, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_our_server_do_what_a_service_says_and_tell_it_the_same() {
    let decider = Decider::default();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let service = socket.local_addr().unwrap();
    let routes = tonic::service::Routes::new(AuthorizationServer::new(decider.clone())).prepare();
    tokio::spawn(async move { axum::serve(socket, routes.into_axum_router()).await });
    let channel = Channel::from_shared(format!("http://{service}")).unwrap();
    let direct = Arc::new(Direct(AuthorizationClient::new(channel.connect_lazy())));

    let providers = ["failOpen: false, statusOnError: '503'", "failOpen: true"];
    let (mut served, mut listeners) = (Vec::new(), Vec::new());
    for provider in providers {
        let envoy = free_address().unwrap();
        let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let our_address = ours.local_addr().unwrap();
        let compiled = listener(&objects(provider), our_address);
        serve_with(&compiled, ours, Some(direct.clone())).await;
        listeners.push(for_envoy(&listener(&objects(provider), envoy)));
        served.push((provider, our_address, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = served[served.len() - 1].2;
    let clusters = vec![proxy::cluster(AUTHZ, service, true)];
    let _envoy = proxy::envoy_with(folder.path(), listeners, last, clusters).await;

    let mut wrong = String::new();
    let targets = ["/p?a=1&b=2&a=3", "/open", "/closed"];
    let mut number = 0;
    for (provider, ours, envoy) in &served {
        for case in verdicts().keys() {
            for target in targets {
                number += 1;
                let request = |who: &str| {
                    format!(
                        "GET {target} HTTP/1.1\r\nhost: A.example:80\r\nx-case: {case}\r\n\
                         x-who: {who}\r\nx-number: {number}\r\nx-t-there: 1\r\nx-t-there: 2\r\n\
                         connection: close\r\n\r\n"
                    )
                };
                let (to_ours, to_envoy) = (request("ours"), request("envoy"));
                let (ours, theirs) = tokio::join!(ask(*ours, &to_ours), ask(*envoy, &to_envoy));
                let told = decider.told.lock().unwrap();
                let told_by = |who: &str| told.get(&(who.to_owned(), format!("{case} {number}")));
                if ours != theirs || told_by("ours") != told_by("envoy") {
                    wrong.push_str(&format!(
                        "{provider} {case} {target}:\n  {ours:?}\n  {theirs:?}\n  {:?}\n  {:?}\n",
                        told_by("ours"),
                        told_by("envoy")
                    ));
                }
                assert_eq!(
                    target == "/open",
                    told_by("ours").is_none(),
                    "{case} {target}"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "ours, Envoy's:\n{wrong}");
}
