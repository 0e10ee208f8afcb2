//! Ten thousand ADS streams on one control plane: memory of a stream, and time from a change to the
//! last client's ACK.
//!
//! `cargo bench -p control-plane --bench streams [-- STREAMS]`. The clients are another process, so
//! that the memory is the control plane's alone; both share the machine. Fails when a budget of
//! docs is not kept: 50 KiB a stream, and 99 of 100 changes with every client within a second.
//! What the clients send is written out below, because a load must not cost more than its server.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use control_plane::{
    ControlPlane, Running,
    cache::input_version,
    server::{Limits, Progress},
    source::load_folder,
};
use prost::Message;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const STREAMS: usize = 10_000;
const SERVICES: usize = 100;
const ENDPOINTS: usize = 10;
const ROUNDS: usize = 100;
/// Budgets of the design.
const MEMORY_MAX: usize = 50 * 1024;
const P99_MAX: Duration = Duration::from_secs(1);
/// Connections that are opened at the same time.
const OPENING: usize = 200;
/// A change that takes longer has failed.
const MUST_HAPPEN: Duration = Duration::from_secs(60);
/// Between two changes, so that each is the first after a quiet time.
const QUIET: Duration = Duration::from_millis(300);

const ADS: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const TYPES: [&str; 4] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
];

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "6")]
    user_agent_name: String,
}

/// The part of a DiscoveryRequest that is needed.
#[derive(Clone, PartialEq, Message)]
struct Ask {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(message, optional, tag = "2")]
    node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    response_nonce: String,
}

/// The part of a DiscoveryResponse that is needed.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments: Vec<_> = env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    if let [role, address, streams] = &arguments[..]
        && role == "client"
    {
        let address = address.parse().expect("an address");
        clients(address, streams.parse().expect("a number")).await;
        return ExitCode::SUCCESS;
    }
    let streams = arguments
        .first()
        .and_then(|arg| arg.parse().ok())
        .unwrap_or(STREAMS);
    measure(streams).await
}

async fn measure(streams: usize) -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config");
    fs::create_dir(&config).expect("a folder");
    for service in 0..SERVICES {
        write(&config, service, 0);
    }
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let running = ControlPlane::builder(&config, folder.path().join("data"))
        .xds_listen(any)
        .http_listen(any)
        .limits(Limits {
            streams: 2 * streams,
            streams_per_second: 1_000_000,
            burst: 1_000_000,
            streams_per_identity: 2 * streams,
            requests_per_second: 1_000_000,
            requests_burst: 1_000_000,
            ..Limits::default()
        })
        .start()
        .await
        .expect("a control plane");
    let before = resident();
    let begin = Instant::now();
    let mut child = spawn(running.xds_addr(), streams);
    settle(&running, &config).await;
    let opened = begin.elapsed();
    let memory = resident().saturating_sub(before) / streams;
    println!("{streams} streams, {SERVICES} services of {ENDPOINTS} endpoints, {ROUNDS} changes");
    println!("all streams served in     {:8.0} ms", millis(opened));
    println!(
        "memory of a stream        {:8.1} KiB",
        memory as f64 / 1024.0
    );
    // Service 0 is used by every client, each other one by its share.
    let all = changes(&running, &config, 0).await;
    let few = changes(&running, &config, 1).await;
    let mut is_kept = memory <= MEMORY_MAX;
    for (name, times) in [("every client", all), ("1 % of clients", few)] {
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!(
            "change to last ACK, {name:14}: p50 {:6.1} ms, p99 {:6.1} ms",
            millis(p50),
            millis(p99)
        );
        is_kept &= p99 <= P99_MAX;
    }
    child.kill().expect("the clients to end");
    child.wait().expect("the clients to end");
    running.shutdown().await;
    if is_kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The times of many changes to a service, sorted.
async fn changes(running: &Running, config: &Path, service: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        tokio::time::sleep(QUIET).await;
        let begin = Instant::now();
        write(config, service, round);
        settle(running, config).await;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    times
}

/// Waits until every client has what is in the folder.
async fn settle(running: &Running, config: &Path) {
    let version = input_version(&load_folder(config).expect("a folder").objects);
    let waited = loop {
        let waited = running.wait(Some(version), MUST_HAPPEN).await;
        if waited.progress != Progress::Unknown {
            break waited;
        }
    };
    assert_eq!(waited.progress, Progress::Done, "{waited:?}");
}

