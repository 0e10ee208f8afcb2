//! External authorisation over HTTP: one service decides for Envoy and for our server, and both must do
//! the same with what it answers, and tell it the same, bodies included.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use mesh_examples::ports::free_address;
use tokio::{net::TcpListener, time::timeout};

use super::{echo, external, for_envoy, listener, proxy};
use crate::world::{MUST_HAPPEN, World};

const AUTHZ: &str = "outbound|9000||authz.default.svc.cluster.local";
/// Requests in flight: Envoy takes a second to close after a refusal.
const IN_FLIGHT: usize = 16;

/// How the providers of each run differ.
const PROVIDERS: [&str; 3] = [
    "failOpen: false, statusOnError: '503'",
    "failOpen: true, pathPrefix: /check, includeRequestHeadersInCheck: [x-t-*, x-case, x-who, x-number], \
     includeAdditionalHeadersInCheck: {x-t-added: ours}, \
     headersToUpstreamOnAllow: [x-t-user, x-t-there], headersToDownstreamOnAllow: [x-t-told], \
     headersToDownstreamOnDeny: [x-t-why], \
     includeRequestBodyInCheck: {maxRequestBytes: 8}",
    "headersToUpstreamOnAllow: ['x-t-u*'], includeRequestHeadersInCheck: ['*'], \
     includeRequestBodyInCheck: {maxRequestBytes: 8, allowPartialMessage: true}",
];

fn objects(provider: &str, decider: SocketAddr) -> String {
    // What tells cases apart must be told.
    let told = if provider.contains("includeRequestHeadersInCheck") {
        ""
    } else {
        ", includeRequestHeadersInCheck: [x-case, x-who, x-number]"
    };
    format!(
        "---
kind: ServiceEntry
metadata: {{name: authz}}
spec:
  hosts: [authz.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
---
kind: MeshPolicy
metadata: {{name: providers}}
spec: {{extensionProviders: [{{name: p, envoyExtAuthzHttp: {{service: authz, port: 9000, {provider}{told}}}}}]}}
---
kind: AuthorizationPolicy
metadata: {{name: decided}}
spec:
  action: CUSTOM
  provider: {{name: p}}
  rules: [{{to: [{{operation: {{notPaths: [/open]}}}}]}}]
",
        decider.port()
    )
}

/// What the service answers in each case: its status, headers and body.
type Said = (u16, &'static [(&'static str, &'static str)], &'static str);

const HEADERS: &[(&str, &str)] = &[
    ("x-t-user", "alice"),
    ("x-t-there", "new"),
    ("x-t-told", "yes"),
    ("x-t-why", "because"),
    ("x-t-why", "twice"),
    ("x-t-other", "1"),
];

fn said() -> BTreeMap<&'static str, Said> {
    BTreeMap::from([
        ("bare", (200, &[][..], "")),
        ("headers", (200, HEADERS, "ignored")),
        (
            "remove",
            (
                200,
                &[("x-envoy-auth-headers-to-remove", "x-t-there, x-t-none")],
                "",
            ),
        ),
        ("created", (201, HEADERS, "not 200")),
        (
            "unauthorized",
            (
                401,
                &[("www-authenticate", "Basic"), ("x-t-why", "a")],
                "who?",
            ),
        ),
        ("forbidden", (403, &[], "")),
        (
            "redirect",
            (302, &[("location", "https://login.example/")], ""),
        ),
        ("limited", (429, HEADERS, "slowly")),
        ("failed", (500, HEADERS, "broken")),
        ("away", (503, &[], "")),
    ])
}

/// What the service was told, by who told it and about which request.
type Told = Arc<Mutex<BTreeMap<(String, String), String>>>;

async fn decide(
    told: Told,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, HeaderMap, &'static str) {
    let header = |name: &str| {
        let value = headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or("-").to_owned()
    };
    let mut seen = format!("{method} {uri} host={} body={body:?}", header("host"));
    let ours = [
        "authorization",
        "content-length",
        "cookie",
        "x-envoy-auth-partial-body",
    ];
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    for name in names {
        if ours.contains(&name) || name.starts_with("x-t-") {
            seen.push_str(&format!(" {name}={}", header(name)));
        }
    }
    let key = (header("x-who"), header("x-number"));
    told.lock().unwrap().insert(key, seen);
    let (status, headers, body) = said()[header("x-case").as_str()];
    let mut answer = HeaderMap::new();
    for (name, value) in headers {
        answer.append(*name, HeaderValue::from_static(value));
    }
    (StatusCode::from_u16(status).unwrap(), answer, body)
}

