//! Endpoints that come and go faster than calls, and servers that restart meanwhile.
//!
//! `MESH_CHURN_SECONDS` makes it longer than in the usual run.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use envoy_types::pb::{envoy::config::route::v3::RetryPolicy, google::protobuf::UInt32Value};
use futures_util::future::join_all;
use mesh_core::rng::{Rng as _, SplitMix64};
use tokio::{
    process::Command,
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    echo::Echo,
    scene::{Scene, Wire, forward, host, prefix},
    world::MUST_HAPPEN,
};

const SERVERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const CALLERS: usize = 8;
/// A thousand a second.
const BETWEEN_CHANGES: Duration = Duration::from_millis(1);
/// Between a server that is back and the next one that goes: a client that was refused by one does not
/// look again for a second.
const BETWEEN_RESTARTS: Duration = Duration::from_millis(600);
/// More endpoints than can be out of use at a time.
const IN_USE_MIN: usize = 4;
const SECONDS: u64 = 2;
/// What the process may grow by while it keeps nothing: an allocator does not give all back.
const GROWTH_KIB_MAX: usize = 48 << 10;

/// What a client that leaks has more and more of.
#[derive(Clone, Copy, Debug)]
struct Held {
    tasks: usize,
    /// With connections.
    files: usize,
    kib: usize,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.unwrap().trim().trim_end_matches(" kB");
        Self {
            tasks: Handle::current().metrics().num_alive_tasks(),
            files: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            kib: kib.parse().unwrap(),
        }
    }

    /// Whether it is what it was, but for connections of callers that met at one server: kept for
    /// the next time, one for each of them, where a connection carries one call at a time. Each has
    /// a file and a task at both of its ends.
    fn is_settled(self, before: Self) -> bool {
        let ends = 2 * SERVERS.len() * CALLERS;
        self.files <= before.files + ends && self.tasks <= before.tasks + ends
    }
}

/// Calls without a pause while `meanwhile` runs; how many. Each must be answered.
async fn called_while<T>(scene: &Scene, meanwhile: impl Future<Output = T>) -> (T, usize) {
    let (is_over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let call = async || {
        while !is_over.load(Relaxed) {
            let reply = scene.get("/").await;
            assert_eq!(reply.status, 200, "{reply:?}");
            assert_ne!(reply.grpc().unwrap_or("0"), "14", "{reply:?}");
            calls.fetch_add(1, Relaxed);
        }
    };
    let meanwhile = async {
        let result = meanwhile.await;
        is_over.store(true, Relaxed);
        result
    };
    let (result, _) = tokio::join!(meanwhile, join_all((0..CALLERS).map(|_| call())));
    (result, calls.load(Relaxed))
}

/// A thousand times a second other endpoints, at least so many of them; how often. Whoever has no
/// endpoint at all fails, and rightly so.
async fn change(scene: &Scene, all: &[&Echo], least: usize, until: Instant) -> usize {
    let mut rng = SplitMix64::new(7);
    let mut tick = interval(BETWEEN_CHANGES);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut changes = 0;
    while Instant::now() < until {
        tick.tick().await;
        let mask = rng.next_u64();
        let is_in = |n: usize| (mask >> n) & 1 == 1;
        let some = all.iter().enumerate().filter(|(n, _)| is_in(*n));
        let some: Vec<&Echo> = some.map(|(_, server)| *server).collect();
        let is_enough = some.len() >= least;
        scene.serve("c", if is_enough { &some } else { all });
        changes += 1;
    }
    scene.serve("c", all);
    changes
}

/// One server after the other, while they are among the endpoints or not; how often.
async fn restart(all: &[&Echo], until: Instant) -> usize {
    let mut restarts = 0;
    for server in all.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        server.restart().await;
        restarts += 1;
        tokio::time::sleep(BETWEEN_RESTARTS).await;
    }
    restarts
}

struct Churn {
    scene: Scene,
    servers: Vec<Echo>,
    before: Held,
}

impl Churn {
    async fn start(wire: Wire) -> Self {
        let servers = join_all(SERVERS.map(Echo::start)).await;
        let action = forward("c", |action| {
            // HTTP/1.1 has no word for it: a request may cross the end of an idle connection. With
            // HTTP/2 the server says what it has not looked at (GOAWAY), and no policy is needed.
            action.retry_policy = (wire == Wire::Http1).then(|| RetryPolicy {
                retry_on: "reset".into(),
                num_retries: Some(UInt32Value { value: 3 }),
                ..RetryPolicy::default()
            });
        });
        let scene = Scene::start(wire, host(vec![prefix("/", action)])).await;
        scene.serve("c", &servers.iter().collect::<Vec<_>>());
        for _ in 0..200 {
            scene.get("/").await;
        }
        Self {
            scene,
            servers,
            before: Held::now(),
        }
    }

    fn all(&self) -> Vec<&Echo> {
        self.servers.iter().collect()
    }

    /// Connections to those who went are closed when their last call has ended, and so is all else.
    async fn leaves_nothing(&self) {
        let settled = async {
            while !Held::now().is_settled(self.before) {
                self.scene.get("/").await;
            }
        };
        let left = timeout(MUST_HAPPEN, settled).await;
        let (before, now) = (self.before, Held::now());
        assert!(left.is_ok(), "{now:?}, {before:?} before");
    }
}

/// Runs a test of this module again, in a process of its own: what is counted is the process's. Whether
/// this is the other process, where the test is to be run.
async fn is_alone(test: &str) -> bool {
    const ALONE: &str = "MESH_CHURN_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let test = format!("churn::{test}");
    let run = Command::new(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .kill_on_drop(true)
        .output();
    let output = run.await.unwrap();
    let [told, errors] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    println!("{told}");
    assert!(output.status.success(), "{errors}");
    assert!(told.contains("1 passed"), "{told}");
    false
}

fn until() -> Instant {
    let seconds = std::env::var("MESH_CHURN_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    Instant::now() + Duration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_a_second_fail_no_call_and_leave_nothing_behind() {
    if !is_alone("a_thousand_changes_a_second_fail_no_call_and_leave_nothing_behind").await {
        return;
    }
    for wire in Wire::ALL {
        let churn = Churn::start(wire).await;
        let all = churn.all();
        let change = change(&churn.scene, &all, 1, until());
        let (changes, calls) = called_while(&churn.scene, change).await;
        println!("{wire:?}: {changes} changes, {calls} calls, seed 7");
        assert!(calls > 100, "{calls} calls");
        churn.leaves_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_amid_a_thousand_changes_a_second_fails_no_call() {
    if !is_alone("a_rolling_restart_amid_a_thousand_changes_a_second_fails_no_call").await {
        return;
    }
    for wire in Wire::ALL {
        let churn = Churn::start(wire).await;
        let all = churn.all();
        // What it takes to run at full speed is there after a part of it.
        let mut halves = Vec::new();
        for _ in 0..2 {
            let end = until();
            let both = async {
                tokio::join!(
                    change(&churn.scene, &all, IN_USE_MIN, end),
                    restart(&all, end)
                )
            };
            let ((changes, restarts), calls) = called_while(&churn.scene, both).await;
            println!("{wire:?}: {changes} changes, {restarts} restarts, {calls} calls, seed 7");
            assert!(
                calls > 100 && restarts > 0,
                "{calls} calls, {restarts} restarts"
            );
            churn.leaves_nothing().await;
            halves.push(Held::now());
        }
        let grown = halves[1].kib.saturating_sub(halves[0].kib);
        assert!(grown < GROWTH_KIB_MAX, "{wire:?}: {halves:?}");
    }
}
