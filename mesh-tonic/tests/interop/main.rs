//! Real peers: Envoy driven by our control plane, gRPC's C-core as client and as xDS server.
//!
//! The first test that needs them installs them with `scripts/setup-peers.sh`.

mod agent;
mod authz;
mod beside;
mod consul;
#[allow(dead_code, reason = "shared with the target `routing`")]
#[path = "../routing/echo.rs"]
mod echo;
mod endurance;
mod filters;
#[path = "../e2e/issuer.rs"]
mod issuer;
#[path = "../e2e/load.rs"]
mod load;
mod orca;
mod panics;
mod passthrough;
#[allow(dead_code, reason = "shared with the target `acceptance`")]
#[path = "../acceptance/plane.rs"]
mod plane;
#[allow(dead_code, reason = "shared with the target `routing`")]
#[path = "../routing/redirecting.rs"]
mod redirecting;
mod redirects;
#[allow(dead_code, reason = "shared with the target `acceptance`")]
#[path = "../acceptance/resources.rs"]
mod resources;
mod retries;
mod routes;
#[allow(dead_code, reason = "shared with the target `routing`")]
#[path = "../routing/scene.rs"]
mod scene;
mod sessions;

#[path = "../routing/stateful.rs"]
mod stateful;
#[allow(dead_code, reason = "shared with the target `routing`")]
#[path = "../routing/unruly.rs"]
mod unruly;
mod validate;
mod wait;
#[path = "../e2e/world.rs"]
mod world;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mesh_examples::{
    greeter::HelloRequest,
    ports::{free_address, free_port},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::OnceCell,
    time::timeout,
};
use wait::{found, http, until};
use world::{MUST_HAPPEN, SECURITY, World, endpoints, greeter_client, routes};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A file of the peers, which are installed when they are not there.
async fn peer(path: &str) -> PathBuf {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let install = async || {
        let script = root().join("scripts/setup-peers.sh");
        let status = Command::new(&script).stdout(Stdio::null()).status().await;
        let is_done = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        assert!(
            is_done,
            "{}: {status:?}; run it to see why",
            script.display()
        );
    };
    INSTALLED.get_or_init(install).await;
    let folder = std::env::var_os("MESH_PEERS_DIR")
        .map_or_else(|| root().join("target/peers"), PathBuf::from);
    folder.join(path)
}

async fn admin(port: u16, path: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
    )
    .await
}

struct Envoy {
    _process: Child,
    admin: u16,
    outbound: u16,
}

async fn start_envoy(
    xds: SocketAddr,
    (node, token): (&str, String),
    folder: &Path,
    api_type: &str,
) -> Envoy {
    let (admin_port, outbound) = (free_port().unwrap(), free_port().unwrap());
    let template = fs::read_to_string(root().join("interop/envoy.yaml")).unwrap();
    let config = [
        ("@NODE@", node.to_owned()),
        ("@ACCOUNT@", "frontend".to_owned()),
        ("@OUTBOUND_PORT@", outbound.to_string()),
        ("@ADMIN_PORT@", admin_port.to_string()),
        ("@API_TYPE@", api_type.to_owned()),
        ("@TOKEN@", token),
        ("@XDS_PORT@", xds.port().to_string()),
    ]
    .iter()
    .fold(template, |text, (mark, value)| text.replace(mark, value));
    let path = folder.join(format!("{node}.yaml"));
    fs::write(&path, config).unwrap();
    let mut process = envoy_process(&path).await;
    let address = SocketAddr::from(([127, 0, 0, 1], outbound));
    wait::listens(&mut process, address).await;
    until("Envoy is live", async || {
        admin(admin_port, "/ready").await.contains("LIVE")
    })
    .await;
    Envoy {
        _process: process,
        admin: admin_port,
        outbound,
    }
}

