//! A whole mesh on one machine: a control plane, a greeter in two versions, a front end, traffic.
//!
//! `cargo run --release --bin quickstart` shows a live table until Ctrl-C; with `-- --once` it
//! sends a fixed number of requests, changes the split and kills a backend meanwhile, and exits
//! with 1 if any request failed. Every service is a process of its own and can be killed.

mod children;
mod services;
mod table;
mod traffic;

use std::{
    fs,
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use mesh_examples::ports::free_port;
use tokio::net::TcpStream;

use children::Children;
use services::Role;
use table::Table;
use traffic::Traffic;

/// How long each half of the start may take.
const START_MAX: Duration = Duration::from_secs(60);

/// The mesh in one command.
#[derive(Debug, Parser)]
struct Arguments {
    /// Send a fixed number of requests, change things meanwhile, print a summary and exit.
    #[arg(long)]
    once: bool,
    /// Set for the processes that this one starts.
    #[arg(long, hide = true)]
    role: Option<Role>,
    /// Where a service listens.
    #[arg(long, hide = true)]
    port: Option<u16>,
    /// Directory of this run.
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match (arguments.role, arguments.port, arguments.folder) {
        (Some(role), Some(port), Some(folder)) => {
            services::run(role, port, &folder).await.map(|()| true)
        }
        _ => show(arguments.once).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The mesh of this run.
struct Quickstart {
    folder: PathBuf,
    children: Children,
    traffic: Traffic,
}

async fn show(once: bool) -> anyhow::Result<bool> {
    // Removed at the end.
    let folder = tempfile::tempdir().context("a directory for this run")?;
    let mut mesh = start(folder.path()).await?;
    let result = if once {
        run_once(&mut mesh).await
    } else {
        run_live(&mut mesh).await
    };
    mesh.children.stop().await;
    result
}

async fn start(folder: &Path) -> anyhow::Result<Quickstart> {
    let mut ports = [0; 6];
    for port in &mut ports {
        *port = free_port()?;
    }
    let [xds, http, v1_a, v1_b, v2, frontend] = ports;
    let config = folder.join("config");
    fs::create_dir_all(&config)?;
    let ports = [
        ("@GREETER_V1_A@", v1_a),
        ("@GREETER_V1_B@", v1_b),
        ("@GREETER_V2@", v2),
        ("@FRONTEND@", frontend),
    ];
    for (name, text) in [
        ("services.yaml", include_str!("config/services.yaml")),
        ("routes.yaml", include_str!("config/routes.yaml")),
        ("security.yaml", include_str!("config/security.yaml")),
    ] {
        let filled = ports.iter().fold(text.to_owned(), |text, (mark, port)| {
            text.replace(mark, &port.to_string())
        });
        fs::write(config.join(name), filled)?;
    }
    services::write_bootstraps(folder, xds)?;
    fs::write(folder.join("http.port"), http.to_string())?;

    let mut children = Children::new(folder);
    children.start("control plane", Role::ControlPlane, xds)?;
    println!("starting the mesh in {}", folder.display());
    let up = tokio::time::timeout(START_MAX, listening(xds)).await;
    up.context("the control plane did not start")?;
    children.start("greeter v1 (a)", Role::GreeterV1, v1_a)?;
    children.start("greeter v1 (b)", Role::GreeterV1, v1_b)?;
    children.start("greeter v2", Role::GreeterV2, v2)?;
    children.start("front end", Role::Frontend, frontend)?;
    let traffic = Traffic::start(folder).await?;
    let ready = tokio::time::timeout(START_MAX, traffic.warmed_up()).await;
    ready.context("the mesh did not answer within a minute")?;
    traffic.reset();
    Ok(Quickstart {
        folder: folder.to_owned(),
        children,
        traffic,
    })
}

/// Waits until somebody listens on `port`.
async fn listening(port: u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run_live(mesh: &mut Quickstart) -> anyhow::Result<bool> {
    let mut table = Table::new(std::io::stdout().is_terminal());
    let mut tick = tokio::time::interval(table.interval());
    loop {
        tokio::select! {
            _ = tick.tick() => {
                mesh.children.restart_dead()?;
                table.draw(&mesh.folder, &mesh.children, &mesh.traffic.seen());
            }
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                println!("\nstopping");
                return Ok(true);
            }
        }
    }
}

/// Requests that `--once` sends in each of its parts.
const REQUESTS: u64 = 1_000;

async fn run_once(mesh: &mut Quickstart) -> anyhow::Result<bool> {
    let started = Instant::now();
    let before = mesh.traffic.next(REQUESTS).await;
    println!("split 90 : 10     {}", before.summary());

    let routes = mesh.folder.join("config/routes.yaml");
    let text = fs::read_to_string(&routes)?;
    let even = text
        .replace("weight: 90", "weight: 50")
        .replace("weight: 10", "weight: 50");
    fs::write(&routes, even)?;
    let changed = async { while mesh.traffic.next(100).await.share("v2") < 0.3 {} };
    let edited = Instant::now();
    tokio::time::timeout(Duration::from_secs(20), changed)
        .await
        .context("the split stays")?;
    let took = edited.elapsed();
    let after = mesh.traffic.next(REQUESTS).await;
    println!(
        "split 50 : 50     {} (seen after {} ms)",
        after.summary(),
        took.as_millis()
    );

    mesh.children.kill("greeter v1 (a)").await?;
    let killed = mesh.traffic.next(REQUESTS).await;
    println!("backend killed    {}", killed.summary());
    // It starts again after a moment; requests go on meanwhile.
    while mesh.children.restart_dead()? > 0 {
        mesh.traffic.next(50).await;
    }
    let back = mesh.traffic.next(REQUESTS).await;
    println!("backend restarted {}", back.summary());

    let failed = mesh.traffic.failed();
    let splits =
        (0.05..0.15).contains(&before.share("v2")) && (0.4..0.6).contains(&after.share("v2"));
    println!(
        "{failed} of {} requests failed; the split {}; {:.1} s",
        mesh.traffic.total(),
        if splits {
            "followed its weights"
        } else {
            "did NOT follow its weights"
        },
        started.elapsed().as_secs_f64()
    );
    for error in mesh.traffic.errors() {
        println!("  {error}");
    }
    Ok(failed == 0 && splits)
}
