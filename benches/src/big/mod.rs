//! Ten thousand clusters, a hundred thousand endpoints, ten thousand routes: how long until the
//! first call, how much processor time and memory that takes, how soon a change of one endpoint is
//! where calls go, what a thousand changes a second cost, and whether requests feel them. Beside
//! Envoy.
//!
//! The client is a process of its own, which also makes the load; Envoy's load comes from here.

pub mod ads;
pub mod cost;
mod moves;

use std::{
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use mesh_tonic::MeshExt;
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    harness::{
        Contender, Plan, Results, Turn,
        child::{self, Process},
        cpu,
        load::{Call, Measured, fixed_rate},
        ports::free_port,
        take_turns,
    },
    library::runtime,
    wire::{
        calls::{EchoChannel, Unary},
        server,
    },
};

/// Clusters, and routes.
pub const CLUSTERS: usize = 10_000;
/// The service with the routes.
const HUB: &str = "hub";
/// Calls a second while changes arrive and while none do.
const RATE: usize = 2_000;
/// Of one load.
const LENGTH: Duration = Duration::from_secs(4);
/// Calls a second while an endpoint moves: fewer, so that nobody waits for anything but the move. They
/// are two milliseconds apart.
const MOVES_RATE: usize = 500;
/// The share of a load in which an endpoint moves.
const MOVES_SHARE: f64 = 0.7;
/// What our client is told when an endpoint moves while it makes its load.
const MOVED: &str = "moved";
/// What is still going on after the first call has ended by then.
const SETTLED: Duration = Duration::from_secs(2);
/// What counts as not ready.
const READY_MAX: Duration = Duration::from_secs(120);

/// What a load showed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Felt {
    p50: f64,
    p99: f64,
    /// Processor time of this process over time on the wall.
    cpu_share: f64,
}

impl From<Measured> for Felt {
    fn from(measured: Measured) -> Self {
        Self {
            p50: measured.quantile(0.5),
            p99: measured.quantile(0.99),
            cpu_share: measured.cpu.as_secs_f64() / measured.wall.as_secs_f64(),
        }
    }
}

/// What our client says when its first call has succeeded.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    seconds: f64,
    /// Processor time.
    cpu_seconds: f64,
    bytes: u64,
    /// The most at any time until then.
    bytes_peak: u64,
    bytes_before: u64,
}

/// Runs the family.
///
/// # Errors
/// When a server does not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    runtime()?.block_on(async {
        let mut results = Results::default();
        let (_server, plain): (_, server::Plain) = child::start(["serve", "plain"]).await?;
        let real = serde_json::to_string(&plain.grpc)?;
        let (mut control, xds): (Process, SocketAddr) =
            child::start(["serve", "big", &real]).await?;
        let control = tokio::sync::Mutex::new(&mut control);
        let length = LENGTH.mul_f64(plan.length.max(0.5));
        let mut contenders = Vec::new();
        let control = &control;
        for (variant, is_delta) in [("delta", true), ("state of the world", false)] {
            contenders.push(Contender {
                name: format!("ours, {variant}"),
                turn: Box::new(move || Box::pin(ours(control, xds, is_delta, length))),
            });
            contenders.push(Contender {
                name: format!("Envoy, {variant}"),
                turn: Box::new(move || Box::pin(envoy(control, xds, is_delta, length))),
            });
        }
        let plan = Plan {
            rounds: plan.rounds.min(3),
            ..plan.clone()
        };
        let case = "10k clusters, 100k endpoints, 10k routes";
        take_turns(&plan, &mut results, ("Big configuration", case), contenders).await;
        Ok(results)
    })
}

type Control<'a> = tokio::sync::Mutex<&'a mut Process>;

async fn ours(
    control: &Control<'_>,
    xds: SocketAddr,
    is_delta: bool,
    length: Duration,
) -> anyhow::Result<Turn> {
    let mut control = control.lock().await;
    let millis = length.as_millis().to_string();
    let variant = if is_delta { "xds_delta" } else { "xds_v3" };
    let arguments = ["serve", "big-client", &xds.to_string(), &millis, variant];
    let (mut client, ready): (Process, Ready) = child::start(arguments).await?;
    tokio::time::sleep(SETTLED).await;
    let still: Felt = client.ask("still").await?;
    control.give_way(true).await?;
    control.tell("start").await?;
    let churned = client.ask::<Felt>("churned").await;
    control.tell("stop").await?;
    control.give_way(false).await?;
    let (called, moved) = tokio::join!(
        client.ask::<Felt>(MOVED),
        moves::measure(&mut control, length.mul_f64(MOVES_SHARE))
    );
    called?;
    Ok(figures(&ready, still, churned?, &moved?))
}

fn figures(ready: &Ready, still: Felt, churned: Felt, moved: &[Duration]) -> Turn {
    let millis = |took: Option<&Duration>| took.map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
    vec![
        ("ready s", ready.seconds),
        ("CPU to ready s", ready.cpu_seconds),
        ("peak memory to ready MB", ready.bytes_peak as f64 / 1e6),
        (
            "one endpoint moved, ms to a call there",
            millis(moved.get(moved.len() / 2)),
        ),
        ("slowest of them ms", millis(moved.last())),
        ("memory MB", ready.bytes as f64 / 1e6),
        ("of it before MB", ready.bytes_before as f64 / 1e6),
        (
            "1,000 changes/s, % of a core",
            (churned.cpu_share - still.cpu_share) * 100.0,
        ),
        ("p50 µs still", still.p50),
        ("p50 µs changing", churned.p50),
        ("p99 µs still", still.p99),
        ("p99 µs changing", churned.p99),
    ]
}

