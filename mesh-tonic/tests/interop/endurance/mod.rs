//! Real peers under change: Envoy (both variants), gRPC's C-core and our library follow random
//! changes, through restarts of the control plane, and to another one.
//!
//! The seed is printed and can be given as `MESH_ENDURANCE_SEED`; `MESH_ENDURANCE_CHANGES` is how
//! many changes there are (default 60).

mod intent;
mod plane;
mod registrations;
mod traffic;

use std::{
    env,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use control_plane::ca::{Authority, Identity};
use mesh_examples::greeter::greeter_client::GreeterClient;
use mesh_tonic::MeshExt as _;
use mesh_tower::{Mesh, telemetry::Telemetry};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{Envoy, World, admin, start_envoy, until, world::Server};
use intent::{Intent, OFFERED, PLAINTEXT};
use plane::Plane;
use traffic::Traffic;

const CHANGES: u64 = 60;
const HOUR: Duration = Duration::from_secs(3600);
/// Milliseconds between two changes of a burst, at most.
const BURST_PAUSE: u64 = 30;
/// One change in so many is waited for.
const SETTLE_EVERY: u64 = 12;
/// Changes between two restarts, at most.
const RESTART_EVERY: u64 = 100;
/// The share of changes that the test of mTLS alone makes.
const MTLS_STEPS_EVERY: u64 = 5;
/// What our library says of itself to be spoken to in the incremental variant.
const DELTA: &str = "xds_delta";

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect(variable))
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("MESH_ENDURANCE_SEED").unwrap_or_else(|| now().as_nanos() as u64);
    println!("MESH_ENDURANCE_SEED={seed}");
    seed
}

/// Certificates in files, as gRPC wants them.
fn certificates(world: &World) -> PathBuf {
    let data = world.data_dir();
    let authority = Authority::open(&data, "cluster.local", HOUR).unwrap();
    let frontend = Identity::new("default", "frontend").unwrap();
    let folder = data.join("frontend");
    authority.issue_to(&folder, &frontend, HOUR).unwrap();
    folder
}

/// Servers, two of each version; all are the node `greeter`.
const SERVERS: usize = 4;