async fn decider(told: Told) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: String| {
        decide(Arc::clone(&told), method, uri, headers, body)
    };
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(socket, router).await });
    address
}

/// Our server, which asks through its mesh.
async fn our_server(objects: &str) -> (World, SocketAddr) {
    let world = World::start().await;
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mesh = world.member("api").await;
    tokio::spawn(async move { mesh.serve(socket, echo()).await });
    let service = format!(
        "---
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
",
        address.port()
    );
    world.write("api.yaml", &format!("{objects}{service}"));
    (world, address)
}

/// A request, but for who is asked and its number.
fn requests() -> Vec<String> {
    let long = "x".repeat(9);
    let bodies = [None, Some("tea"), Some("12345678"), Some(&long)];
    let mut requests = vec!["GET /open HTTP/1.1\r\n\r\n".to_owned()];
    for case in said().keys() {
        for body in bodies {
            let (method, length) = match body {
                None => ("GET", String::new()),
                Some(body) => ("POST", format!("content-length: {}\r\n", body.len())),
            };
            requests.push(format!(
                "{method} /p?a=1 HTTP/1.1\r\nx-case: {case}\r\nauthorization: Bearer t\r\n\
                 cookie: c=d\r\n{length}\r\n{}",
                body.unwrap_or_default()
            ));
        }
    }
    requests
}

fn asked(request: &str, who: &str, number: usize) -> String {
    let (first, rest) = request.split_once("\r\n").unwrap();
    format!(
        "{first}\r\nhost: A.example:80\r\nx-who: {who}\r\nx-number: {number}\r\nx-t-there: 1\r\n\
         connection: close\r\n{rest}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_our_server_do_what_a_service_answers_and_tell_it_the_same() {
    let told = Told::default();
    let decider = decider(Arc::clone(&told)).await;
    let (mut served, mut listeners) = (Vec::new(), Vec::new());
    for provider in PROVIDERS {
        let envoy = free_address().unwrap();
        let objects = objects(provider, decider);
        let (world, ours) = our_server(&objects).await;
        listeners.push(for_envoy(&listener(&objects, envoy)));
        served.push((provider, world, ours, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = served[served.len() - 1].3;
    let clusters = vec![proxy::cluster(AUTHZ, decider, false)];
    let _envoy = proxy::envoy_with(folder.path(), listeners, last, clusters).await;
    for (_, _, ours, _) in &served {
        // Until it has its configuration it asks nobody, and then until it knows the service.
        let refused = asked(
            "GET /p HTTP/1.1\r\nx-case: unauthorized\r\n\r\n",
            "nobody",
            0,
        );
        let ready = async {
            while external::ask(*ours, &refused).await.0 != 401 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        timeout(MUST_HAPPEN, ready).await.expect("it is ready");
    }

    let all = served.iter().flat_map(|(provider, _, ours, envoy)| {
        let requests = requests().into_iter();
        requests.map(move |request| (*provider, request, *ours, *envoy))
    });
    let told = &told;
    let wrong = stream::iter(all.enumerate()).map(
        |(number, (provider, request, ours, envoy))| async move {
            let to = |who: &str| asked(&request, who, number);
            let (to_ours, to_envoy) = (to("ours"), to("envoy"));
            let answers = tokio::join!(
                external::ask(ours, &to_ours),
                external::ask(envoy, &to_envoy)
            );
            let told_by = |who: &str| {
                let told = told.lock().unwrap();
                told.get(&(who.to_owned(), number.to_string())).cloned()
            };
            let told = (told_by("ours"), told_by("envoy"));
            let is_same = answers.0 == answers.1 && told.0 == told.1;
            let what: String = request.chars().take(120).collect();
            (!is_same).then(|| format!("{provider}\n{what:?}\n{answers:?}\n{told:?}\n"))
        },
    );
    let wrong: Vec<_> = wrong.buffer_unordered(IN_FLIGHT).collect().await;
    let total = wrong.len();
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(
        wrong.is_empty(),
        "{} of {total}, ours and Envoy's:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
