//! What registered outlives a control plane that is killed.

use std::time::Duration;

use mesh_tower::Registration;
use tokio::time::timeout;

use super::{
    super::{MUST_HAPPEN, SECURITY, World, greeter_client, http, load::Load},
    plane::Plane,
};

/// The ids of the instances of a service that are well.
async fn instances(plane: &Plane, service: &str) -> Vec<String> {
    let answer = plane
        .get(&format!("/v1/health/service/{service}?passing"))
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let all: Vec<serde_json::Value> = serde_json::from_str(body).expect(head);
    let ids = all.iter().map(|held| held["Service"]["ID"].as_str());
    ids.map(|id| id.expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_registered_outlives_a_control_plane_that_is_killed_and_no_call_is_lost() {
    let mut plane = Plane::new();
    let world = World::without_control_plane(plane.xds, Vec::new());
    world.write("security.yaml", SECURITY);
    plane.start(&world).await;

    let any = ([127, 0, 0, 1], 0).into();
    let lease = Duration::from_secs(1);
    let holder = world.member("greeter").await;
    let registration = Registration::new("greeter", 0).id("held").lease(lease);
    let _server = World::serve_greeter(holder, any, "held", Some(registration));
    // Its holder goes with the control plane: nobody renews it.
    let lost = world.member("greeter").await;
    let orphan = Registration::new("orphan", 1).id("orphan").lease(lease);
    let orphan = lost.register(&orphan);
    let body = r#"{"Name": "billing", "Port": 1, "Check": {"TTL": "60s", "Status": "passing"}}"#;
    let length = body.len();
    let request = format!(
        "PUT /v1/agent/service/register HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    assert!(http(plane.http, &request).await.contains("200 OK"));

    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 4);
    let called = async { while load.next(50).await.share("held") == 0.0 {} };
    timeout(MUST_HAPPEN, called).await.expect("calls arrive");
    let registered = async { while instances(&plane, "orphan").await.is_empty() {} };
    timeout(MUST_HAPPEN, registered)
        .await
        .expect("it registers");

    plane.kill().await;
    drop(orphan);
    drop(lost);
    load.next(500).await;
    // Longer than the leases, so that only their grace keeps them.
    tokio::time::sleep(2 * lease).await;
    plane.start(&world).await;
    for (service, id) in [
        ("greeter", "held"),
        ("orphan", "orphan"),
        ("billing", "billing"),
    ] {
        assert_eq!(instances(&plane, service).await, [id]);
    }
    load.next(500).await;
    assert_eq!(load.stop().await, [""; 0]);
}
