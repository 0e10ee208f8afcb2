//! Gateway API's routes, decided by the engine of the clients.
//!
//! `conformance` has the names of the mesh tests of Gateway API's conformance suite; what those send
//! over a network is decided offline here.

mod conformance;
mod rules;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use mesh_core::{
    ClusterName,
    rng::SplitMix64,
    route::{
        Caller, ChosenCluster, DecisionAction, Features, RequestView, RouteTable, StreamLimits,
    },
};

use super::*;

/// The echo services of the conformance suite, in the namespace `mesh`.
const ECHO: &str = "
kind: Service
metadata: {name: echo, namespace: mesh}
spec: {ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
---
kind: Service
metadata: {name: echo-v1, namespace: mesh}
spec: {ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
---
kind: Service
metadata: {name: echo-v2, namespace: mesh}
spec: {ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
";

/// What becomes of a request.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    /// 200 when it is forwarded.
    status: u16,
    /// The Service that it goes to, without its namespace.
    backend: String,
    /// Path and authority as the backend sees them.
    url: String,
    /// Headers that the backend sees.
    sent: HeaderMap,
    /// Headers of the response, when the backend sends none.
    headers: HeaderMap,
    mirrors: usize,
}

type Said<'s> = (&'s str, &'s str, &'s str);

struct Mesh(Compiled);

impl Mesh {
    /// The echo services with routes; nothing is wrong with them.
    fn new(routes: &str) -> Self {
        let (mesh, findings) = Self::with_findings(routes);
        assert_eq!(findings, [""; 0]);
        mesh
    }

    fn with_findings(routes: &str) -> (Self, Vec<String>) {
        let loaded = load_text("t.yaml", &format!("{ECHO}---\n{routes}"));
        let (compiled, findings) = compile(&loaded.objects, &CompileOptions::default());
        let findings = loaded.diagnostics.iter().chain(&findings);
        (Self(compiled), findings.map(ToString::to_string).collect())
    }

    /// A request of a client in `namespace`, as its engine decides it.
    fn ask(&self, namespace: &str, request: &Request<()>, draw: u64) -> Answer {
        let authority = request.uri().authority().expect("an authority").as_str();
        let Some(listener) = self.0.resolve_listener(authority, namespace) else {
            panic!("{authority} is nobody")
        };
        let ListenerKind::Api(ApiListener {
            routes: RouteSource::Rds(name),
            ..
        }) = listener.kind
        else {
            panic!()
        };
        let view = self.0.view(name.as_str(), namespace).expect("routes");
        let names: Vec<&ClusterName> = self.0.clusters.keys().collect();
        let index = |name: &ClusterName| names.iter().position(|n| *n == name).map(|i| i as u32);
        let table = RouteTable::compile_for(
            Features::ALL,
            &view.config,
            authority,
            &StreamLimits::default(),
            &index,
        );
        let table = table.expect("a table");
        let (method, uri) = (request.method(), request.uri());
        let asked = RequestView::new(method, uri, authority, request.headers());
        let decided = table.decide(&asked, &Caller::default(), &mut SplitMix64::new(draw));
        let Some(decision) = decided else {
            return Answer {
                status: 404,
                ..Answer::default()
            };
        };
        let mut answer = Answer::default();
        match &decision.action {
            DecisionAction::Forward(forwarding) => {
                let ChosenCluster::Index(index) = forwarding.cluster else {
                    panic!()
                };
                let cluster = names[index as usize].as_str();
                let fqdn = cluster.rsplit('|').next().expect("a name");
                answer.backend = fqdn.split('.').next().expect("a service").to_owned();
                let path = uri.path_and_query().expect("a path").as_str();
                let path = forwarding.path_and_query.as_deref().unwrap_or(path);
                let host = forwarding.authority.as_deref().unwrap_or(authority);
                answer.url = format!("{host}{path}");
                answer.sent = request.headers().clone();
                decision.apply_request_headers(&asked, &mut answer.sent);
                answer.status = 200;
                answer.mirrors = forwarding.mirrors.len();
            }
            DecisionAction::Redirect { status, location } => {
                answer.status = *status;
                answer.url.clone_from(location);
            }
            DecisionAction::Unsupported(_) => answer.status = 500,
            other => panic!("{other:?}"),
        }
        let status = StatusCode::from_u16(answer.status).expect("a status");
        decision.apply_response_headers(&asked, status, &mut answer.headers);
        answer
    }

    fn get(&self, url: &str) -> Answer {
        self.ask("mesh", &get(url, &[]), 1)
    }

    /// The backends of many equal requests, and 500 for those that fail, with their counts.
    fn shares(&self, url: &str) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for draw in 0..1_000 {
            let answer = self.ask("mesh", &get(url, &[]), draw);
            let name = match answer.status {
                200 => answer.backend,
                status => status.to_string(),
            };
            *shares.entry(name).or_insert(0) += 1;
        }
        shares
    }

    /// What each parent says: the type, status and reason of its conditions.
    fn conditions(&self, object: &str) -> Vec<(String, Vec<Said<'_>>)> {
        let status = self.0.statuses.values().find(|held| held.object == object);
        let parents = &status
            .unwrap_or_else(|| panic!("{object} has no status"))
            .parents;
        let conditions = |parent: &ParentStatus| {
            let all = parent.conditions.iter();
            all.map(|held| (held.r#type, held.status, held.reason))
                .collect()
        };
        let parents = parents.iter();
        parents
            .map(|parent| (parent.parent.clone(), conditions(parent)))
            .collect()
    }
}

fn get(url: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(format!("http://{url}"))
        .body(())
        .expect("a request");
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        let value = HeaderValue::from_str(value).expect("a value");
        request.headers_mut().append(name, value);
    }
    request
}

fn call(method: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = get(&format!("echo:7070/{method}"), headers);
    *request.method_mut() = Method::POST;
    request
}

/// An HTTPRoute of the namespace `mesh` on the Service `echo`.
fn route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: mesh}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n{rules}---\n"
    )
}
