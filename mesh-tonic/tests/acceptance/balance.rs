//! Which endpoint gets a call: priorities, localities, and endpoints that refuse or fail.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Instant,
};

use envoy_types::pb::envoy::config::{
    core::v3::HealthStatus, endpoint::v3::cluster_load_assignment::Policy,
};
use mesh_core::{
    balance::{ClusterEndpoint, LbPolicyFactory, LoadBalancer, PickContext, PickResult},
    rng::Rng,
    snapshot::FAILING_TIME,
};
use mesh_examples::{
    greeter::{HelloRequest, greeter_client::GreeterClient},
    ports::free_address,
};
use mesh_tonic::MeshExt as _;
use mesh_tower::{Mesh, telemetry::Telemetry};
use tonic::Request;

use super::{
    Backend, Client, call, dial, member_with,
    plane::Plane,
    resources::{
        Named, TARGET, cluster, custom_cluster, dropping, endpoints, healths,
        least_request_cluster, listener, localities, overprovisioned, ring_cluster, route_by_user,
        route_to, watched_cluster,
    },
    scenarios::Row,
};

/// Calls of one scenario.
const CALLS: usize = 1_000;

/// Adds the rows.
pub(crate) async fn rows(rows: &mut Vec<Row>) {
    let mut add = |scenario, expected, got| {
        rows.push(Row {
            scenario,
            expected,
            got,
        });
    };
    let of_v1 = |priority, weight| shares(priority, weight);
    add(
        "EDS priority 0 healthy, and priority 1",
        "all to 0",
        of_v1(1, 1).await,
    );
    add("locality weights 90 to 10", "87 to 93 %", of_v1(0, 9).await);
    let (one, many) = ("no error", "no error");
    add("3 live, 1 refused port, 1 caller", one, refused(1).await);
    add("the same, 32 callers", many, refused(32).await);
    add(
        "1 of 4 fails at once, outlier_detection",
        "at most 1 % fail after that",
        failing(watched_cluster("c1"), 10, 4).await,
    );
    add(
        "1 of 10 fails 30 %, nothing configured",
        "1 % go there, and its trials",
        failing(least_request_cluster("c1"), 3, 10).await,
    );
}

/// Adds the rows about what the control plane says of endpoints.
pub(crate) async fn declared(rows: &mut Vec<Row>) {
    use HealthStatus::{Degraded, Draining, Healthy, Unhealthy};
    let mut add = |scenario, expected, got| {
        rows.push(Row {
            scenario,
            expected,
            got,
        });
    };
    for (scenario, health) in [
        ("a DEGRADED endpoint beside a healthy one", Degraded),
        ("a DRAINING endpoint beside a healthy one", Draining),
        ("an UNHEALTHY endpoint beside a healthy one", Unhealthy),
    ] {
        let got = first_of_two(|first, second| {
            healths(
                "c1",
                &[(first, 0, Healthy), (second, 0, health)],
                Policy::default(),
            )
        });
        add(scenario, "all to 0", got.await);
    }
    let spills = first_of_two(|first, second| {
        // Half of priority 0 is left: 70 % of what it could take.
        let lost = SocketAddr::from(([127, 0, 0, 1], 1));
        let of = [
            (first, 0, Healthy),
            (lost, 0, Unhealthy),
            (second, 1, Healthy),
        ];
        healths("c1", &of, overprovisioned(140))
    });
    add(
        "overprovisioning_factor 140, half of priority 0 unhealthy",
        "65 to 75 %",
        spills.await,
    );
    add(
        "drop_overloads 30 % and then 50 %",
        "60 to 70 % dropped, the others answered",
        dropped().await,
    );
    add(
        "a policy of the application by TypedStruct: the last one",
        "0 errors, 0 and 40 calls",
        own_policy().await,
    );
    add(
        "RING_HASH by a header, 20 calls of one user",
        "1 of 4 endpoints connected",
        one_user().await,
    );
}

/// Always the last one.
#[derive(Debug)]
struct Last;

impl LoadBalancer for Last {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        _: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let last = endpoints.len() - 1;
        match endpoints[last].stats.is_ready() {
            true => PickResult::Endpoint(last),
            false => PickResult::Queue,
        }
    }
}

#[derive(Debug)]
struct LastFactory;

impl LbPolicyFactory for LastFactory {
    fn build(&self, _: &str, _: &[ClusterEndpoint]) -> Result<Box<dyn LoadBalancer>, String> {
        Ok(Box::new(Last))
    }
}

async fn own_policy() -> String {
    let (first, last) = (Backend::start("v1").await, Backend::start("v2").await);
    let both = endpoints("c1", &[first.address, last.address]);
    let plane = serve(custom_cluster("c1", "test.Last"), both).await;
    let mesh = Mesh::builder()
        .bootstrap(member_with(&plane, &[]))
        .telemetry(Telemetry::disabled())
        .lb_policy("test.Last", Arc::new(LastFactory));
    let mesh = mesh.build().await.unwrap();
    let client = GreeterClient::new(mesh.channel(&format!("xds:///{TARGET}")).unwrap());
    let errors = load(&client, 4, 40).await;
    let [first, last] = [first, last].map(|backend| backend.inside.load(SeqCst));
    format!("{errors} errors, {first} and {last} calls")
}

