//! The scenarios. Each has its own control plane and servers.

use std::{collections::BTreeSet, net::SocketAddr, sync::atomic::Ordering::SeqCst, time::Duration};

use mesh_examples::greeter::{HelloRequest, greeter_client::GreeterClient};
use mesh_tonic::MeshExt as _;
use tokio::time::Instant;

use super::{
    Backend, Client, balance, becomes, call, dial, eventually, features, member, member_with,
    plane::Plane,
    resources::{
        CDS, EDS, LDS, Named, RDS, TARGET, bad_cluster, cluster, cluster_with_limit, dns_cluster,
        endpoints, listener, route_by_weight, route_to, route_with_limit,
    },
    world::{self, MUST_HAPPEN, World},
    zones,
};

const UNAVAILABLE: &str = "Unavailable";

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) got: String,
}

/// Runs them all.
pub(crate) async fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    macro_rules! row {
        ($scenario:literal, $expected:expr, $run:expr) => {
            rows.push(Row {
                scenario: $scenario,
                expected: $expected,
                got: $run.await,
            })
        };
    }
    row!("EDS empty", UNAVAILABLE, without(&[(EDS, "c1")], true));
    row!("EDS missing", UNAVAILABLE, without(&[(EDS, "c1")], false));
    row!("CDS missing", UNAVAILABLE, without(&[(CDS, "c1")], false));
    row!("RDS missing", UNAVAILABLE, without(&[(RDS, TARGET)], false));
    row!("LDS missing", UNAVAILABLE, without(&[(LDS, TARGET)], false));
    row!("what was missing comes", "Unavailable, v1", comes_late());
    row!("EDS emptied while live", "v1, Unavailable, v1", emptied());
    // gRFC A88: a deletion is kept out unless the bootstrap says that it counts.
    row!(
        "LDS, RDS, CDS and EDS deleted while live",
        "v1, v1, v1",
        deleted(&[], "v1")
    );
    row!(
        "the same with fail_on_data_errors",
        "v1, Unavailable, v1",
        deleted(&["fail_on_data_errors"], UNAVAILABLE)
    );
    row!(
        "the same with ignore_resource_deletion as well",
        "v1, v1, v1",
        deleted(&["fail_on_data_errors", "ignore_resource_deletion"], "v1")
    );
    row!(
        "c1 to c2 to c1, whose endpoints changed meanwhile",
        "v1, v2, v3",
        there_and_back()
    );
    row!("endpoints replaced", "v1, v2", replaced());
    row!("CDS of type LOGICAL_DNS", "v1", logical_dns());
    row!(
        "weighted_clusters of total 0",
        "v1, NACK, v1",
        refused(route_by_weight(&[("c1", 0), ("c2", 0)]))
    );
    row!(
        "CDS with an unknown policy",
        "v1, NACK, v1",
        refused(bad_cluster("c1"))
    );
    row!(
        "a bad CDS beside a changed one",
        "v1, NACK, v1 and v2",
        siblings()
    );
    row!(
        "max_stream_duration 100 ms of a server that hangs",
        "DeadlineExceeded",
        limited_time()
    );
    row!(
        "max_requests 2, 20 calls at once",
        "2 inside, 18 refused",
        limited_calls()
    );
    balance::rows(&mut rows).await;
    balance::declared(&mut rows).await;
    zones::rows(&mut rows).await;
    features::rows(&mut rows).await;
    row!("10 channels of one process", "1 stream", shared_stream());
    row!(
        "10 meshes built and dropped",
        "10 streams, then 0",
        dropped()
    );
    row!(
        "CDS turns to mTLS while live",
        "plaintext, mTLS, plaintext",
        turned_to_mtls()
    );
    rows
}

/// A listener that leads to `c1` with these endpoints.
fn all_of(addresses: &[SocketAddr]) -> [Named; 4] {
    [
        listener(),
        route_to("c1"),
        cluster("c1"),
        endpoints("c1", addresses),
    ]
}

async fn live(version: &'static str) -> (Plane, Backend) {
    let (plane, backend) = (Plane::start().await, Backend::start(version).await);
    plane.set(all_of(&[backend.address]));
    (plane, backend)
}

async fn without(names: &[(&'static str, &'static str)], is_empty: bool) -> String {
    let (plane, _backend) = live("v1").await;
    plane.remove(names.iter().copied());
    if is_empty {
        plane.set([endpoints("c1", &[])]);
    }
    let (_mesh, mut client) = dial(&plane).await;
    call(&mut client).await
}