/// Our client, in a process of its own: gets ready, then makes a load for each line of input.
/// `variant` is the bootstrap's server feature.
///
/// # Errors
/// When it does not get ready.
pub async fn client(xds: SocketAddr, length: Duration, variant: &str) -> anyhow::Result<()> {
    let pid = std::process::id();
    let (start, cpu_before) = (Instant::now(), cpu::own());
    let bytes_before = cpu::resident(pid);
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": format!("http://{xds}"),
            "channel_creds": [{"type": "insecure"}],
            "server_features": [variant],
        }],
        "node": {"id": "big", "metadata": {"NAMESPACE": "default"}},
    });
    let mesh = Mesh::builder()
        .bootstrap(Bootstrap::from_json(&bootstrap.to_string())?)
        .telemetry(Telemetry::disabled())
        .build()
        .await?;
    let channel = mesh.channel(&format!("xds:///{HUB}.default:8080"))?;
    first_call(channel.clone()).await?;
    let ready = Ready {
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: (cpu::own() - cpu_before).as_secs_f64(),
        bytes: cpu::resident(pid),
        bytes_peak: cpu::peak(pid),
        bytes_before,
    };
    println!("{}", serde_json::to_string(&ready)?);
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        let rate = if line == MOVED { MOVES_RATE } else { RATE };
        let felt = load(channel.clone(), rate, length).await?;
        println!("{}", serde_json::to_string(&felt)?);
    }
    Ok(())
}

async fn first_call(channel: impl EchoChannel) -> anyhow::Result<()> {
    let mut call = Unary::new(channel, 64);
    let called = async {
        while call.call().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(READY_MAX, called)
        .await
        .context("the first call")
}

async fn load(channel: impl EchoChannel, rate: usize, length: Duration) -> anyhow::Result<Felt> {
    Ok(fixed_rate(&Unary::new(channel, 64), rate, length)
        .await?
        .into())
}

async fn envoy(
    control: &Control<'_>,
    xds: SocketAddr,
    is_delta: bool,
    length: Duration,
) -> anyhow::Result<Turn> {
    let mut control = control.lock().await;
    let (admin, outbound) = (free_port()?, free_port()?);
    let folder = tempfile::tempdir()?;
    let template = fs::read_to_string(crate::harness::root().join("interop/envoy.yaml"))?;
    let marks = [
        ("@NODE@", "envoy".to_owned()),
        ("@ACCOUNT@", "big".to_owned()),
        ("@OUTBOUND_PORT@", outbound.to_string()),
        ("@ADMIN_PORT@", admin.to_string()),
        (
            "@API_TYPE@",
            if is_delta { "DELTA_GRPC" } else { "GRPC" }.to_owned(),
        ),
        ("@TOKEN@", "none".to_owned()),
        ("@XDS_PORT@", xds.port().to_string()),
    ];
    let config = marks
        .iter()
        .fold(template, |text, (mark, value)| text.replace(mark, value));
    let path = folder.path().join("envoy.yaml");
    fs::write(&path, config)?;
    let start = Instant::now();
    let process = start_envoy(&path, outbound).await?;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{outbound}"))?
        .origin(format!("http://{HUB}.default:8080").parse()?)
        .connect_lazy();
    first_call(channel.clone()).await?;
    let ready = Ready {
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: cpu::of(process.pid()).as_secs_f64(),
        bytes: cpu::resident(process.pid()),
        bytes_peak: cpu::peak(process.pid()),
        bytes_before: 0,
    };
    let measure = async || {
        let (before, start) = (cpu::of(process.pid()), Instant::now());
        let felt = load(channel.clone(), RATE, length).await?;
        let used = cpu::of(process.pid()) - before;
        anyhow::Ok(Felt {
            cpu_share: used.as_secs_f64() / start.elapsed().as_secs_f64(),
            ..felt
        })
    };
    tokio::time::sleep(SETTLED).await;
    let still = measure().await?;
    control.give_way(true).await?;
    control.tell("start").await?;
    let churned = measure().await;
    control.tell("stop").await?;
    control.give_way(false).await?;
    let (called, moved) = tokio::join!(
        load(channel.clone(), MOVES_RATE, length),
        moves::measure(&mut control, length.mul_f64(MOVES_SHARE))
    );
    called?;
    Ok(figures(&ready, still, churned?, &moved?))
}

async fn start_envoy(config: &Path, outbound: u16) -> anyhow::Result<Process> {
    let options = [
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
        "-c",
    ];
    let mut arguments: Vec<&OsStr> = options.iter().map(AsRef::as_ref).collect();
    arguments.push(config.as_os_str());
    let address = SocketAddr::from(([127, 0, 0, 1], outbound));
    child::start_peer(child::peer("bin/envoy")?, &arguments, address).await
}