fn write(config: &Path, service: usize, round: usize) {
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|n| format!("  - {{address: 10.{}.{}.{n}}}", service % 256, round % 256))
        .collect();
    let text = format!(
        "kind: ServiceEntry
metadata: {{name: s{service}}}
spec:
  hosts: [s{service}.default.svc.cluster.local]
  resolution: STATIC
  ports: [{{number: 80, name: grpc, protocol: GRPC}}]
  endpoints:
{}
",
        endpoints.join("\n")
    );
    fs::write(config.join(".new"), text).expect("a file");
    fs::rename(config.join(".new"), config.join(format!("s{service}.yaml"))).expect("a file");
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    pages * 4096
}

/// Starts the clients, and waits until all have everything.
fn spawn(address: SocketAddr, streams: usize) -> Child {
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["client", &address.to_string(), &streams.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the clients");
    let output = BufReader::new(child.stdout.take().expect("output"));
    let line = output.lines().next().expect("a line").expect("text");
    assert_eq!(line, "ready");
    child
}

async fn clients(address: SocketAddr, streams: usize) {
    let (ready, mut is_ready) = mpsc::channel(OPENING);
    let mut tasks = JoinSet::new();
    let opening = std::sync::Arc::new(tokio::sync::Semaphore::new(OPENING));
    for number in 0..streams {
        let permit = std::sync::Arc::clone(&opening)
            .acquire_owned()
            .await
            .expect("open");
        let ready = ready.clone();
        tasks.spawn(async move {
            let (requests, responses) = open(address).await;
            drop(permit);
            client(number, &requests, responses, ready).await;
        });
    }
    for _ in 0..streams {
        is_ready.recv().await.expect("a client");
    }
    println!("ready");
    std::io::stdout().flush().expect("output");
    while tasks.join_next().await.is_some() {}
}

async fn open(address: SocketAddr) -> (mpsc::Sender<Ask>, Streaming<Answer>) {
    let channel: Channel = Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect()
        .await
        .expect("a connection");
    let (requests, rx) = mpsc::channel(8);
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let codec = ProstCodec::<Ask, Answer>::default();
    let request = Request::new(ReceiverStream::new(rx));
    let path = http::uri::PathAndQuery::from_static(ADS);
    let responses = grpc
        .streaming(request, path, codec)
        .await
        .expect("a stream");
    (requests, responses.into_inner())
}

/// Subscribes to two services, and accepts whatever comes.
async fn client(
    number: usize,
    requests: &mpsc::Sender<Ask>,
    mut responses: Streaming<Answer>,
    ready: mpsc::Sender<()>,
) {
    let services = [0, number % SERVICES];
    let mut node = Some(Node {
        id: format!("client-{number}~ns/default/sa/client"),
        user_agent_name: "gRPC Go".to_owned(),
    });
    let mut names = HashMap::new();
    for (index, kind) in TYPES.into_iter().enumerate() {
        let name = |service: &usize| match index {
            0 => format!("s{service}.default:80"),
            _ => format!("outbound|80||s{service}.default.svc.cluster.local"),
        };
        let mut wanted: Vec<_> = services.iter().map(name).collect();
        wanted.dedup();
        let ask = Ask {
            node: node.take(),
            resource_names: wanted.clone(),
            type_url: kind.to_owned(),
            ..Ask::default()
        };
        names.insert(kind.to_owned(), wanted);
        requests.send(ask).await.expect("a stream");
    }
    let (mut missing, mut is_ready) = (TYPES.to_vec(), false);
    while let Ok(Some(answer)) = responses.message().await {
        let ack = Ask {
            version_info: answer.version_info,
            node: None,
            resource_names: names[&answer.type_url].clone(),
            response_nonce: answer.nonce,
            type_url: answer.type_url.clone(),
        };
        requests.send(ack).await.expect("a stream");
        missing.retain(|kind| *kind != answer.type_url);
        if missing.is_empty() && !is_ready {
            is_ready = true;
            ready.send(()).await.expect("a waiter");
        }
    }
}
