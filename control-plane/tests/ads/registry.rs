//! Services register over HTTP and over a lease: what clients are pushed then, and what is left after
//! a restart.

use std::collections::BTreeMap;

use control_plane::{
    cache::ResourceType,
    registry::{FileStore, Store},
};
use envoy_types::pb::{
    envoy::{
        config::{core::v3::HealthStatus, endpoint::v3::ClusterLoadAssignment},
        service::discovery::v3::DiscoveryResponse,
    },
    google::protobuf::Any,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::kit::{CLUSTER, HOUR, MUST_HAPPEN, World, decode, launch, ports, write};

/// The cluster of a service that nobody declared.
const OWN: &str = "outbound|80||billing.default.svc.cluster.local";

impl World {
    /// A plain HTTP PUT; the status.
    async fn put(&self, path: &str, body: &str) -> u16 {
        put(self.running.http_addr(), path, body).await
    }

    async fn json(&self, path: &str) -> serde_json::Value {
        json(self, path).await
    }
}

pub(crate) async fn json(world: &World, path: &str) -> serde_json::Value {
    let answer = world.get(path).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

pub(crate) async fn put(address: std::net::SocketAddr, path: &str, body: &str) -> u16 {
    put_with(address, path, "", body).await
}

/// The same with further header lines.
async fn put_with(address: std::net::SocketAddr, path: &str, headers: &str, body: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer[9..12].parse().unwrap()
}

/// Port, health and weight of each endpoint.
fn endpoints(any: &Any) -> BTreeMap<u32, (HealthStatus, u32)> {
    let assignment: ClusterLoadAssignment = decode(any);
    let ports = ports(any);
    let localities = assignment.endpoints.into_iter();
    let endpoints = localities.flat_map(|locality| locality.lb_endpoints);
    let state = endpoints.map(|endpoint| {
        let weight = endpoint
            .load_balancing_weight
            .map_or(1, |weight| weight.value);
        (endpoint.health_status(), weight)
    });
    ports.into_iter().zip(state).collect()
}

#[tokio::test]
async fn an_instance_that_registers_joins_its_service_and_nothing_but_its_endpoints_is_pushed() {
    let world = World::start().await;
    let mut stream = world.sotw("mesh-rs").await;
    let names = ["greeter.default:8080"];
    stream.fetch(ResourceType::Listener, &names).await;
    stream.fetch(ResourceType::Route, &[CLUSTER]).await;
    stream.fetch(ResourceType::Cluster, &[CLUSTER]).await;
    let first = stream.fetch(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(ports(&first.resources[0]), [5000]);

    let body = r#"{"Name": "greeter", "ID": "g1", "Port": 5001, "Address": "127.0.0.1",
                   "Weights": {"Passing": 3, "Warning": 2}}"#;
    assert_eq!(world.put("/v1/agent/service/register", body).await, 200);
    let second = stream.next().await;
    assert_eq!(second.type_url, ResourceType::Endpoints.url());
    let found = endpoints(&second.resources[0]);
    assert_eq!(found[&5001], (HealthStatus::Healthy, 3));
    assert_eq!(found.len(), 2, "the one of the file stays");

    // It drains for a while after it deregistered, so that clients that know it are answered.
    let path = "/v1/agent/service/deregister/g1";
    assert_eq!(world.put(path, "").await, 200);
    let third = stream.next().await;
    assert_eq!(third.type_url, ResourceType::Endpoints.url());
    assert_eq!(
        endpoints(&third.resources[0])[&5001].0,
        HealthStatus::Draining
    );
    assert_eq!(world.put(path, "").await, 404, "it is gone for who asks");
    let metrics = world.get("/metrics").await;
    let compiles = metrics
        .lines()
        .filter(|line| line.starts_with("mesh_compiles"));
    let expected = [
        "mesh_compiles{type=\"endpoints\"} 2",
        "mesh_compiles{type=\"everything\"} 1",
    ];
    let mut compiles: Vec<_> = compiles.collect();
    compiles.sort_unstable();
    assert_eq!(
        compiles, expected,
        "instances alone are not worth a compile of everything"
    );
}

#[tokio::test]
async fn a_service_that_nobody_declared_is_dialled_by_its_name_and_consuls() {
    let world = World::start().await;
    let body = r#"{"Name": "billing", "Port": 5001, "Check": {"TTL": "60s"}}"#;
    assert_eq!(world.put("/v1/agent/service/register", body).await, 200);
    let mut stream = world.sotw("mesh-rs").await;
    let names = ["billing", "billing.default", "billing.service.consul"];
    let listeners = stream.fetch(ResourceType::Listener, &names).await;
    assert_eq!(listeners.resources.len(), names.len());
    let endpoints_of = |response: &DiscoveryResponse| endpoints(&response.resources[0])[&5001].0;
    let first = stream.fetch(ResourceType::Endpoints, &[OWN]).await;
    assert_eq!(
        endpoints_of(&first),
        HealthStatus::Unhealthy,
        "nobody said that it is well"
    );

    let pass = "/v1/agent/check/pass/service:billing?note=all%20well";
    assert_eq!(world.put(pass, "").await, 200);
    let second = stream.next().await;
    assert_eq!(endpoints_of(&second), HealthStatus::Healthy);
    stream
        .ask(ResourceType::Endpoints, &[OWN], &second.nonce)
        .await;
    let checks = world.json("/v1/agent/checks").await;
    assert_eq!(checks["service:billing"]["Output"], "all well");

    let maintain = "/v1/agent/service/maintenance/billing?enable=true&reason=upgrade";
    assert_eq!(world.put(maintain, "").await, 200);
    assert_eq!(endpoints_of(&stream.next().await), HealthStatus::Draining);
}

#[tokio::test]
async fn a_blocking_query_answers_when_the_service_changes() {
    let world = World::start().await;
    let register = async |id: &str| {
        let body = format!(r#"{{"Name": "billing", "ID": "{id}", "Port": 1}}"#);
        assert_eq!(world.put("/v1/agent/service/register", &body).await, 200);
    };
    register("a").await;
    let index = |answer: &str| {
        let header = answer
            .lines()
            .find(|line| line.to_lowercase().starts_with("x-consul-index"));
        let (_, index) = header.unwrap().split_once(": ").unwrap();
        index.trim().parse::<u64>().unwrap()
    };
    let first = world.get("/v1/health/service/billing?passing").await;
    let path = format!(
        "/v1/health/service/billing?passing&wait=10m&index={}",
        index(&first)
    );
    let waiting = world.get(&path);
    let (second, ()) = tokio::join!(timeout(MUST_HAPPEN, waiting), register("b"));
    let second = second.expect("an answer when the service changed");
    assert!(second.contains(r#""ID":"b""#), "{second}");
    assert!(index(&second) > index(&first));
    // An index of another life of the control plane does not wait.
    let old = world.get("/v1/health/service/billing?wait=10m&index=1000000");
    timeout(MUST_HAPPEN, old).await.expect("an answer at once");
}

#[tokio::test]
async fn an_http_check_of_the_control_plane_takes_an_instance_out_and_back() {
    let world = World::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    let body = format!(
        r#"{{"Name": "billing", "Port": {port},
        "Check": {{"HTTP": "http://127.0.0.1:{port}/healthy?a=b", "Interval": "1s", "Timeout": "20s"}}}}"#
    );
    assert_eq!(world.put("/v1/agent/service/register", &body).await, 200);
    let mut stream = world.sotw("mesh-rs").await;
    let first = stream.fetch(ResourceType::Endpoints, &[OWN]).await;
    let health = |any: &Any| endpoints(any)[&u32::from(port)].0;
    assert_eq!(health(&first.resources[0]), HealthStatus::Unhealthy);
    for (status, expected) in [
        ("204 No Content", HealthStatus::Healthy),
        ("500 No", HealthStatus::Unhealthy),
    ] {
        let pushed = loop {
            tokio::select! {
                accepted = target.accept() => {
                    let mut socket = accepted.unwrap().0;
                    let mut request = [0; 1024];
                    let length = socket.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..length]);
                    assert!(request.starts_with("GET /healthy?a=b HTTP/1.1\r\n"), "{request}");
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
                pushed = stream.next() => break pushed,
            }
        };
        assert_eq!(health(&pushed.resources[0]), expected, "{status}");
        stream
            .ask(ResourceType::Endpoints, &[OWN], &pushed.nonce)
            .await;
    }
    let checks = world.json("/v1/health/state/critical").await;
    let output = checks[0]["Output"].as_str().unwrap();
    assert!(output.contains("500"), "{output}");
}

#[tokio::test]
async fn registrations_outlive_the_control_plane() {
    let world = World::start().await;
    let body = r#"{"Name": "billing", "Port": 5001, "Check": {"TTL": "60s", "Status": "passing"}}"#;
    assert_eq!(world.put("/v1/agent/service/register", body).await, 200);
    let other = r#"{"Name": "billing", "ID": "other", "Port": 5002}"#;
    assert_eq!(world.put("/v1/agent/service/register", other).await, 200);
    assert_eq!(
        world.put("/v1/agent/service/deregister/other", "").await,
        200
    );
    let World { dir, running } = world;
    running.shutdown().await;
    let running = launch(dir.path(), HOUR).await;
    let world = World { dir, running };
    let mut stream = world.sotw("mesh-rs").await;
    let found = stream.fetch(ResourceType::Endpoints, &[OWN]).await;
    let found = endpoints(&found.resources[0]);
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [(5001, (HealthStatus::Healthy, 1))]
    );
    let log = world.dir.path().join("data/registrations.log");
    assert_eq!(FileStore::new(log).load().unwrap().len(), 1);
}

#[tokio::test]
async fn workload_entries_and_instances_that_an_entry_selects_are_its_endpoints() {
    let world = World::start().await;
    let text = "
kind: ServiceEntry
metadata: {name: billing}
spec:
  hosts: [billing.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC, targetPort: 5003}]
  workloadSelector: {labels: {app: billing}}
---
kind: WorkloadEntry
metadata: {name: one}
spec: {address: 127.0.0.1, ports: {grpc: 5001}, weight: 4, labels: {app: billing}}
---
kind: WorkloadEntry
metadata: {name: two, labels: {app: billing}}
spec: {address: 127.0.0.1}
---
kind: WorkloadEntry
metadata: {name: other, labels: {app: other}}
spec: {address: 127.0.0.9}
";
    write(world.dir.path(), text);
    let body = r#"{"Name": "vm", "Port": 5002, "Meta": {"app": "billing"}}"#;
    assert_eq!(world.put("/v1/agent/service/register", body).await, 200);
    let mut stream = world.sotw("mesh-rs").await;
    let cluster = "outbound|8080||billing.example.com";
    let mut response = stream.fetch(ResourceType::Endpoints, &[cluster]).await;
    let all = |response: &DiscoveryResponse| {
        let found = endpoints(&response.resources[0]).into_iter();
        found
            .map(|(port, (_, weight))| (port, weight))
            .collect::<Vec<_>>()
    };
    let expected = [(5001, 4), (5002, 1), (5003, 1)];
    while all(&response) != expected {
        response = stream.next().await;
        stream
            .ask(ResourceType::Endpoints, &[cluster], &response.nonce)
            .await;
    }
}

