//! Load reports out of band from and to gRPC's C-core (gRFC A51). Its Python package has no such service:
//! the messages are written there by hand.

use std::{net::SocketAddr, process::Stdio};

use mesh_tonic::orca::{MetricRecorder, OrcaService};
use mesh_tower::orca::decode_load_report;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::*;

const POLICY: &str = "
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: greeter, namespace: default}
spec:
  host: greeter
  clientSideWeightedRoundRobin:
    blackoutPeriod: 0s
    weightUpdatePeriod: 100ms
    oobReportingPeriod: 50ms
";

struct Reporter {
    address: SocketAddr,
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Reporter {
    async fn start(version: &str, utilization: &str) -> Self {
        let mut process = Command::new(peer("bin/python").await)
            .arg(root().join("interop/grpc_orca_server.py"))
            .args([version, utilization])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(Duration::from_secs(60), lines.next_line()).await;
        let address = line.expect("it serves").unwrap().unwrap();
        Self {
            address: address.parse().unwrap(),
            lines,
            _process: process,
        }
    }

    async fn says(&mut self, expected: &str) {
        let line = timeout(MUST_HAPPEN, self.lines.next_line()).await;
        assert_eq!(line.expect(expected).unwrap().as_deref(), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_weights_follow_what_grpc_servers_report_out_of_band() {
    let world = World::start().await;
    world.write("security.yaml", PLAINTEXT);
    world.write("policy.yaml", POLICY);
    let mut v1 = Reporter::start("v1", "0.1").await;
    let mut v2 = Reporter::start("v2", "0.4").await;
    let both = [("v1", v1.address), ("v2", v2.address)];
    world.write("endpoints.yaml", &endpoints(&both));
    let member = world.member("frontend").await;
    let mut client = greeter_client(&member);
    let follows = async {
        loop {
            let mut count = 0;
            for _ in 0..100 {
                let name = "rust".to_owned();
                if let Ok(reply) = client.say_hello(HelloRequest { name }).await {
                    count += usize::from(reply.into_inner().version == "v1");
                }
            }
            if (76..=84).contains(&count) {
                return;
            }
        }
    };
    timeout(2 * MUST_HAPPEN, follows).await.expect("80 : 20");
    v1.says("began").await;
    v2.says("began").await;
    world.write("endpoints.yaml", &endpoints(&both[..1]));
    v2.says("ended").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_reads_what_our_servers_report_out_of_band() {
    let metrics = MetricRecorder::default();
    metrics
        .set_cpu_utilization(0.5)
        .set_requests_per_second(12.5)
        .set_named_metric("queue", 3.0);
    let service = OrcaService::new(metrics.clone()).min_report_interval(Duration::ZERO);
    let listener = world::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    let output = Command::new(peer("bin/python").await)
        .arg(root().join("interop/grpc_orca_client.py"))
        .args([&address.to_string(), "3"])
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), output).await;
    let output = output.expect("an end").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes = |line: &str| -> Vec<u8> {
        let digits = line.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.map(byte).collect()
    };
    let reports: Vec<_> = text
        .lines()
        .map(|line| decode_load_report(&bytes(line)).unwrap())
        .collect();
    assert_eq!(reports, vec![metrics.report(); 3]);
}
