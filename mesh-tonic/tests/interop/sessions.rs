//! Sessions that name an endpoint, or something else, beside Envoy: the same requests are served and
//! refused.

use envoy_types::pb::envoy::config::route::v3::VirtualHost;
use mesh_tower::ErrorKind;

use super::{
    beside::{Beside, Options},
    http,
    resources::{TARGET, endpoint, listener_with},
    scene::{Scene, Wire, forward, host, prefix, priorities},
    stateful::{by_header, filter, session},
    unruly::Unruly,
};

/// What a header or cookie may hold; `{}` is base64 of the server's address.
const VALUES: &[&str] = &[
    "{}",
    // Nothing, no base64, and base64 without its end.
    "",
    "!",
    "bm93aGVyZQ",
    "bm93aGVyZR==",
    // "nowhere", an address without a port, another server's, two addresses, bytes that are no text.
    "bm93aGVyZQ==",
    "MTAuMC4wLjE=",
    "MTkyLjE2OC43Ljk6ODE=",
    "MTkyLjE2OC43Ljk6ODEsMTkyLjE2OC43Ljk6ODI=",
    "gIGC",
];

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

async fn compare(strict: bool, is_header: bool) {
    let server = Unruly::start().await;
    let address = server.address;
    let only = endpoint(&address.ip().to_string(), address.port());
    let assignment = priorities("c", vec![vec![only]]);
    let session = match is_header {
        true => by_header(strict),
        false => session("", strict),
    };
    let host: VirtualHost = host(vec![prefix("/", forward("c", |_| {}))]);
    let ours = Scene::start(Wire::Http1, host.clone()).await;
    ours.plane.set([listener_with(vec![filter(&session)])]);
    ours.serve_priorities(&assignment, "c", |_| {});
    let options = Options {
        filters: vec![filter(&session)],
        ..Options::default()
    };
    let envoy = Beside::start(host, assignment, options).await;
    let mut differences = Vec::new();
    for value in VALUES {
        let value = value.replace("{}", &base64(&address.to_string()));
        // A cookie with the address alone is read as a message of Envoy's own.
        let (name, value) = match is_header {
            true => ("x-stay", value),
            false => ("cookie", format!("stay={value}")),
        };
        let mine = match ours.try_with("/good", &[(name, &value)]).await {
            Ok(reply) => reply.status.as_u16(),
            Err(error) if error.kind() == ErrorKind::NoEndpoint => 503,
            Err(error) => panic!("{error}"),
        };
        let request = format!(
            "GET /good HTTP/1.1\r\nhost: {TARGET}\r\n{name}: {value}\r\nconnection: close\r\n\r\n"
        );
        let answer = http(envoy.address, &request).await;
        let theirs = answer.split(' ').nth(1).unwrap_or_default();
        if theirs != mine.to_string() {
            differences.push(format!("{name}: {value}: {mine}, Envoy {theirs}"));
        }
    }
    assert!(differences.is_empty(), "strict {strict}: {differences:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_name_no_endpoint_are_served_and_refused_as_by_envoy() {
    for strict in [false, true] {
        for is_header in [true, false] {
            compare(strict, is_header).await;
        }
    }
}
