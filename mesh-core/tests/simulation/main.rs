//! What each policy does under skew, slow, failing and restarting endpoints, in virtual time.
//!
//! docs/balancing.md and its plot are written from here: run it with `MESH_UPDATE_DOCS=1` after a
//! change.

mod report;
mod world;

use std::time::Duration;

use mesh_core::config::{ClientSideWrr, Cluster, LbPolicy, OutlierDetection, PeakEwma, Prequal};
use report::Row;
use world::{Behaviour, Ended, Load, Scenario, run};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A policy with its name in the report.
struct Policy {
    name: &'static str,
    policy: LbPolicy,
    /// Whether servers report their load.
    reports: bool,
}

fn policies() -> Vec<Policy> {
    let plain = |name, policy| Policy {
        name,
        policy,
        reports: false,
    };
    let reported = |name, policy| Policy {
        name,
        policy,
        reports: true,
    };
    let wrr = ClientSideWrr {
        blackout_period: SECOND,
        ..ClientSideWrr::default()
    };
    vec![
        plain("round robin", LbPolicy::RoundRobin),
        plain("random", LbPolicy::Random),
        plain("least request", LbPolicy::least_request(2)),
        plain("peak EWMA", LbPolicy::PeakEwma(PeakEwma::default())),
        plain("Prequal, no reports", LbPolicy::Prequal(Prequal::default())),
        reported("Prequal", LbPolicy::Prequal(Prequal::default())),
        reported(
            "client-side WRR",
            LbPolicy::ClientSideWeightedRoundRobin(wrr),
        ),
    ]
}

fn find(name: &str) -> Policy {
    let mut policies = policies().into_iter();
    policies
        .find(|policy| policy.name == name)
        .expect("a policy")
}

fn play(scenario: &Scenario, policy: &Policy, outliers: Option<&OutlierDetection>) -> Vec<Ended> {
    let scenario = Scenario {
        reports: policy.reports,
        ..scenario.clone()
    };
    run(&scenario, 7, &|cluster: &mut Cluster| {
        cluster.lb_policy = policy.policy.clone();
        cluster.outlier_detection = outliers.cloned();
    })
}

/// 16 servers, two of them 16 times slower, at half of what the fast ones can do.
fn skew() -> Scenario {
    let mut servers = vec![Behaviour::working(10 * MS); 16];
    servers[3].work = 160 * MS;
    servers[11].work = 160 * MS;
    Scenario {
        servers,
        workers: 4,
        clients: 8,
        load: Load::Open(2_800.0),
        timeout: 2 * SECOND,
        duration: 12 * SECOND,
        warm_up: 2 * SECOND,
        changes: Vec::new(),
        reports: false,
    }
}

/// 4 servers that are kept busy: what they get done is what counts.
fn small() -> Scenario {
    Scenario {
        servers: vec![Behaviour::working(2 * MS); 4],
        workers: 1,
        clients: 4,
        load: Load::Closed(8),
        ..skew()
    }
}

/// 10 servers; at the second second one of them begins to behave otherwise.
fn gray(behaviour: Behaviour) -> Scenario {
    Scenario {
        servers: vec![Behaviour::working(5 * MS); 10],
        workers: 8,
        clients: 4,
        load: Load::Open(2_000.0),
        timeout: SECOND,
        duration: 14 * SECOND,
        changes: vec![(2 * SECOND, 0, behaviour)],
        ..skew()
    }
}

