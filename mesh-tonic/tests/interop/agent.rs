//! gRPC's C-core with certificates that our agent keeps in files: as client and as server it makes
//! new connections after each rotation, and no call fails.
//!
//! Leaves live for seconds, so that whoever missed a rotation has a certificate that has ended.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use control_plane::agent::{Agent, AgentOptions, Progress};
use mesh_examples::{
    greeter::{HelloRequest, greeter_client::GreeterClient},
    ports::free_address,
};
use mesh_tonic::MeshExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};

use super::{peer, root};
use crate::world::{MUST_HAPPEN, SECURITY, World, endpoints};

/// Life of a leaf.
const LIFE: Duration = Duration::from_secs(12);
/// One for each rotation.
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];
/// Python is slow to start where everything is busy.
const STARTS: Duration = Duration::from_secs(60);

/// An agent that runs, and what it did.
struct Kept {
    written: mpsc::UnboundedReceiver<Progress>,
    folder: std::path::PathBuf,
}

impl Kept {
    async fn start(world: &World, account: &str, folder: &Path) -> Self {
        let token = folder.join(format!("{account}.token"));
        fs::write(&token, world.token(account)).unwrap();
        let out = folder.join(account);
        let server = format!("http://{}", world.xds_addr()).parse().unwrap();
        let mut options = AgentOptions::new(server, &out);
        options.token_file = Some(token);
        let (tx, written) = mpsc::unbounded_channel();
        let agent = Agent::open(options).unwrap();
        tokio::spawn(agent.run(move |progress| _ = tx.send(progress)));
        let mut kept = Self {
            written,
            folder: out,
        };
        kept.rotated().await;
        kept
    }

    /// Waits for the next certificate.
    async fn rotated(&mut self) {
        match timeout(STARTS, self.written.recv()).await {
            Ok(Some(Progress::Written { .. })) => {}
            other => panic!("{other:?}"),
        }
    }

    /// A process of gRPC with these files.
    async fn python(&self, world: &World, node: &str, arguments: &[&str]) -> Process {
        let files = json!({
            "certificate_file": self.folder.join("cert-chain.pem"),
            "private_key_file": self.folder.join("key.pem"),
            "ca_certificate_file": self.folder.join("root-cert.pem"),
            "refresh_interval": "1s",
        });
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": world.xds_addr().to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": {
                "id": format!("{node}~ns/default/sa/{node}"),
                "metadata": {"NAMESPACE": "default"},
            },
            "server_listener_resource_name_template": "mesh/inbound/%s",
            "certificate_providers": {
                "default": {"plugin_name": "file_watcher", "config": files},
            },
        });
        let mut child = Command::new(peer("bin/python").await)
            .arg(root().join("interop").join(arguments[0]))
            .args(&arguments[1..])
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Process {
            input: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }
}

struct Process {
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Process {
    async fn line(&mut self) -> String {
        let line = timeout(STARTS, self.lines.next_line()).await;
        line.expect("a line").unwrap().expect("it runs")
    }

    /// What the steady caller saw since it was asked last.
    async fn seen(&mut self) -> Value {
        self.input.write_all(b"\n").await.unwrap();
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// Waits until calls reach a version; none may fail on the way, if so asked.
    async fn reaches(&mut self, version: &str, may_fail: bool) {
        let reached = async {
            loop {
                let seen = self.seen().await;
                assert!(may_fail || seen["failed"] == json!([]), "{seen}");
                if seen["seen"][version].as_u64() > Some(0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(STARTS, reached).await.expect(version);
    }
}

/// The second service, which gRPC serves.
fn served_by_grpc(address: SocketAddr) -> String {
    let text = endpoints(&[("python", address)]);
    text.replace("name: greeter,", "name: python,")
        .replace("greeter.default.svc", "python.default.svc")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_c_core_calls_and_serves_over_three_rotations_of_an_agents_files() {
    let world = World::start_with_ttl(LIFE).await;
    world.write("security.yaml", SECURITY);
    // Those that are left stay up, so that no call under way is lost to anything but certificates.
    let mut servers = vec![world.greeter("v0").await];
    world.write("endpoints.yaml", &endpoints(&[("v0", servers[0].address)]));
    let address = free_address().unwrap();
    world.write("python.yaml", &served_by_grpc(address));

    let folder = tempfile::tempdir().unwrap();
    let mut frontend = Kept::start(&world, "frontend", folder.path()).await;
    let mut greeter = Kept::start(&world, "greeter", folder.path()).await;
    let arguments = ["grpc_steady.py", "xds:///greeter.default", "0.02"];
    let mut caller = frontend.python(&world, "frontend", &arguments).await;
    let text = address.to_string();
    let arguments = ["grpc_server.py", &text, "python"];
    let mut callee = greeter.python(&world, "greeter", &arguments).await;
    assert_eq!(callee.line().await, "serving");

    let hello = || HelloRequest { name: "a".into() };
    // Each call of a new member is a new handshake with gRPC's server.
    let call = async |may_fail: bool| {
        let member = world.member("frontend").await;
        let mut client = GreeterClient::new(member.channel("xds:///python.default").unwrap());
        let reply = loop {
            match client.say_hello(hello()).await {
                Ok(reply) => break reply.into_inner(),
                Err(error) => assert!(may_fail, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(reply.version, "python");
    };
    timeout(MUST_HAPPEN, call(true)).await.expect("an answer");
    // It may be there before its configuration is.
    caller.reaches("v0", true).await;
    assert_eq!(caller.seen().await["failed"], json!([]));

    for version in VERSIONS {
        frontend.rotated().await;
        greeter.rotated().await;
        // A server that the caller has no connection to.
        let next = world.greeter(version).await;
        world.write("endpoints.yaml", &endpoints(&[(version, next.address)]));
        caller.reaches(version, false).await;
        servers.push(next);
        call(false).await;
    }
    assert_eq!(caller.seen().await["failed"], json!([]));
}