#[tokio::test]
async fn operators_see_every_instance_its_health_and_why() {
    let world = World::start().await;
    let body = r#"{"Name": "billing", "Port": 5001, "Check": {"TTL": "60s"}}"#;
    assert_eq!(world.put("/v1/agent/service/register", body).await, 200);
    let path = "/v1/agent/check/fail/service:billing?note=no%20database";
    assert_eq!(world.put(path, "").await, 200);
    let all = world.json("/v1/services").await;
    let by = |service: &str| {
        let all = all["services"].as_array().unwrap();
        all.iter()
            .find(|one| one["service"] == service)
            .unwrap()
            .clone()
    };
    let billing = by("default/billing");
    assert_eq!(
        (&billing["health"], &billing["source"]),
        (&"unhealthy".into(), &"http".into())
    );
    assert_eq!(billing["checks"][0]["output"], "no database");
    let greeter = by("default/greeter");
    assert_eq!(
        (&greeter["health"], &greeter["source"]),
        (&"healthy".into(), &"file".into())
    );
    assert_eq!(greeter["address"], "127.0.0.1:5000");

    let http = world.running.http_addr().to_string();
    let cli = |arguments: &'static [&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_control-plane"));
        command.args(["services", "--http", &http]).args(arguments);
        command
    };
    let text = async |arguments| {
        let mut command = cli(arguments);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let table = text(&["billing"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[2].contains("no database") && !table.contains('\x1b'),
        "{table}"
    );
    let json: serde_json::Value = serde_json::from_str(&text(&["-o", "json"]).await).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(2));
}
