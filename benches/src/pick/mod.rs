//! What it costs to choose an endpoint: every policy at ten, a thousand and a hundred thousand
//! endpoints, by one and by two threads, beside tower's and pingora's balancers. The pickers of tonic-xds
//! are private types of its crate (`pub(crate)`): what its channel costs is in the family `library`.

#[cfg(feature = "peers")]
mod pingora_peer;
mod tower_peer;

use std::{net::SocketAddr, sync::Arc, time::Duration, time::Instant};

use anyhow::Context;
use futures_util::{FutureExt, future};
use mesh_core::{
    balance::{PickContext, PickResult},
    config::{ClientSideWrr, LbPolicy, PeakEwma, Prequal, RingHash},
    observed::Observation,
    outcome::Verdict,
    rng::{Rng, SplitMix64},
    snapshot::{ClusterSnapshot, Compiler},
    stats::Connectivity,
    testing,
};

use crate::harness::{Contender, Plan, Results, Turn, cpu, take_turns};

/// Picks of one turn, in all.
const PICKS: usize = 2_000_000;

/// Of a contender that is a hundred times slower.
const PICKS_OF_TOWER: usize = 200_000;

const ENDPOINTS: [usize; 3] = [10, 1_000, 100_000];

fn policies() -> Vec<(&'static str, LbPolicy)> {
    vec![
        ("ours, round robin", LbPolicy::RoundRobin),
        ("ours, least request", LbPolicy::least_request(2)),
        (
            "ours, client-side WRR",
            LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr::default()),
        ),
        ("ours, random", LbPolicy::Random),
        ("ours, peak EWMA", LbPolicy::PeakEwma(PeakEwma::default())),
        ("ours, Prequal", LbPolicy::Prequal(Prequal::default())),
        ("ours, ring hash", LbPolicy::RingHash(RingHash::default())),
        ("ours, maglev", LbPolicy::Maglev { table_size: 65_537 }),
        (
            "ours, pick first",
            LbPolicy::PickFirst {
                shuffle_address_list: false,
            },
        ),
    ]
}

/// Runs the family.
///
/// # Errors
/// When a contender does not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    const TABLE: &str = "Pick";
    let mut results = Results::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for endpoints in ENDPOINTS {
        let snapshots = policies().into_iter().map(|(name, policy)| {
            let snapshot = cluster(endpoints, policy)?;
            anyhow::Ok((name, snapshot))
        });
        let snapshots = snapshots.collect::<anyhow::Result<Vec<_>>>()?;
        for threads in [1, 2] {
            let case = format!("{endpoints:6} endpoints, {threads} threads");
            let ours = snapshots.iter().map(|(name, snapshot)| Contender {
                name: (*name).to_owned(),
                turn: Box::new(move || {
                    let picks = plan.scaled(PICKS);
                    future::ready(turn(snapshot, threads, picks)).boxed()
                }),
            });
            let mut contenders: Vec<_> = ours.collect();
            if threads == 1 {
                contenders.extend(tower_peer::contenders(
                    endpoints,
                    plan.scaled(PICKS_OF_TOWER),
                ));
            }
            #[cfg(feature = "peers")]
            contenders.extend(pingora_peer::contenders(
                &addresses(endpoints),
                threads,
                plan.scaled(PICKS),
            )?);
            runtime.block_on(take_turns(plan, &mut results, (TABLE, &case), contenders));
        }
    }
    Ok(results)
}

fn addresses(endpoints: usize) -> Vec<SocketAddr> {
    let address = |n: usize| SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 80));
    (0..endpoints).map(address).collect()
}

/// A cluster whose endpoints are all connected and have been seen.
fn cluster(endpoints: usize, policy: LbPolicy) -> anyhow::Result<Arc<ClusterSnapshot>> {
    let addresses = addresses(endpoints);
    let tree = testing::tree("l")
        .cluster_with("c", &addresses, |cluster| cluster.lb_policy = policy)
        .route("/", "c")
        .build();
    let snapshot = Compiler::new(1).compile(&tree)?;
    let cluster = snapshot.clusters.first().context("a cluster")?;
    let cluster = Arc::clone(cluster.current.borrow().get());
    let now = Instant::now();
    for endpoint in &cluster.endpoints {
        endpoint.stats.set_connectivity(Connectivity::Ready);
        if cluster.picker.observes() {
            let latency = Duration::from_millis(1);
            endpoint
                .stats
                .observe(now)
                .add_latency(now, latency, latency);
        }
    }
    Ok(cluster)
}

/// A pick, the beginning of the attempt and its end, so often.
fn turn(cluster: &ClusterSnapshot, threads: usize, picks: usize) -> anyhow::Result<Turn> {
    let each = picks / threads;
    let (cpu_before, start) = (cpu::own(), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || pick_and_end(cluster, thread as u64, each));
        }
    });
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    Ok(figures(cpu, wall, each * threads))
}

fn figures(cpu: Duration, wall: Duration, picks: usize) -> Turn {
    vec![
        ("CPU ns/pick", cpu.as_secs_f64() * 1e9 / picks as f64),
        ("M picks/s", picks as f64 / wall.as_secs_f64() / 1e6),
    ]
}

fn pick_and_end(cluster: &ClusterSnapshot, seed: u64, picks: usize) {
    let mut rng = SplitMix64::new(seed);
    let observes = cluster.picker.observes();
    for _ in 0..picks {
        let hash = rng.next_u64();
        let now = observes.then(Instant::now);
        let mut context = PickContext::new(&mut rng, &[]);
        context.hash = Some(hash);
        context.now = now;
        let PickResult::Endpoint(index) = cluster.pick(&mut context) else {
            continue;
        };
        cluster.endpoints[index].stats.begin();
        let observation = now.map(|now| Observation {
            now,
            latency: Duration::from_millis(1),
            is_success: true,
            report: None,
        });
        _ = cluster.end_attempt(index, Verdict::Success, observation.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_takes_its_turn() {
        let plan = Plan {
            rounds: 1,
            length: 0.0001,
            filter: Some("    10 endpoints".into()),
        };
        let results = run(&plan).expect("results");
        assert_eq!(results.notes, [""; 0]);
        let peers = if cfg!(feature = "peers") { 4 } else { 0 };
        let ours = policies().len() + peers;
        assert_eq!(results.rows.len(), 2 * ours + 2);
    }
}