/// Starts Envoy with the configuration in a file; it ends when the child is dropped.
async fn envoy_process(config: &Path) -> Child {
    Command::new(peer("bin/envoy").await)
        .arg("-c")
        .arg(config)
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Calls the greeter through Envoy over HTTP/2, as a gRPC client without a mesh would.
async fn call_through(envoy: &Envoy, canary: bool) -> Result<String, tonic::Status> {
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", envoy.outbound))
            .unwrap()
            .origin("http://greeter.default:8080".parse().unwrap());
    let channel = endpoint.connect().await.unwrap();
    let mut client = mesh_examples::greeter::greeter_client::GreeterClient::new(channel);
    let mut request = tonic::Request::new(HelloRequest {
        name: "envoy".into(),
    });
    if canary {
        request
            .metadata_mut()
            .insert("canary", "true".parse().unwrap());
    }
    Ok(client.say_hello(request).await?.into_inner().version)
}

async fn envoy_routes(api_type: &str) {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    let (v1, v2) = (world.greeter("v1").await, world.greeter("v2").await);
    world.write(
        "endpoints.yaml",
        &endpoints(&[("v1", v1.address), ("v2", v2.address)]),
    );
    world.write("routes.yaml", &routes(80, 20));
    let folder = tempfile::tempdir().unwrap();
    let frontend = ("envoy", world.token("frontend"));
    let envoy = start_envoy(world.xds_addr(), frontend, folder.path(), api_type).await;

    until("a call through Envoy over mTLS", async || {
        call_through(&envoy, true).await.is_ok()
    })
    .await;
    for _ in 0..20 {
        assert_eq!(
            call_through(&envoy, true).await.unwrap(),
            "v2",
            "routed by header"
        );
    }
    let mut v2_calls = 0;
    for _ in 0..300 {
        v2_calls += usize::from(call_through(&envoy, false).await.unwrap() == "v2");
    }
    assert!(
        (30..95).contains(&v2_calls),
        "routed by weight: {v2_calls} of 300"
    );

    // A change of weights arrives, and nothing was refused.
    world.write("routes.yaml", &routes(1, 99));
    let changed = async {
        loop {
            let mut v2_calls = 0;
            for _ in 0..20 {
                v2_calls += usize::from(call_through(&envoy, false).await.unwrap() == "v2");
            }
            if v2_calls >= 17 {
                return;
            }
        }
    };
    timeout(MUST_HAPPEN, changed)
        .await
        .expect("the new weights");
    let stats = admin(envoy.admin, "/stats?filter=update_rejected").await;
    for line in stats
        .lines()
        .filter(|line| line.contains("update_rejected"))
    {
        assert!(line.ends_with(": 0"), "{stats}");
    }
    let control_plane = world.control_plane.as_ref().unwrap();
    assert_eq!(
        control_plane.metrics().nacks_total(),
        0,
        "{:?}",
        control_plane.clients()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_over_state_of_the_world_routes_by_header_and_weight_over_mtls() {
    envoy_routes("GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_over_delta_routes_by_header_and_weight_over_mtls() {
    envoy_routes("DELTA_GRPC").await;
}

async fn python(world: &World, script: &str) -> Command {
    python_of(&[world.xds_addr()], "python", None, script).await
}

/// A script of gRPC's C-core that asks these servers in order, with certificates if there are some.
async fn python_of(
    servers: &[SocketAddr],
    node: &str,
    certificates: Option<&Path>,
    script: &str,
) -> Command {
    let server = |xds: &SocketAddr| {
        serde_json::json!({
            "server_uri": xds.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        })
    };
    let mut bootstrap = serde_json::json!({
        "xds_servers": servers.iter().map(server).collect::<Vec<_>>(),
        "node": {
            "id": format!("{node}~ns/default/sa/python"),
            "metadata": {"NAMESPACE": "default"},
        },
        "server_listener_resource_name_template": "mesh/inbound/%s",
    });
    if let Some(folder) = certificates {
        let config = serde_json::json!({
            "certificate_file": folder.join("cert-chain.pem"),
            "private_key_file": folder.join("key.pem"),
            "ca_certificate_file": folder.join("root-cert.pem"),
        });
        let provider = serde_json::json!({"plugin_name": "file_watcher", "config": config});
        bootstrap["certificate_providers"] = serde_json::json!({ "default": provider });
    }
    let mut command = Command::new(peer("bin/python").await);
    command
        .arg(root().join("interop").join(script))
        .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
        .kill_on_drop(true);
    command
}

/// No mTLS: gRPC's C-core needs its certificates in files for it.
const PLAINTEXT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: DISABLE}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_c_core_calls_our_server_through_xds() {
    let world = World::start().await;
    world.write("security.yaml", PLAINTEXT);
    let (v1, v2) = (world.greeter("v1").await, world.greeter("v2").await);
    world.write(
        "endpoints.yaml",
        &endpoints(&[("v1", v1.address), ("v2", v2.address)]),
    );
    world.write("routes.yaml", &routes(50, 50));
    let run = async |arguments: &[&str]| {
        let mut client = python(&world, "grpc_client.py").await;
        let output = client.args(arguments).output();
        let output = timeout(Duration::from_secs(60), output)
            .await
            .expect("an end")
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect(&errors)
    };
    let seen = run(&["xds:///greeter.default", "200"]).await;
    let share = |version: &str| seen[version].as_u64().unwrap_or(0);
    assert_eq!(share("v1") + share("v2"), 200, "{seen}");
    assert!((60..140).contains(&share("v2")), "{seen}");
    let seen = run(&["xds:///greeter.default", "20", "canary=true"]).await;
    assert_eq!(seen["v2"], 20, "{seen}");
    assert_eq!(
        world
            .control_plane
            .as_ref()
            .unwrap()
            .metrics()
            .nacks_total(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_channel_calls_grpc_c_core_as_xds_server() {
    let world = World::start().await;
    world.write("security.yaml", PLAINTEXT);
    let address = free_address().unwrap();
    world.write("endpoints.yaml", &endpoints(&[("v1", address)]));
    let mut server = python(&world, "grpc_server.py")
        .await
        .args([&address.to_string(), "python"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = timeout(Duration::from_secs(60), lines.next_line())
        .await
        .expect("it serves");
    assert_eq!(line.unwrap().as_deref(), Some("serving"));
    let member = world.member("frontend").await;
    let mut client = greeter_client(&member);
    let hello = || HelloRequest {
        name: "rust".into(),
    };
    let reply = found("an answer", async || client.say_hello(hello()).await.ok()).await;
    let reply = reply.into_inner();
    assert_eq!(
        (reply.version.as_str(), reply.message.as_str()),
        ("python", "hello rust")
    );
    for _ in 0..50 {
        client
            .say_hello(HelloRequest {
                name: "rust".into(),
            })
            .await
            .unwrap();
    }
    assert_eq!(
        world
            .control_plane
            .as_ref()
            .unwrap()
            .metrics()
            .nacks_total(),
        0
    );
}
