//! Changes of roots under load: nobody notices.
//!
//! Calls begin at a fixed rate whether or not those before have ended, as those of many users do. For
//! longer, and faster:
//!
//! ```console
//! $ MESH_ROTATION_SECONDS=300 MESH_ROTATION_RATE=1000 \
//!     cargo test -p mesh-tonic --test e2e roots_change -- --nocapture
//! ```

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_examples::greeter::HelloRequest;
use mesh_tower::{Mesh, identity::Trust};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    get, send,
    world::{Client, SECURITY, World, endpoints, greeter_client},
};

/// Life of a leaf: several generations of them live and die in the test.
const LEAF_TTL: Duration = Duration::from_secs(10);
/// One change of roots takes two leaves' lives or so; a real bound only in a failing run.
const ROTATED: Duration = Duration::from_secs(120);
/// Members that call, each over connections of its own.
const CLIENTS: u32 = 4;
/// Calls in a second, unless `MESH_ROTATION_RATE` says otherwise.
const RATE: u32 = 50;
/// Members join, call and leave so often, so that they do not take the time of the load.
const NEWCOMERS: Duration = Duration::from_millis(250);
/// Errors of each member that are told; the others are counted.
const TOLD_MAX: usize = 10;

/// After a pause of the machine all calls that were missed begin at once: they are not too many.
const UNLIMITED: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: default}
spec:
  host: greeter.default.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1000000}}}
";

/// How long the load goes on at least, by `MESH_ROTATION_SECONDS`; one change of roots without it.
fn duration() -> Duration {
    let said = env::var("MESH_ROTATION_SECONDS").ok();
    Duration::from_secs(said.map_or(0, |text| text.parse().unwrap()))
}

fn rate() -> u32 {
    let said = env::var("MESH_ROTATION_RATE").ok();
    said.map_or(RATE, |text| text.parse().unwrap())
}

/// What became of the calls.
#[derive(Debug, Default)]
struct Seen {
    begun: AtomicUsize,
    answered: AtomicUsize,
    most_at_once: AtomicUsize,
}

/// Calls at a rate, and what went wrong with them.
struct Paced {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    begin: Instant,
    clients: JoinSet<Vec<String>>,
}

impl Paced {
    /// Begins `per_second` calls in a second, shared by the clients.
    fn start(clients: &[Client], per_second: u32) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Seen>::default());
        let share = u32::try_from(clients.len()).unwrap();
        let every = Duration::from_secs(1) * share / per_second;
        let clients = clients.iter().map(|client| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            pace(client.clone(), every, stop, seen)
        });
        Self {
            clients: clients.collect(),
            stop,
            seen,
            begin: Instant::now(),
        }
    }

    /// The calls that were answered, in all and in a second, and the errors.
    async fn stop(self) -> (usize, f64, Vec<String>) {
        self.stop.store(true, Relaxed);
        let errors = self.clients.join_all().await.concat();
        let answered = self.seen.answered.load(Relaxed);
        let achieved = answered as f64 / self.begin.elapsed().as_secs_f64();
        println!(
            "most calls at once: {}",
            self.seen.most_at_once.load(Relaxed)
        );
        (answered, achieved, errors)
    }
}

/// Begins a call at each tick, whatever became of those before. A tick that was missed is made good
/// at once.
async fn pace(
    client: Client,
    every: Duration,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
) -> Vec<String> {
    let (mut calls, mut failed) = (JoinSet::new(), Vec::new());
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stop.load(Relaxed) {
        ticks.tick().await;
        let (mut client, seen) = (client.clone(), Arc::clone(&seen));
        let begun = seen.begun.fetch_add(1, Relaxed) + 1;
        let at_once = begun - seen.answered.load(Relaxed);
        seen.most_at_once.fetch_max(at_once, Relaxed);
        calls.spawn(async move {
            let name = "load".into();
            let answer = client.say_hello(HelloRequest { name }).await;
            seen.answered
                .fetch_add(usize::from(answer.is_ok()), Relaxed);
            answer.err()
        });
        while let Some(ended) = calls.try_join_next() {
            failed.extend(ended.unwrap());
        }
    }
    failed.extend(calls.join_all().await.into_iter().flatten());
    let more = failed.len().saturating_sub(TOLD_MAX);
    let told = failed.iter().take(TOLD_MAX).map(ToString::to_string);
    let counted = (more > 0).then(|| format!("and {more} more"));
    told.chain(counted).collect()
}