async fn dropped() -> String {
    let backend = Backend::start("v1").await;
    let of = [(backend.address, 0, HealthStatus::Healthy)];
    let plane = serve(cluster("c1"), healths("c1", &of, dropping(&[30, 50]))).await;
    let (_mesh, client) = dial(&plane).await;
    let refused = load(&client, 8, CALLS).await;
    let served = backend.inside.load(SeqCst);
    match refused * 100 / CALLS {
        60..70 if served + refused == CALLS => "60 to 70 % dropped, the others answered".to_owned(),
        _ => format!("{refused} of {CALLS} dropped, {served} answered"),
    }
}

async fn one_user() -> String {
    let mut backends = Vec::new();
    for _ in 0..4 {
        backends.push(Backend::start("v1").await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let plane = serve(ring_cluster("c1"), endpoints("c1", &addresses)).await;
    plane.set([route_by_user("c1")]);
    let (_mesh, mut client) = dial(&plane).await;
    for _ in 0..20 {
        let mut request = Request::new(HelloRequest { name: "x".into() });
        let metadata = request.metadata_mut();
        metadata.insert("x-user", "ann".parse().unwrap());
        if let Err(status) = client.say_hello(request).await {
            return status.to_string();
        }
    }
    let used = backends
        .iter()
        .filter(|backend| backend.inside.load(SeqCst) > 0);
    format!("{} of 4 endpoints connected", used.count())
}

async fn serve(policy: Named, assignment: Named) -> Plane {
    let plane = Plane::start().await;
    plane.set([listener(), route_to("c1"), policy, assignment]);
    plane
}

/// How many of the calls come to the first of two localities.
async fn shares(priority_of_second: u32, weight_of_first: u32) -> String {
    first_of_two(|first, second| {
        let of = [(first, 0, weight_of_first), (second, priority_of_second, 1)];
        localities("c1", &of)
    })
    .await
}

/// How many of the calls come to the first of two endpoints.
async fn first_of_two(assignment: impl FnOnce(SocketAddr, SocketAddr) -> Named) -> String {
    let (first, second) = (Backend::start("v1").await, Backend::start("v2").await);
    let assignment = assignment(first.address, second.address);
    let plane = serve(cluster("c1"), assignment).await;
    let (_mesh, client) = dial(&plane).await;
    // Both are connected before it counts.
    load(&client, 8, 200).await;
    let before = [&first, &second].map(|backend| backend.inside.load(SeqCst));
    let errors = load(&client, 8, CALLS).await;
    let [one, two] = [(&first, before[0]), (&second, before[1])]
        .map(|(backend, before)| backend.inside.load(SeqCst) - before);
    match (one * 100) / (one + two) {
        _ if errors > 0 => format!("{errors} errors"),
        100 => "all to 0".to_owned(),
        87..=93 => "87 to 93 %".to_owned(),
        65..=75 => "65 to 75 %".to_owned(),
        share => format!("{share} %"),
    }
}

async fn refused(callers: usize) -> String {
    let mut live = Vec::new();
    for _ in 0..3 {
        live.push(Backend::start("v1").await);
    }
    let mut addresses: Vec<SocketAddr> = live.iter().map(|backend| backend.address).collect();
    addresses.push(free_address().unwrap());
    let plane = serve(cluster("c1"), endpoints("c1", &addresses)).await;
    let (_mesh, client) = dial(&plane).await;
    match load(&client, callers, CALLS).await {
        0 => "no error".to_owned(),
        errors => format!("{errors} errors"),
    }
}

/// One of `count` endpoints fails.
async fn failing(policy: Named, of_ten: usize, count: usize) -> String {
    let mut backends = vec![Backend::failing("bad", of_ten).await];
    for _ in 1..count {
        backends.push(Backend::start("v1").await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let plane = serve(policy, endpoints("c1", &addresses)).await;
    let (_mesh, client) = dial(&plane).await;
    // Long enough to be found.
    load(&client, 8, CALLS).await;
    let before = backends[0].inside.load(SeqCst);
    let began = Instant::now();
    let errors = load(&client, 8, CALLS).await;
    let there = backends[0].inside.load(SeqCst) - before;
    // It is tried again in fixed times, whatever the calls take here.
    let trials = began.elapsed().as_secs() as usize / FAILING_TIME.as_secs() as usize;
    let (few, limit, verdict) = match of_ten {
        10 => (errors, CALLS / 100, "at most 1 % fail after that"),
        _ => (
            there,
            CALLS / 100 + 12 * trials,
            "1 % go there, and its trials",
        ),
    };
    match few <= limit {
        true => verdict.to_owned(),
        false => format!("{errors} errors, {there} of {CALLS} there"),
    }
}

/// Makes `calls` calls, so many at a time; how many failed.
pub(crate) async fn load(client: &Client, callers: usize, calls: usize) -> usize {
    let caller = |mut client: Client| {
        tokio::spawn(async move {
            let mut errors = 0;
            for _ in 0..calls.div_ceil(callers) {
                let answer = call(&mut client).await;
                errors += usize::from(!answer.starts_with('v') && answer != "bad");
            }
            errors
        })
    };
    let tasks: Vec<_> = (0..callers).map(|_| caller(client.clone())).collect();
    let mut errors = 0;
    for task in tasks {
        errors += task.await.unwrap();
    }
    errors
}