async fn comes_late() -> String {
    let (plane, backend) = live("v1").await;
    plane.remove([(CDS, "c1")]);
    let (_mesh, mut client) = dial(&plane).await;
    let first = call(&mut client).await;
    plane.set(all_of(&[backend.address]));
    format!("{first}, {}", becomes(&mut client, "v1").await)
}

async fn emptied() -> String {
    let (plane, backend) = live("v1").await;
    let (_mesh, mut client) = dial(&plane).await;
    let first = becomes(&mut client, "v1").await;
    plane.set([endpoints("c1", &[])]);
    let empty = becomes(&mut client, UNAVAILABLE).await;
    plane.set([endpoints("c1", &[backend.address])]);
    format!("{first}, {empty}, {}", becomes(&mut client, "v1").await)
}

async fn deleted(features: &[&str], expected: &str) -> String {
    let (plane, backend) = live("v1").await;
    let mesh = member(member_with(&plane, features)).await;
    let mut client = GreeterClient::new(mesh.channel(&format!("xds:///{TARGET}")).unwrap());
    let first = becomes(&mut client, "v1").await;
    let answered = plane.answered();
    // Named as missing, it would be an error, which is more than a deletion.
    plane.keep_silent();
    plane.remove_all();
    let is_heard = eventually(|| plane.answered() > answered).await;
    assert!(is_heard, "the client knows that the listener is gone");
    let gone = becomes(&mut client, expected).await;
    plane.set(all_of(&[backend.address]));
    format!("{first}, {gone}, {}", becomes(&mut client, "v1").await)
}

async fn there_and_back() -> String {
    let (plane, _one) = live("v1").await;
    let (two, three) = (Backend::start("v2").await, Backend::start("v3").await);
    let (_mesh, mut client) = dial(&plane).await;
    let first = becomes(&mut client, "v1").await;
    plane.set([
        cluster("c2"),
        endpoints("c2", &[two.address]),
        route_to("c2"),
    ]);
    let second = becomes(&mut client, "v2").await;
    plane.set([endpoints("c1", &[three.address])]);
    plane.set([route_to("c1")]);
    format!("{first}, {second}, {}", becomes(&mut client, "v3").await)
}

async fn replaced() -> String {
    let (plane, _one) = live("v1").await;
    let two = Backend::start("v2").await;
    let (_mesh, mut client) = dial(&plane).await;
    let first = becomes(&mut client, "v1").await;
    plane.set([endpoints("c1", &[two.address])]);
    format!("{first}, {}", becomes(&mut client, "v2").await)
}

async fn logical_dns() -> String {
    let (plane, backend) = live("v1").await;
    plane.remove([(EDS, "c1")]);
    plane.set([dns_cluster("c1", "localhost", backend.address.port())]);
    let (_mesh, mut client) = dial(&plane).await;
    becomes(&mut client, "v1").await
}

/// What is bad is refused by name, and what was there before serves on.
pub(crate) async fn refused(bad: Named) -> String {
    let (plane, _backend) = live("v1").await;
    let (_mesh, mut client) = dial(&plane).await;
    let first = becomes(&mut client, "v1").await;
    let name = bad.1;
    plane.set([bad]);
    format!(
        "{first}, {}, {}",
        nack(&plane, name).await,
        becomes(&mut client, "v1").await
    )
}

/// `NACK`, if there is one that names the resource.
async fn nack(plane: &Plane, name: &str) -> String {
    _ = eventually(|| !plane.nacks().is_empty()).await;
    match &plane.nacks()[..] {
        [text, ..] if text.contains(name) => "NACK".to_owned(),
        other => format!("{other:?}"),
    }
}

async fn siblings() -> String {
    let (plane, one) = live("v1").await;
    let two = Backend::start("v2").await;
    plane.set([
        cluster("c2"),
        endpoints("c2", &[one.address]),
        route_by_weight(&[("c1", 1), ("c2", 1)]),
    ]);
    let (_mesh, mut client) = dial(&plane).await;
    let first = becomes(&mut client, "v1").await;
    // In one response.
    plane.set([
        bad_cluster("c1"),
        dns_cluster("c2", "127.0.0.1", two.address.port()),
    ]);
    let nack = nack(&plane, "c1").await;
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + MUST_HAPPEN;
    while seen.len() < 2 && Instant::now() < deadline {
        seen.insert(call(&mut client).await);
    }
    let seen: Vec<_> = seen.into_iter().collect();
    format!("{first}, {nack}, {}", seen.join(" and "))
}