async fn rotate(world: &World) {
    let key = std::fs::read_to_string(world.data_dir().join("admin.key")).unwrap();
    let (path, key) = ("/v1/ca/rotation?do=begin", format!("Bearer {key}"));
    let refused = send(world.http_addr(), "POST", path, "Bearer x").await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let begun = send(world.http_addr(), "POST", path, &key).await;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    let again = send(world.http_addr(), "POST", path, &key).await;
    assert!(again.contains("going on already"), "{again}");
}

/// Every member that joins makes new connections, verifies, and is verified.
async fn newcomers_until_rotated(world: &World) {
    let mut steps = Vec::new();
    let mut pace = interval(NEWCOMERS);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let status = get(world.http_addr(), "/v1/ca/rotation").await;
        let step = status.split("\"step\":").nth(1).unwrap();
        let step = step.split(',').next().unwrap().to_owned();
        if steps.last() != Some(&step) {
            steps.push(step.clone());
        }
        if step == "null" {
            break;
        }
        let newcomer = world.member("frontend").await;
        let name = "new".into();
        let mut client = greeter_client(&newcomer);
        let answer = client.say_hello(HelloRequest { name });
        answer
            .await
            .unwrap_or_else(|error| panic!("in {steps:?}: {error}"));
    }
    assert_eq!(
        steps[steps.len() - 3..],
        ["\"issue\"", "\"retire\"", "null"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_change_under_load_without_a_failed_call() {
    let (duration, rate) = (duration(), rate());
    let world = World::start_with_ttl(LEAF_TTL).await;
    world.write("security.yaml", SECURITY);
    world.write("limits.yaml", UNLIMITED);
    let servers = [world.greeter("v1").await, world.greeter("v1").await];
    let addresses = servers.each_ref().map(|server| ("v1", server.address));
    world.write("endpoints.yaml", &endpoints(&addresses));
    let mut frontends = Vec::new();
    for _ in 0..CLIENTS {
        frontends.push(world.member("frontend").await);
    }
    let mut clients: Vec<_> = frontends.iter().map(greeter_client).collect();
    for client in &mut clients {
        let first = client.say_hello(HelloRequest { name: "a".into() });
        first.await.unwrap();
    }
    let load = Paced::start(&clients, rate);
    let begin = Instant::now();
    let mut rotations = 0;
    while rotations == 0 || begin.elapsed() < duration {
        let old: Vec<_> = frontends.iter().map(roots).collect();
        rotate(&world).await;
        timeout(ROTATED, newcomers_until_rotated(&world))
            .await
            .expect("the change ends");
        for (frontend, old) in frontends.iter().zip(old) {
            let new = roots(frontend);
            assert_eq!((old.len(), new.len()), (1, 1));
            assert_ne!(old, new);
        }
        rotations += 1;
    }
    let (calls, achieved, errors) = load.stop().await;
    println!(
        "{rotations} changes of roots, leaves of {LEAF_TTL:?}, {calls} calls, {achieved:.0} in a \
         second of {rate} asked, {} errors",
        errors.len()
    );
    assert_eq!(errors, [""; 0]);
}

/// The roots that a member trusts.
fn roots(member: &Mesh) -> Vec<bytes::Bytes> {
    match member.identity().unwrap().trust() {
        Some(Trust::Bundle(bundle)) => bundle.roots.clone(),
        other => panic!("{other:?}"),
    }
}