async fn servers(world: &World) -> (Vec<Server>, Vec<(&'static str, SocketAddr)>) {
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for version in ["v1", "v1", "v2", "v2"] {
        let server = world.greeter(version).await;
        addresses.push((version, server.address));
        servers.push(server);
    }
    (servers, addresses)
}

/// A member that may call, under a name of its own.
async fn frontend(world: &World, node: &str, features: &[&str]) -> Mesh {
    let mesh = Mesh::builder()
        .bootstrap(world.bootstrap("frontend", node, features))
        .telemetry(Telemetry::disabled())
        .build();
    let mesh = mesh.await.unwrap();
    tokio::time::timeout(super::MUST_HAPPEN, mesh.ready())
        .await
        .expect("a certificate")
        .unwrap();
    mesh
}

fn dial(mesh: &Mesh, name: &str) -> GreeterClient<mesh_tonic::Channel> {
    GreeterClient::new(mesh.channel(&format!("xds:///{name}")).unwrap())
}

/// A control plane, its servers, and clients that call all the time.
struct Run {
    world: World,
    plane: Plane,
    _servers: Vec<Server>,
    intent: Intent,
    traffic: Vec<Traffic>,
    /// Every node that is connected.
    nodes: Vec<&'static str>,
    envoys: Vec<Envoy>,
    _members: Vec<Mesh>,
    _folder: TempDir,
    restarts: u64,
}

impl Run {
    /// Envoy and our library in both variants.
    async fn start(mtls_min: u32) -> Self {
        let mut plane = Plane::new();
        let world = World::without_control_plane(plane.xds, Vec::new());
        plane.start(&world).await;
        let (servers, addresses) = servers(&world).await;
        let intent = Intent::new(seed(), addresses, mtls_min);
        intent.write(&world);
        let folder = tempfile::tempdir().unwrap();
        let (mut traffic, mut envoys, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for (node, variant) in [("envoy-sotw", "GRPC"), ("envoy-delta", "DELTA_GRPC")] {
            let token = world.token("frontend");
            let envoy = start_envoy(plane.xds, (node, token), folder.path(), variant).await;
            traffic.push(Traffic::through(node, &envoy));
            envoys.push(envoy);
        }
        for (node, features) in [("ours-sotw", &[][..]), ("ours-delta", &[DELTA])] {
            let mesh = frontend(&world, node, features).await;
            traffic.push(Traffic::over(node, dial(&mesh, "greeter.default")));
            members.push(mesh);
        }
        let nodes = ["envoy-sotw", "envoy-delta", "ours-sotw", "ours-delta"];
        Self {
            nodes: nodes.into_iter().chain(["greeter"; SERVERS]).collect(),
            world,
            plane,
            _servers: servers,
            intent,
            traffic,
            envoys,
            _members: members,
            _folder: folder,
            restarts: 0,
        }
    }

    async fn add_grpc(&mut self) {
        let folder = certificates(&self.world);
        let grpc = Traffic::of_grpc("grpc", &[self.plane.xds], &folder).await;
        self.traffic.push(grpc);
        self.nodes.push("grpc");
    }

    async fn warm_up(&mut self) {
        for peer in &mut self.traffic {
            peer.warm_up().await;
        }
        self.settle().await;
    }

    async fn settle(&self) {
        self.plane.settle(&self.world, &self.nodes).await;
    }

    /// The control plane ends, by force or in good order, and reads what is new when it starts.
    async fn restart(&mut self) {
        self.restarts += 1;
        match self.restarts % 2 {
            0 => self.plane.stop().await,
            _ => self.plane.kill().await,
        }
        self.intent.write(&self.world);
        self.plane.start(&self.world).await;
    }

    async fn check(&mut self, when: &str) {
        for peer in &mut self.traffic {
            peer.check(when).await;
        }
    }

    /// Everybody follows what is said last, and Envoy refused nothing on its way there.
    async fn finish(&mut self) {
        for is_v2 in [true, false] {
            let version = self.intent.lead_all_to(is_v2);
            self.intent.write(&self.world);
            self.settle().await;
            for peer in &mut self.traffic {
                peer.follows(version).await;
            }
        }
        for envoy in &self.envoys {
            let stats = admin(envoy.admin, "/stats?filter=update_rejected").await;
            let mut counts = stats.lines().filter(|line| line.contains("rejected"));
            assert!(counts.all(|line| line.ends_with(": 0")), "{stats}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_peers_follow_random_changes_and_restarts_without_a_refusal_or_a_failed_call() {
    let changes = number("MESH_ENDURANCE_CHANGES").unwrap_or(CHANGES);
    // gRPC's C-core fails calls when a cluster goes from mTLS to plaintext.
    let mut run = Run::start(OFFERED).await;
    run.add_grpc().await;
    run.warm_up().await;
    let begin = Instant::now();
    let restart_every = RESTART_EVERY.min(changes / 3).max(1);
    for number in 1..=changes {
        let change = run.intent.change();
        let is_restart = number % restart_every == 0;
        let is_step = change.is_step || is_restart;
        if is_step {
            run.settle().await;
        }
        match is_restart {
            true => run.restart().await,
            false => run.intent.write(&run.world),
        }
        if is_step || run.intent.below(SETTLE_EVERY) == 0 {
            run.settle().await;
        } else {
            sleep(Duration::from_millis(run.intent.below(BURST_PAUSE))).await;
        }
        run.check(&format!("at change {number} ({})", change.text))
            .await;
    }
    run.finish().await;
    let calls = run.traffic.iter();
    let calls: Vec<_> = calls
        .map(|peer| format!("{} {}", peer.name, peer.calls))
        .collect();
    println!(
        "{changes} changes and {} restarts in {:.0?}: 0 refusals, 0 failed calls of {}",
        run.restarts,
        begin.elapsed(),
        calls.join(", ")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_goes_on_and_off_under_calls_of_envoy_and_ours_without_a_failed_one() {
    let mut run = Run::start(PLAINTEXT).await;
    run.warm_up().await;
    let changes = number("MESH_ENDURANCE_CHANGES").unwrap_or(CHANGES) / MTLS_STEPS_EVERY;
    for number in 1..=changes {
        let text = run.intent.step_mtls();
        run.intent.write(&run.world);
        run.settle().await;
        run.check(&format!("at change {number} ({text})")).await;
    }
    run.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_control_plane_takes_over_what_is_new_and_gives_back_what_it_has() {
    let (mut first, mut second) = (Plane::new(), Plane::new());
    let world = World::without_control_plane(first.xds, vec![second.xds]);
    first.start(&world).await;
    second.start(&world).await;
    let (_servers, addresses) = servers(&world).await;
    let mut intent = Intent::new(seed(), addresses, OFFERED);
    intent.lead_all_to(false);
    intent.write(&world);
    let certificates = certificates(&world);
    let both = [first.xds, second.xds];

    let ours = frontend(&world, "ours", &[DELTA]).await;
    let mut traffic = vec![
        Traffic::over("ours", dial(&ours, "greeter.default")),
        Traffic::of_grpc("grpc", &both, &certificates).await,
    ];
    for peer in &mut traffic {
        peer.warm_up().await;
    }
    let servers = ["greeter"; SERVERS];
    let all: Vec<_> = ["ours", "grpc"].into_iter().chain(servers).collect();
    first.settle(&world, &all).await;
    assert!(second.clients().await.is_empty(), "nobody needs it");

    // Who has everything that it uses goes on with that.
    first.kill().await;
    for peer in &mut traffic {
        peer.follows("v1").await;
    }
    // Who needs something that it does not have gets that, and all else, from the other one.
    let mut late = Traffic::of_grpc("late-grpc", &both, &certificates).await;
    late.warm_up().await;
    let mut dialled = Traffic::over("ours", dial(&ours, "greeter.default.svc"));
    dialled.warm_up().await;
    traffic.extend([late, dialled]);
    let version = intent.lead_all_to(true);
    intent.write(&world);
    second.settle(&world, &["ours", "late-grpc"]).await;
    for peer in traffic.iter_mut().filter(|peer| peer.name != "grpc") {
        peer.follows(version).await;
    }

    // The first one is back: everybody is with it again, and the other one has nobody.
    first.start(&world).await;
    let all: Vec<_> = all.into_iter().chain(["late-grpc"]).collect();
    first.settle(&world, &all).await;
    until("the second one has nobody", async || {
        second.clients().await.is_empty()
    })
    .await;
    second.check().await;
    second.stop().await;
    let version = intent.lead_all_to(false);
    intent.write(&world);
    first.settle(&world, &all).await;
    for peer in &mut traffic {
        peer.follows(version).await;
    }
}
