//! A client library of Consul's against the registry.

use tokio::{process::Command, time::timeout};

use super::{MUST_HAPPEN, World, peer, root};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_client_registers_is_found_watches_and_leaves() {
    let world = World::start().await;
    let python = Command::new(peer("bin/python").await)
        .arg(root().join("interop/consul_client.py"))
        .arg(world.http_addr().to_string())
        .kill_on_drop(true)
        .output();
    let output = timeout(MUST_HAPPEN * 3, python)
        .await
        .expect("it ends")
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}
