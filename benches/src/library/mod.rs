//! What a call costs above an endpoint that answers at once.
//!
//! Everything below the endpoint is left out, so that what is left is the library: routing,
//! limits, balancing, outcome. Hot: one cluster of ten endpoints. Cold: ten thousand clusters and
//! a hundred thousand endpoints, each call to another one.

#[cfg(feature = "peers")]
mod junction_peer;
pub mod ours;
pub mod routes;
pub mod stub;
#[cfg(feature = "peers")]
mod tonic_xds_peer;
pub mod tower_peer;

use std::process::Command;

use anyhow::{Context, bail, ensure};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::runtime::Runtime;

use crate::harness::{
    Contender, Plan, Results, Row, Turn,
    load::{Call, Measured, burst},
    take_turns,
};
use ours::{Grpc, Http, Layout};
use routes::{FullStack, Lookup};

/// Clusters of the cold cases.
pub const CLUSTERS: usize = 10_000;

/// Calls of one turn: hot, cold, and of routing.
const CALLS: [usize; 3] = [400_000, 50_000, 200_000];

/// A world and something that calls in it.
pub trait Scenario: Send + Sync {
    /// See [`burst`].
    fn burst(&self, tasks: usize, calls: usize) -> BoxFuture<'_, anyhow::Result<Measured>>;

    /// So many calls one after the other, without clocks: rustix cannot read them under valgrind.
    fn repeat(&self, calls: usize) -> BoxFuture<'_, anyhow::Result<()>>;
}

impl<C: Call> Scenario for C {
    fn burst(&self, tasks: usize, calls: usize) -> BoxFuture<'_, anyhow::Result<Measured>> {
        burst(self, tasks, calls).boxed()
    }

    fn repeat(&self, calls: usize) -> BoxFuture<'_, anyhow::Result<()>> {
        let mut caller = self.fork(0);
        let calls = async move {
            for _ in 0..calls {
                caller.call().await?;
            }
            Ok(())
        };
        calls.boxed()
    }
}

/// The scenarios over one cluster.
pub const HOT: &[&str] = &[
    "stub alone",
    "ours, MeshService",
    "ours, tonic Channel",
    "ours, tonic Channel, retry policy",
    "tower p2c + PeakEwma in Buffer",
    #[cfg(feature = "peers")]
    "tonic-xds",
    #[cfg(feature = "peers")]
    "junction-core, resolve only",
];

/// The scenarios over ten thousand.
pub const COLD: &[&str] = &[
    "stub alone, cold",
    "ours, 10k names",
    "ours, 10k routes of one name",
    "tower p2c + PeakEwma in Buffer, cold",
];

/// The scenarios of routing: look-ups alone, and a call whose route asks for everything.
pub const ROUTES: &[&str] = &[
    "lookup, 10 routes",
    "lookup, 1,000 routes",
    "lookup, 10,000 routes",
    "ours, full policy stack",
];

/// Builds a scenario by its name. Must be called inside a tokio runtime.
///
/// # Errors
/// When there is none of this name, or it does not start.
pub async fn scenario(name: &str) -> anyhow::Result<Box<dyn Scenario>> {
    Ok(match name {
        "stub alone" => Box::new(stub::Bare::new(1)),
        "ours, MeshService" => Box::new(Http::new(1, Layout::Names, false).await?),
        "ours, tonic Channel" => Box::new(Grpc::new(1, Layout::Names, false).await?),
        "ours, tonic Channel, retry policy" => Box::new(Grpc::new(1, Layout::Names, true).await?),
        "tower p2c + PeakEwma in Buffer" => Box::new(tower_peer::TowerBalance::new(1)),
        "stub alone, cold" => Box::new(stub::Bare::new(CLUSTERS)),
        "ours, 10k names" => Box::new(Grpc::new(CLUSTERS, Layout::Names, false).await?),
        "ours, 10k routes of one name" => {
            Box::new(Grpc::new(CLUSTERS, Layout::Routes, false).await?)
        }
        "tower p2c + PeakEwma in Buffer, cold" => Box::new(tower_peer::TowerBalance::new(CLUSTERS)),
        "lookup, 10 routes" => Box::new(Lookup::new(10)?),
        "lookup, 1,000 routes" => Box::new(Lookup::new(1_000)?),
        "lookup, 10,000 routes" => Box::new(Lookup::new(10_000)?),
        "ours, full policy stack" => Box::new(FullStack::new().await?),
        #[cfg(feature = "peers")]
        "tonic-xds" => Box::new(tonic_xds_peer::TonicXds::new().await?),
        #[cfg(feature = "peers")]
        "junction-core, resolve only" => Box::new(junction_peer::Junction::new().await?),
        other => bail!("no scenario is named {other:?}"),
    })
}

/// A runtime with as many workers as this machine has cores.
///
/// # Errors
/// When there are no threads to be had.
pub fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

