//! What a client must do with what a control plane says, as one table over real sockets: scenario,
//! expected, got. The scenarios are where libraries for xDS are known to go wrong.

mod balance;
mod features;
mod plane;
mod resources;
mod scenarios;
#[path = "../e2e/world.rs"]
mod world;
mod zones;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use mesh_examples::greeter::{
    HelloReply, HelloRequest,
    greeter_client::GreeterClient,
    greeter_server::{Greeter, GreeterServer},
};
use mesh_tonic::{Channel, MeshExt as _};
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use plane::Plane;
use resources::TARGET;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::Instant};
use tonic::{Request, Response, Status};
use world::MUST_HAPPEN;

/// A call that has no answer after this has none at all.
const CALL_MAX: Duration = Duration::from_secs(8);
/// Between two looks at something that must become so.
const PAUSE: Duration = Duration::from_millis(5);

type Client = GreeterClient<Channel>;

fn member_with(plane: &Plane, features: &[&str]) -> Bootstrap {
    let json = serde_json::json!({
        "xds_servers": [{
            "server_uri": format!("http://{}", plane.address),
            "channel_creds": [{"type": "insecure"}],
            "server_features": features,
        }],
        "node": {"id": "acceptance"},
    });
    Bootstrap::from_json(&json.to_string()).unwrap()
}

async fn member(bootstrap: Bootstrap) -> Mesh {
    let mesh = Mesh::builder()
        .bootstrap(bootstrap)
        .telemetry(Telemetry::disabled());
    mesh.build().await.unwrap()
}

/// A client of the target that every scenario dials.
async fn dial(plane: &Plane) -> (Mesh, Client) {
    let mesh = member(member_with(plane, &[])).await;
    let client = GreeterClient::new(mesh.channel(&format!("xds:///{TARGET}")).unwrap());
    (mesh, client)
}

/// The version that answers, or the code of the failure.
async fn call(client: &mut Client) -> String {
    let mut request = Request::new(HelloRequest { name: "x".into() });
    request.set_timeout(CALL_MAX);
    match client.say_hello(request).await {
        Ok(reply) => reply.into_inner().version,
        Err(status) => format!("{:?}", status.code()),
    }
}

/// Calls until the answer is `expected`, and then ten times more; what came first that was not so.
async fn becomes(client: &mut Client, expected: &str) -> String {
    let deadline = Instant::now() + MUST_HAPPEN;
    loop {
        let got = call(client).await;
        if got == expected {
            break;
        }
        if Instant::now() > deadline {
            return got;
        }
        tokio::time::sleep(PAUSE).await;
    }
    for _ in 0..10 {
        let got = call(client).await;
        if got != expected {
            return format!("{expected}, then {got}");
        }
    }
    expected.to_owned()
}

/// Waits until `is_so`; whether it became so.
async fn eventually(is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + MUST_HAPPEN;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
    true
}

/// A server outside the mesh.
struct Backend {
    address: SocketAddr,
    /// Calls wait for one of these.
    gate: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// One that answers at once.
    async fn start(version: &'static str) -> Self {
        Self::gated(version, Semaphore::MAX_PERMITS).await
    }

    /// One that fails this many of each ten calls, at once.
    async fn failing(version: &'static str, of_ten: usize) -> Self {
        Self::with(version, Semaphore::MAX_PERMITS, of_ten).await
    }

    /// One that answers so many calls and then holds them.
    async fn gated(version: &'static str, permits: usize) -> Self {
        Self::with(version, permits, 0).await
    }

    async fn with(version: &'static str, permits: usize, failing: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Semaphore::new(permits));
        let inside = Arc::<AtomicUsize>::default();
        let service = GreeterServer::new(Held {
            version,
            gate: Arc::clone(&gate),
            inside: Arc::clone(&inside),
            failing,
        });
        let task = tokio::spawn(async move {
            // Not tonic's server, which ends a call with a status of its own when the caller's deadline
            // has passed, at the same moment as the caller does.
            let router = tonic::service::Routes::new(service).into_axum_router();
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            gate,
            inside,
            task,
        }
    }
}

struct Held {
    version: &'static str,
    gate: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    failing: usize,
}

#[tonic::async_trait]
impl Greeter for Held {
    async fn say_hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let before = self.inside.fetch_add(1, SeqCst);
        // 3 of 10 are the first, the fourth and the seventh.
        if before * self.failing % 10 < self.failing {
            return Err(Status::unavailable("as asked"));
        }
        let permit = self.gate.acquire().await.unwrap();
        permit.forget();
        Ok(Response::new(HelloReply {
            version: self.version.into(),
            ..HelloReply::default()
        }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_gives_what_xds_says() {
    let rows = scenarios::all().await;
    let mut text = String::from("| scenario | expected | got |\n|---|---|---|\n");
    for row in &rows {
        text += &format!("| {} | {} | {} |\n", row.scenario, row.expected, row.got);
    }
    println!("{text}");
    let wrong: Vec<_> = rows.iter().filter(|row| row.expected != row.got).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
