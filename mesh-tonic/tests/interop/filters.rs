//! What a FilterPolicy says of the clients of a host: Envoy and the library do the same.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use http::Request;
use mesh_tower::{Body, HttpClient};
use tower::ServiceExt;

use super::{Envoy, SECURITY, World, endpoints, found, http, start_envoy};

const POLICY: &str = "
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: greeter, namespace: default}
spec:
  host: greeter
  headers: {response: {set: {x-policy: held}}}
  buffer: {maxRequestBytes: 1024}
  session: {header: x-session}
";

/// Whoever asks the greeter.
enum Client {
    Envoy(Envoy),
    Library(HttpClient),
}

/// Status and headers of an answer.
type Answer = (u16, BTreeMap<String, String>);

impl Client {
    /// Asks with a body of so many bytes, and the header of a session.
    async fn ask(&self, bytes: usize, session: Option<&str>) -> Option<Answer> {
        match self {
            Self::Envoy(envoy) => {
                let session = session.map(|session| format!("x-session: {session}\r\n"));
                let request = format!(
                    "POST /x HTTP/1.1\r\nhost: greeter.default:8080\r\nconnection: close\r\n\
                     {}content-length: {bytes}\r\n\r\n{}",
                    session.unwrap_or_default(),
                    "a".repeat(bytes)
                );
                let address = SocketAddr::from(([127, 0, 0, 1], envoy.outbound));
                let answer = http(address, &request).await;
                let mut lines = answer.lines();
                let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
                let headers = lines.map_while(|line| line.split_once(": "));
                let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
                Some((status, headers.collect()))
            }
            Self::Library(client) => {
                let mut request = Request::post("http://greeter.default:8080/x");
                if let Some(session) = session {
                    request = request.header("x-session", session);
                }
                let body = Body::from(Bytes::from(vec![b'a'; bytes]));
                let response = client.clone().oneshot(request.body(body).unwrap()).await;
                let response = response.ok()?;
                let headers = response.headers().iter();
                let headers = headers.map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    (name.to_string(), value)
                });
                Some((response.status().as_u16(), headers.collect()))
            }
        }
    }

    /// Asks until an endpoint answers, as the policy says.
    async fn first(&self) -> String {
        found("an endpoint", async || {
            let (_, headers) = self.ask(1, None).await?;
            let session = headers.get("x-session")?;
            assert_eq!(headers["x-policy"], "held");
            Some(session.clone())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_the_library_do_what_a_filter_policy_says_of_a_host() {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let (v1, v2) = (world.greeter("v1").await, world.greeter("v2").await);
    let addresses = [v1.address, v2.address];
    world.write(
        "endpoints.yaml",
        &endpoints(&[("v1", v1.address), ("v2", v2.address)]),
    );
    world.write("policy.yaml", POLICY);
    let folder = tempfile::tempdir().unwrap();
    let frontend = ("envoy", world.token("frontend"));
    let envoy = start_envoy(world.xds_addr(), frontend, folder.path(), "GRPC").await;
    let member = world.member("frontend").await;
    let mut sessions = Vec::new();
    for client in [Client::Envoy(envoy), Client::Library(member.http_client())] {
        let session = client.first().await;
        let held = mesh_core::balance::SessionCookie::parse_address(&session).expect("an address");
        assert!(addresses.contains(&held.addresses[0]), "{held:?}");
        sessions.push((client, session));
    }
    for (client, own) in &sessions {
        // Whoever made it: a session is what both understand.
        for (_, session) in &sessions {
            for _ in 0..10 {
                let (_, headers) = client.ask(1, Some(session)).await.expect("answered");
                assert_eq!(headers.get("x-session"), None, "it is where it was");
                assert_eq!(headers["x-policy"], "held");
            }
        }
        let (status, headers) = client.ask(1025, Some(own)).await.expect("answered");
        assert_eq!(status, 413, "{headers:?}");
    }
    let control_plane = world.control_plane.as_ref().unwrap();
    assert_eq!(control_plane.metrics().nacks_total(), 0);
}
