//! Services that nobody declared: they register themselves, and leave, or are killed.

use std::{
    process::{Child, Command},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use mesh_tower::{Mesh, Registration, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    load::Load,
    world::{MUST_HAPPEN, SECURITY, Server, World, greeter_client},
};

/// Bootstrap of a process of [`a_process_that_is_killed_is_gone_after_its_lease`].
const CHILD: &str = "MESH_E2E_GREETER";

const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// A greeter that registers itself, and its handle.
async fn registered(world: &World, node: &str, version: &'static str) -> (Mesh, Server) {
    let mesh = Mesh::builder()
        .bootstrap(world.bootstrap("greeter", node, &[]))
        .telemetry(Telemetry::disabled())
        .drain_timeout(Duration::from_secs(5));
    let mesh = mesh.build().await.unwrap();
    let registration = Registration::new("greeter", 0).label("version", version);
    let server = World::serve_greeter(mesh.clone(), ANY.into(), version, Some(registration));
    (mesh, server)
}

/// Waits until calls reach a version, or do not any more.
async fn until(load: &Load, version: &str, is_there: bool) {
    let wait = async { while (load.next(200).await.share(version) > 0.0) != is_there {} };
    let change = if is_there { "comes" } else { "goes" };
    timeout(MUST_HAPPEN, wait)
        .await
        .unwrap_or_else(|_| panic!("{version} {change}"));
}

impl World {
    /// What the registry knows of a service.
    async fn instances(&self, service: &str) -> Vec<serde_json::Value> {
        let mut stream = TcpStream::connect(self.http_addr()).await.unwrap();
        let path = format!("/v1/health/service/{service}");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_register_themselves_are_called_and_leave_without_a_failed_call() {
    let mut world = World::start().await;
    world.write("security.yaml", SECURITY);
    let (stays, _one) = registered(&world, "one", "v1").await;
    let (leaves, two) = registered(&world, "two", "v2").await;
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 4);
    until(&load, "v1", true).await;
    until(&load, "v2", true).await;

    // They are there again after a restart, and nobody notices.
    world.stop_control_plane().await;
    load.next(200).await;
    world.start_control_plane().await;
    let (_third, _three) = registered(&world, "three", "v3").await;
    until(&load, "v3", true).await;

    leaves.shutdown().await;
    until(&load, "v2", false).await;
    let served = two.served.load(Relaxed);
    load.next(500).await;
    assert_eq!(two.served.load(Relaxed), served, "nobody asks it any more");
    assert_eq!(load.stop().await, [""; 0]);
    drop(stays);
}

/// A process of its own that is a greeter, killed when dropped.
struct Process(Child);

impl Process {
    fn start(world: &World) -> Self {
        let bootstrap = world.bootstrap_json("greeter", "child", &[]);
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "registry::a_process_that_is_killed_is_gone_after_its_lease";
        command
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, bootstrap);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: it says nothing to anybody.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What the other process does, until it is killed.
async fn be_a_greeter(bootstrap: &str) {
    let mesh = Mesh::builder()
        .bootstrap(Bootstrap::from_json(bootstrap).unwrap())
        .telemetry(Telemetry::disabled());
    let mesh = mesh.build().await.unwrap();
    let lease = Duration::from_secs(1);
    let registration = Registration::new("greeter", 0).lease(lease);
    let _server = World::serve_greeter(mesh, ANY.into(), "killed", Some(registration));
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_is_gone_after_its_lease() {
    if let Ok(bootstrap) = std::env::var(CHILD) {
        return be_a_greeter(&bootstrap).await;
    }
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let (_stays, _one) = registered(&world, "one", "v1").await;
    let process = Process::start(&world);
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 4);
    until(&load, "v1", true).await;
    until(&load, "killed", true).await;
    let known = async || world.instances("greeter").await.len();
    assert_eq!(known().await, 2);
    drop(process);
    let gone = async {
        while known().await != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(MUST_HAPPEN, gone).await.expect("its lease ends");
    until(&load, "killed", false).await;
    load.stop().await;
}
