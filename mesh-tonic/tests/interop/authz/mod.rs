//! Authorisation, tokens and paths against a real Envoy: the same objects, requests and verdicts.
//!
//! The control plane compiles the objects of each case. Its listener for servers is encoded for Envoy,
//! which serves it as a proxy beside a server does, and is decided about by the same engine that the
//! library's server asks. Both must come to the verdict that is written down.

mod cases;
mod conditions;
mod external;
mod external_http;
mod keys;
mod paths;
mod proxy;
mod signer;
mod tokens;
mod verdicts;

use std::{net::SocketAddr, sync::Arc};

use control_plane::{
    compile::{CompileOptions, compile},
    encode::{self, ClientClass},
    source::load_text,
};
use mesh_core::config::{InboundListener, Listener, ListenerKind};
use mesh_tower::server::{AuthorizationServices, InboundState, Server};
use tokio::{net::TcpListener, sync::watch};

/// The server's listener that objects compile to, at an address.
fn listener(objects: &str, address: SocketAddr) -> Listener {
    let around = format!(
        "kind: Service\nmetadata: {{name: api}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
         kind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: api, labels: {{kubernetes.io/service-name: api}}}}\n\
         endpoints: [{{addresses: [{}]}}]\nports: [{{name: http, port: {}}}]\n---\n\
         kind: PeerAuthentication\nmetadata: {{name: plain}}\nspec: {{mtls: {{mode: DISABLE}}}}\n",
        address.ip(),
        address.port()
    );
    let loaded = load_text("case.yaml", &format!("{around}---\n{objects}"));
    let (compiled, found) = compile(&loaded.objects, &CompileOptions::default());
    let found: Vec<_> = loaded.diagnostics.iter().chain(&found).collect();
    assert!(found.is_empty(), "{objects}\n{found:?}");
    compiled.inbound_listener("inbound", address, "default", &Default::default())
}

fn inbound(listener: &Listener) -> &InboundListener {
    match &listener.kind {
        ListenerKind::Inbound(inbound) => inbound,
        ListenerKind::Api(_) => unreachable!("it is a server's"),
    }
}

/// Answers with the path that it sees, and with the headers `x-t-…` and those that hold tokens.
fn echo() -> axum::Router {
    axum::Router::new().fallback(async |uri: http::Uri, headers: http::HeaderMap| {
        let mut seen = uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        let mut names: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        let is_told = |name: &&str| name.starts_with("x-t-") || TOKENS.contains(name);
        for name in names.into_iter().filter(is_told) {
            for value in headers.get_all(name) {
                seen.push_str(&format!(" {name}={}", value.to_str().unwrap()));
            }
        }
        ([("x-t-there", "application")], seen)
    })
}

/// Headers that hold tokens.
const TOKENS: [&str; 2] = ["authorization", "cookie"];

/// Our server with a listener.
async fn serve(listener: &Listener, socket: TcpListener) {
    serve_with(listener, socket, None).await;
}

/// The same, which can ask authorization services.
async fn serve_with(
    listener: &Listener,
    socket: TcpListener,
    services: Option<Arc<dyn AuthorizationServices>>,
) {
    let state = InboundState::Ready(Arc::new(inbound(listener).clone()));
    let (keep, state) = watch::channel(state);
    let application = echo();
    tokio::spawn(async move {
        let _keep = keep;
        let mut server = Server::builder(state);
        if let Some(services) = services {
            server = server.authorization_services(services);
        }
        let server = server.build();
        server
            .serve(socket, application, std::future::pending())
            .await
    });
}

/// What a server says to a raw request: its status, and its body or where it sends the caller.
async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let answer = super::http(address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("location")
            .then(|| value.to_owned())
    });
    let body = unchunked(head, body);
    (status.unwrap_or(0), location.unwrap_or(body))
}

fn unchunked(head: &str, body: &str) -> String {
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return body.to_owned();
    }
    let mut lines = body.split("\r\n");
    let mut text = String::new();
    while let (Some(_), Some(chunk)) = (lines.next(), lines.next()) {
        text.push_str(chunk);
    }
    text
}

/// The same as Envoy gets it.
fn for_envoy(listener: &Listener) -> envoy_types::pb::envoy::config::listener::v3::Listener {
    encode::listener(listener, ClientClass::Envoy)
}