fn grays() -> [(&'static str, Behaviour); 3] {
    let healthy = Behaviour::working(5 * MS);
    [
        ("100 times slower", Behaviour::working(500 * MS)),
        (
            "fails 30 %",
            Behaviour {
                failing: 0.3,
                ..healthy
            },
        ),
        (
            "never answers",
            Behaviour {
                is_silent: true,
                ..healthy
            },
        ),
    ]
}

/// One server after the other goes away for half a second.
fn restarts() -> Scenario {
    let healthy = Behaviour::working(5 * MS);
    let down = Behaviour {
        is_down: true,
        ..healthy
    };
    let restart = |server: usize| {
        let at = 2 * SECOND + SECOND * server as u32;
        [(at, server, down), (at + 500 * MS, server, healthy)]
    };
    Scenario {
        changes: (0..10).flat_map(restart).collect(),
        ..gray(healthy)
    }
}

fn quantile(ended: &[Ended], quantile: f64) -> Duration {
    let mut latencies: Vec<_> = ended.iter().map(|ended| ended.latency).collect();
    latencies.sort_unstable();
    latencies[((latencies.len() - 1) as f64 * quantile) as usize]
}

/// Percentage of the requests from two seconds after the change on that went to the gray server.
fn gray_share(ended: &[Ended]) -> f64 {
    let after = ended.iter().filter(|ended| ended.sent >= 4 * SECOND);
    let gray = after.clone().filter(|ended| ended.server == 0).count();
    gray as f64 * 100.0 / after.count() as f64
}

fn failures(ended: &[Ended]) -> f64 {
    let failed = ended.iter().filter(|ended| !ended.is_success).count();
    failed as f64 * 100.0 / ended.len() as f64
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = || {
        let ended = play(&skew(), &find("Prequal"), None);
        let places = ended.iter().map(|ended| (ended.server, ended.latency));
        places.collect::<Vec<_>>()
    };
    assert_eq!(trace(), trace());
}

#[test]
fn under_skew_prequal_is_eight_times_better_than_round_robin() {
    let p99 = |name| quantile(&play(&skew(), &find(name), None), 0.99);
    let (round_robin, prequal) = (p99("round robin"), p99("Prequal"));
    assert!(
        round_robin >= prequal * 8,
        "{round_robin:?} and {prequal:?}"
    );
}

#[test]
fn prequal_gets_as_much_done_on_a_small_busy_fleet() {
    let done = |name| play(&small(), &find(name), None).len();
    let (most, prequal) = (
        done("round robin").max(done("least request")),
        done("Prequal"),
    );
    assert!(prequal * 100 >= most * 97, "{prequal} of {most}");
}

#[test]
fn a_gray_endpoint_gets_a_hundredth_after_two_seconds() {
    for name in ["peak EWMA", "Prequal", "Prequal, no reports"] {
        for (gray_name, behaviour) in grays() {
            let share = gray_share(&play(&gray(behaviour), &find(name), None));
            assert!(share <= 1.0, "{share:.2} % with {name} when it {gray_name}");
        }
    }
}

#[test]
fn by_the_default_policy_alone_an_endpoint_that_fails_often_gets_a_hundredth() {
    for (gray_name, behaviour) in grays() {
        let ended = play(&gray(behaviour), &find("least request"), None);
        let share = gray_share(&ended);
        assert!(share <= 1.0, "{share:.2} % when it {gray_name}");
    }
    let dead = Behaviour {
        failing: 1.0,
        ..Behaviour::working(5 * MS)
    };
    let share = gray_share(&play(&gray(dead), &find("least request"), None));
    assert!(share <= 0.2, "{share:.2} % when it fails everything");
}

#[test]
fn by_the_default_policy_an_endpoint_that_recovered_has_its_share_again() {
    let healthy = Behaviour::working(5 * MS);
    let failing = Behaviour {
        failing: 0.5,
        ..healthy
    };
    let mut scenario = gray(failing);
    scenario.changes.push((5 * SECOND, 0, healthy));
    let ended = play(&scenario, &find("least request"), None);
    let after = ended.iter().filter(|ended| ended.sent >= 10 * SECOND);
    let share =
        after.clone().filter(|ended| ended.server == 0).count() as f64 / after.count() as f64;
    assert!((0.08..=0.12).contains(&share), "{share}");
}

#[test]
fn by_the_default_policy_a_cluster_that_fails_as_a_whole_is_shared_evenly() {
    let failing = Behaviour {
        failing: 0.5,
        ..Behaviour::working(5 * MS)
    };
    let scenario = Scenario {
        servers: vec![failing; 10],
        changes: Vec::new(),
        ..gray(failing)
    };
    let ended = play(&scenario, &find("least request"), None);
    for server in 0..10 {
        let count = ended.iter().filter(|ended| ended.server == server).count();
        let share = count as f64 / ended.len() as f64;
        assert!((0.07..=0.13).contains(&share), "{server}: {share}");
    }
    // It does not get slower either: nobody is flooded.
    assert!(
        quantile(&ended, 0.99) < 60 * MS,
        "{:?}",
        quantile(&ended, 0.99)
    );
}

#[test]
fn the_report_is_written_when_asked_for() {
    if std::env::var_os("MESH_UPDATE_DOCS").is_none() {
        return;
    }
    let rows = policies().into_iter().map(|policy| {
        let skewed = play(&skew(), &policy, None);
        let small = play(&small(), &policy, None);
        let span = (skew().duration - skew().warm_up).as_secs_f64();
        let grays = grays().map(|(_, behaviour)| {
            let scenario = gray(behaviour);
            let alone = gray_share(&play(&scenario, &policy, None));
            let watched = play(&scenario, &policy, Some(&OutlierDetection::default()));
            (alone, gray_share(&watched))
        });
        let restarted = play(&restarts(), &policy, None);
        Row {
            name: policy.name,
            skew: [0.5, 0.99, 0.999].map(|rank| quantile(&skewed, rank)),
            throughput: small.len() as f64 / span,
            grays,
            restarts: (failures(&restarted), quantile(&restarted, 0.99)),
        }
    });
    let rows: Vec<_> = rows.collect();
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    std::fs::write(format!("{docs}/balancing.md"), report::page(&rows)).expect("writable");
    std::fs::write(format!("{docs}/balancing.svg"), report::plot(&rows)).expect("writable");
}