async fn limited_time() -> String {
    let (plane, _one) = live("v1").await;
    let hangs = Backend::gated("never", 0).await;
    plane.set([
        endpoints("c1", &[hangs.address]),
        route_with_limit("c1", Duration::from_millis(100)),
    ]);
    let (_mesh, mut client) = dial(&plane).await;
    // Without a deadline of its own.
    let asked = client.say_hello(HelloRequest::default());
    match tokio::time::timeout(MUST_HAPPEN, asked).await {
        Ok(Err(status)) => format!("{:?}", status.code()),
        Ok(Ok(_)) => "an answer".to_owned(),
        Err(_) => "it hangs".to_owned(),
    }
}

async fn limited_calls() -> String {
    let (plane, _one) = live("v1").await;
    let holds = Backend::gated("v2", 1).await;
    plane.set([
        cluster_with_limit("c1", 2),
        endpoints("c1", &[holds.address]),
    ]);
    let (_mesh, mut client) = dial(&plane).await;
    let warm = call(&mut client).await;
    assert_eq!(warm, "v2");
    let start = |mut client: Client| tokio::spawn(async move { call(&mut client).await });
    let calls: Vec<_> = (0..20).map(|_| start(client.clone())).collect();
    let finished = || calls.iter().filter(|call| call.is_finished()).count();
    _ = eventually(|| finished() >= 18 && holds.inside.load(SeqCst) > 2).await;
    // The first call, which is answered, was inside too.
    let inside = holds.inside.load(SeqCst) - 1;
    let refused = finished();
    holds.gate.add_permits(20);
    for call in calls {
        _ = call.await;
    }
    format!("{inside} inside, {refused} refused")
}

async fn shared_stream() -> String {
    let (plane, _backend) = live("v1").await;
    let mesh = member(member_with(&plane, &[])).await;
    for _ in 0..10 {
        let channel = mesh.channel(&format!("xds:///{TARGET}")).unwrap();
        let answer = becomes(&mut GreeterClient::new(channel), "v1").await;
        assert_eq!(answer, "v1");
    }
    format!("{} stream", plane.opened())
}

async fn dropped() -> String {
    let (plane, _backend) = live("v1").await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let (mesh, mut client) = dial(&plane).await;
        assert_eq!(becomes(&mut client, "v1").await, "v1");
        held.push((mesh, client));
    }
    let open = plane.streams();
    drop(held);
    _ = eventually(|| plane.streams() == 0).await;
    format!("{open} streams, then {}", plane.streams())
}

/// With the real control plane: a certificate is needed. The server tells who called.
async fn turned_to_mtls() -> String {
    let rule = |mode: &str| {
        format!(
            "
kind: DestinationRule
metadata: {{name: greeter}}
spec:
  host: greeter.default.svc.cluster.local
  trafficPolicy: {{tls: {{mode: {mode}}}}}
"
        )
    };
    let world = World::start().await;
    let server = world.greeter("v1").await;
    world.write("rule.yaml", &rule("DISABLE"));
    world.write(
        "endpoints.yaml",
        &world::endpoints(&[("v1", server.address)]),
    );
    let member = world.member("frontend").await;
    let mut client = world::greeter_client(&member);
    let mut got = Vec::new();
    for (mode, has_peer) in [
        ("DISABLE", false),
        ("ISTIO_MUTUAL", true),
        ("DISABLE", false),
    ] {
        world.write("rule.yaml", &rule(mode));
        let deadline = Instant::now() + MUST_HAPPEN;
        let mut seen = String::new();
        while Instant::now() < deadline {
            seen = match client.say_hello(HelloRequest::default()).await {
                Ok(reply) if reply.get_ref().peer.is_empty() => "plaintext".to_owned(),
                Ok(_) => "mTLS".to_owned(),
                // Not there yet, the first time; later no call may fail.
                Err(status) if got.is_empty() => format!("{:?}", status.code()),
                Err(status) => return format!("{got:?}, then {status}"),
            };
            if seen == if has_peer { "mTLS" } else { "plaintext" } {
                break;
            }
        }
        got.push(seen);
    }
    got.join(", ")
}