/// A runtime on the thread that blocks on it, where counts are the same every time.
///
/// # Errors
/// When the system refuses.
pub fn single_threaded() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Runs the family.
///
/// # Errors
/// When a contender does not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    let mut results = Results::default();
    let tables = [
        ("Library, hot", HOT),
        ("Library, cold", COLD),
        ("Library, routing", ROUTES),
    ];
    for ((table, names), calls) in tables.into_iter().zip(CALLS) {
        let wanted = names
            .iter()
            .filter(|name| plan.wants(table, "", name) || plan.filter.is_some());
        let wanted: Vec<_> = wanted.copied().collect();
        let counted: Vec<_> = wanted
            .iter()
            .map(|name| counts(plan, table, name))
            .collect();
        let runtime = runtime()?;
        let scenarios = runtime.block_on(async {
            let mut scenarios = Vec::new();
            for name in &wanted {
                scenarios.push(scenario(name).await.with_context(|| (*name).to_owned())?);
            }
            anyhow::Ok(scenarios)
        })?;
        for tasks in [1, 2, 8, 64] {
            let contenders = wanted
                .iter()
                .zip(&scenarios)
                .map(|(name, scenario)| Contender {
                    name: (*name).to_owned(),
                    turn: Box::new(move || turn(&**scenario, tasks, plan.scaled(calls)).boxed()),
                });
            let case = format!("{tasks:2} tasks");
            let turns = take_turns(plan, &mut results, (table, &case), contenders.collect());
            runtime.block_on(turns);
        }
        for (name, counted) in wanted.iter().zip(counted) {
            match counted {
                Ok(Some(row)) => results.add(row),
                Ok(None) => {}
                Err(error) => results.note(format!("{table}: no counts of {name}: {error:#}")),
            }
        }
    }
    Ok(results)
}

async fn turn(scenario: &dyn Scenario, tasks: usize, calls: usize) -> anyhow::Result<Turn> {
    let measured = scenario.burst(tasks, calls).await?;
    let per_second = measured.calls as f64 / measured.wall.as_secs_f64();
    Ok(vec![
        ("CPU ns/call", measured.each(measured.cpu, 1e9)),
        ("M calls/s", per_second / 1e6),
    ])
}

fn counts(plan: &Plan, table: &str, name: &str) -> anyhow::Result<Option<Row>> {
    const CASE: &str = "counts";
    if !plan.wants(table, CASE, name) {
        return Ok(None);
    }
    let (allocations, bytes) = allocations(name)?;
    let mut figures = vec![
        ("allocations/call".to_owned(), vec![allocations]),
        ("allocated bytes/call".to_owned(), vec![bytes]),
    ];
    match instructions(name) {
        Ok(instructions) => figures.push(("instructions/call".to_owned(), vec![instructions])),
        Err(error) => println!("note: no instruction count of {name}: {error:#}"),
    }
    Ok(Some(Row {
        table: format!("{table}, counts"),
        case: CASE.to_owned(),
        contender: name.to_owned(),
        figures,
    }))
}

/// Allocations and allocated bytes of one call.
///
/// # Errors
/// When the scenario fails.
pub fn allocations(name: &str) -> anyhow::Result<(f64, f64)> {
    const CALLS: usize = 2_000;
    let runtime = single_threaded()?;
    let scenario = runtime.block_on(scenario(name))?;
    // Every cluster has been called once, and with it connected.
    runtime.block_on(scenario.repeat(CLUSTERS))?;
    let mut outcome = None;
    let mut count = |calls| {
        allocation_counter::measure(|| outcome = Some(runtime.block_on(scenario.repeat(calls))))
    };
    let (one, many) = (count(1), count(1 + CALLS));
    outcome.context("it ran")??;
    let each = |one: u64, many: u64| many.saturating_sub(one) as f64 / CALLS as f64;
    Ok((
        each(one.count_total, many.count_total),
        each(one.bytes_total, many.bytes_total),
    ))
}

/// Calls a scenario so often, for [`instructions`] to count.
///
/// # Errors
/// When the scenario fails.
pub fn call(name: &str, calls: usize) -> anyhow::Result<()> {
    let runtime = single_threaded()?;
    let scenario = runtime.block_on(scenario(name))?;
    runtime.block_on(scenario.repeat(calls))?;
    // What is left is not part of a call.
    std::process::exit(0)
}

/// Instructions of one call by callgrind: the difference between a run with few calls and one
/// with more.
///
/// # Errors
/// When valgrind is not installed or the scenario fails.
pub fn instructions(name: &str) -> anyhow::Result<f64> {
    const CALLS: usize = 20_000;
    let warm = if COLD.contains(&name) {
        CLUSTERS
    } else {
        1_000
    };
    let run = |calls: usize| counted(&["calls", name, &calls.to_string()]);
    let (few, many) = (run(warm)?, run(warm + CALLS)?);
    Ok(many.saturating_sub(few) as f64 / CALLS as f64)
}

/// Instructions of this program with these arguments.
pub(crate) fn counted(arguments: &[&str]) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .output()
        .context("valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let failure = || {
        text.lines()
            .find(|line| line.starts_with("Error"))
            .unwrap_or(&text)
    };
    ensure!(output.status.success(), "{}", failure());
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = line.with_context(|| text.to_string())?;
    Ok(count.trim().parse()?)
}
