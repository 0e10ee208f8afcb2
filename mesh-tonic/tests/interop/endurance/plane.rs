//! Control planes in processes of their own, which can be killed.

use std::{env, io::Read as _, net::SocketAddr, process::Stdio, time::Duration};

use clap::Parser as _;
use control_plane::{cache::input_version, cli::Cli, source::load_folder};
use mesh_examples::ports::free_address;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::super::{World, http};

/// The command line of the process that [`control_plane_process`] becomes.
const ARGUMENTS: &str = "MESH_TEST_CONTROL_PLANE";
/// Real peers come back after a restart with backoffs of seconds.
const SETTLES: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

/// Not a test by itself: what this test binary is started as to be a control plane. It ends with
/// its standard input, so that no failure leaves one behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_plane_process() {
    let Ok(arguments) = env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Vec<String> = serde_json::from_str(&arguments).unwrap();
    std::thread::spawn(|| {
        _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    assert_eq!(Cli::parse_from(arguments).run().await.unwrap(), 0);
}

/// One control plane, maybe not running.
pub(super) struct Plane {
    arguments: String,
    process: Option<Child>,
    pub(super) xds: SocketAddr,
    pub(super) http: SocketAddr,
}

impl Plane {
    /// A control plane at a free port, which does not run yet.
    pub(super) fn new() -> Self {
        Self {
            arguments: String::new(),
            process: None,
            xds: free_address().unwrap(),
            http: free_address().unwrap(),
        }
    }

    /// Starts it over the directories of `world`, at the same addresses each time.
    pub(super) async fn start(&mut self, world: &World) {
        let (xds, http) = (self.xds.to_string(), self.http.to_string());
        let (config, data) = (world.config_dir(), world.data_dir());
        let arguments = [
            "control-plane",
            "serve",
            "--config",
            config.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
            "--xds-listen",
            &xds,
            "--http-listen",
            &http,
        ];
        self.arguments = serde_json::to_string(&arguments).unwrap();
        let process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "endurance::plane::control_plane_process"])
            .env(ARGUMENTS, &self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let ready = async {
            loop {
                let is_up = TcpStream::connect(self.http).await.is_ok();
                if is_up && self.get("/readyz").await.contains("200 OK") {
                    return;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(SETTLES, ready).await.expect("it listens");
    }

    /// `kill -9`.
    pub(super) async fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().await.unwrap();
    }

    /// SIGTERM, and its end.
    pub(super) async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        let id = process.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await;
        assert!(sent.unwrap().success());
        // Its standard input stays open until it has ended by itself.
        let input = process.stdin.take();
        let ended = timeout(SETTLES, process.wait()).await;
        assert!(ended.expect("an end").unwrap().success());
        drop(input);
    }

    pub(super) async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        http(self.http, &request).await
    }

    /// What `/v1/clients` says, with the name in front of the node id.
    pub(super) async fn clients(&self) -> Vec<(String, Value)> {
        let answer = self.get("/v1/clients").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let listed: Vec<Value> = serde_json::from_str(body).expect(head);
        let by_name = |client: Value| {
            let node = client["node"].as_str().unwrap();
            (node.split('~').next().unwrap().to_owned(), client)
        };
        listed.into_iter().map(by_name).collect()
    }

    /// How many responses were refused since its start.
    pub(super) async fn refusals(&self) -> u64 {
        let metrics = self.get("/metrics").await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("pilot_total_xds_rejects"));
        let (_, count) = line.unwrap().rsplit_once(' ').unwrap();
        count.trim().parse().unwrap()
    }

    /// Waits until all of `nodes` have answered everything of what is in the configuration now,
    /// and none refuses any of it. A name that is there twice is that of two.
    pub(super) async fn settle(&self, world: &World, nodes: &[&str]) {
        let loaded = load_folder(&world.config_dir()).unwrap();
        let version = input_version(&loaded.objects).to_string();
        let deadline = Instant::now() + SETTLES;
        loop {
            let clients = self.clients().await;
            let settled = |node: &str| {
                let named = clients.iter().filter(|(name, _)| name == node);
                named
                    .filter(|(_, client)| client["settled"] == version)
                    .count()
            };
            let wanted = |node: &str| nodes.iter().filter(|wanted| **wanted == node).count();
            let late = nodes.iter().filter(|node| settled(node) < wanted(node));
            let late: Vec<_> = late.collect();
            if late.is_empty() {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{late:?} did not answer {version}: {clients:#?}"
            );
            sleep(PAUSE).await;
        }
        self.check().await;
    }

    /// That nobody refused anything.
    pub(super) async fn check(&self) {
        if self.refusals().await > 0 {
            panic!("refused: {:#?}", self.clients().await);
        }
    }
}
