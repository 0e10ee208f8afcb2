//! A change of roots under load: nobody notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_examples::greeter::HelloRequest;
use mesh_tower::identity::Trust;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    get, send,
    world::{Client, SECURITY, World, endpoints, greeter_client},
};

/// Life of a leaf: several generations of them live and die in the test.
const LEAF_TTL: Duration = Duration::from_secs(10);
/// One change of roots takes two leaves' lives or so; a real bound only in a failing run.
const ROTATED: Duration = Duration::from_secs(120);

/// How long the load goes on, and how many calls a second it makes.
fn knobs() -> (Duration, u32) {
    match std::env::var("MESH_ROTATION_SECONDS") {
        Ok(seconds) => (Duration::from_secs(seconds.parse().unwrap()), 1_000),
        Err(_) => (Duration::ZERO, 50),
    }
}

/// Callers at a rate, and what went wrong for them.
struct Paced {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Vec<String>>,
}

impl Paced {
    fn start(client: &Client, per_second: u32) -> Self {
        const CALLERS: u32 = 10;
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (mut client, stop, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&done));
            callers.spawn(async move {
                let mut errors = Vec::new();
                let mut pace = tokio::time::interval(Duration::from_secs(1) * CALLERS / per_second);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Relaxed) {
                    pace.tick().await;
                    let name = "load".into();
                    match client.say_hello(HelloRequest { name }).await {
                        Ok(_) => _ = done.fetch_add(1, Relaxed),
                        Err(status) => errors.push(status.to_string()),
                    }
                }
                errors
            });
        }
        Self {
            stop,
            done,
            callers,
        }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        let errors = self.callers.join_all().await.concat();
        (self.done.load(Relaxed), errors)
    }
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
    loop {
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
    let (duration, rate) = knobs();
    let world = World::start_with_ttl(LEAF_TTL).await;
    world.write("security.yaml", SECURITY);
    let servers = [world.greeter("v1").await, world.greeter("v1").await];
    let addresses = servers.each_ref().map(|server| ("v1", server.address));
    world.write("endpoints.yaml", &endpoints(&addresses));
    let frontend = world.member("frontend").await;
    greeter_client(&frontend)
        .say_hello(HelloRequest { name: "a".into() })
        .await
        .unwrap();
    let identity = frontend.identity().unwrap();
    let roots = || match identity.trust() {
        Some(Trust::Bundle(bundle)) => bundle.roots.clone(),
        other => panic!("{other:?}"),
    };
    let load = Paced::start(&greeter_client(&frontend), rate);
    let begin = Instant::now();
    let mut rotations = 0;
    while rotations == 0 || begin.elapsed() < duration {
        let old = roots();
        rotate(&world).await;
        timeout(ROTATED, newcomers_until_rotated(&world))
            .await
            .expect("the change ends");
        assert_eq!((old.len(), roots().len()), (1, 1));
        assert_ne!(old, roots());
        rotations += 1;
    }
    let (calls, errors) = load.stop().await;
    println!("{rotations} changes of roots, {calls} calls");
    assert_eq!(errors, [""; 0]);
}
