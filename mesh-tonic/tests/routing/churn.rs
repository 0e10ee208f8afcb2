//! Endpoints that come and go faster than calls.
//!
//! `MESH_CHURN_SECONDS` makes it longer than in the usual run.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use mesh_core::rng::{Rng as _, SplitMix64};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{
    echo::Echo,
    scene::{Scene, Wire, forward, host, prefix},
    world::MUST_HAPPEN,
};

const SERVERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const CALLERS: usize = 8;
/// A thousand a second.
const BETWEEN_CHANGES: Duration = Duration::from_millis(1);
const SECONDS: u64 = 2;

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_a_second_fail_no_call_and_leave_nothing_behind() {
    let seconds = std::env::var("MESH_CHURN_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    for wire in Wire::ALL {
        let servers = join_all(SERVERS.map(Echo::start)).await;
        let all: Vec<&Echo> = servers.iter().collect();
        let scene = Scene::start(wire, host(vec![prefix("/", forward("c", |_| {}))])).await;
        scene.serve("c", &all);
        for _ in 0..200 {
            scene.get("/").await;
        }
        let files = open_files();

        let (is_over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
        let call = async || {
            while !is_over.load(Relaxed) {
                let reply = scene.get("/").await;
                assert_eq!(reply.status, 200, "{reply:?}");
                calls.fetch_add(1, Relaxed);
            }
        };
        let change = async {
            let mut rng = SplitMix64::new(7);
            let mut tick = interval(BETWEEN_CHANGES);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut changes = 0;
            while Instant::now() < end {
                tick.tick().await;
                let mask = rng.next_u64();
                let some: Vec<&Echo> = (0..)
                    .zip(&all)
                    .filter(|(n, _)| (mask >> n) & 1 == 1)
                    .map(|(_, server)| *server)
                    .collect();
                // Whoever has no endpoint at all fails, and rightly so.
                scene.serve("c", if some.is_empty() { &all } else { &some });
                changes += 1;
            }
            scene.serve("c", &all);
            is_over.store(true, Relaxed);
            changes
        };
        let (changes, _) = tokio::join!(change, join_all((0..CALLERS).map(|_| call())));
        let calls = calls.load(Relaxed);
        println!("{wire:?}: {changes} changes, {calls} calls, seed 7");
        assert!(calls > 100, "{calls} calls");

        // Connections to those who went are closed when their last call has ended.
        let most = files + 2 * SERVERS.len() + CALLERS;
        let settled = async {
            while open_files() > most {
                scene.get("/").await;
            }
        };
        let left = timeout(MUST_HAPPEN, settled).await;
        assert!(
            left.is_ok(),
            "{wire:?}: {} files, {files} before",
            open_files()
        );
    }
}
