//! Runs the matrix and writes `docs/benchmarks.md`.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand};
use mesh_benches::{big, harness::Plan, library, pick, report, security, wire};

#[derive(Parser)]
#[command(about = "Benchmarks of the mesh beside its peers; writes docs/benchmarks.md")]
struct Arguments {
    #[command(subcommand)]
    family: Option<Family>,
    /// Fewer and shorter rounds.
    #[arg(long, global = true)]
    quick: bool,
    /// Only rows whose "table / case / contender" contains this.
    #[arg(long, global = true)]
    filter: Option<String>,
}

#[derive(Subcommand)]
enum Family {
    /// Every family, then the report.
    All,
    /// What a call costs above an endpoint that answers at once.
    Library,
    /// End to end over loopback.
    Wire,
    /// Choosing an endpoint.
    Pick,
    /// Ten thousand clusters.
    Big,
    /// What certificates and rules cost.
    Security,
    /// Writes the report from what was measured before.
    Report,
    /// Calls a library scenario so often, under valgrind.
    #[command(hide = true)]
    Calls { scenario: String, calls: usize },
    /// The echo servers, for a parent process.
    #[command(hide = true, subcommand)]
    Serve(Serve),
}

#[derive(Subcommand)]
enum Serve {
    /// Bare tonic, hyper and rustls.
    Plain,
    /// Through the mesh.
    Meshed { bootstrap: String },
    /// An xDS server of ten thousand clusters, the first of which is at these addresses.
    Big { real: String },
    /// A client of it.
    BigClient {
        xds: SocketAddr,
        millis: u64,
        variant: String,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let plan = Plan::new(arguments.quick, arguments.filter);
    let measure = |family: &str| {
        let results = match family {
            "library" => library::run(&plan)?,
            "pick" => pick::run(&plan)?,
            "big" => big::run(&plan)?,
            "security" => security::run(&plan)?,
            "wire" => wire::run(&plan)?,
            other => anyhow::bail!("no family is named {other}"),
        };
        results.keep(family)
    };
    match arguments.family.unwrap_or(Family::All) {
        Family::All => {
            for family in report::FAMILIES {
                measure(family)?;
            }
        }
        Family::Library => measure("library")?,
        Family::Wire => measure("wire")?,
        Family::Pick => measure("pick")?,
        Family::Big => measure("big")?,
        Family::Security => measure("security")?,
        Family::Report => {}
        Family::Calls { scenario, calls } => return library::call(&scenario, calls),
        Family::Serve(part) => return library::runtime()?.block_on(serve(part)),
    }
    report::write()
}

async fn serve(part: Serve) -> anyhow::Result<()> {
    match part {
        Serve::Plain => wire::server::plain().await,
        Serve::Meshed { bootstrap } => wire::server::meshed(&bootstrap).await,
        Serve::Big { real } => big::ads::serve(&serde_json::from_str::<Vec<_>>(&real)?).await,
        Serve::BigClient {
            xds,
            millis,
            variant,
        } => big::client(xds, Duration::from_millis(millis), &variant).await,
    }
}
