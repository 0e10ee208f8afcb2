//! A whole mesh in one process: a control plane over real files, services and clients over real
//! sockets.

#![expect(dead_code, reason = "no test binary uses all of the kit")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use control_plane::{
    ControlPlane, Running, cache::input_version, server::Progress, source::load_folder,
};
use mesh_examples::{
    greeter::{
        HelloReply, HelloRequest,
        greeter_client::GreeterClient,
        greeter_server::{Greeter, GreeterServer},
    },
    ports::free_address,
};
use mesh_tonic::{Channel, MeshExt};
use mesh_tower::{Mesh, MeshBuilder, Registration, identity::PeerIdentity, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status};

/// Something that must happen happens within this; a real bound only in a failing run.
pub(crate) const MUST_HAPPEN: Duration = Duration::from_secs(20);

/// A control plane and the directories it reads.
pub(crate) struct World {
    dir: TempDir,
    pub(crate) control_plane: Option<Running>,
    xds: SocketAddr,
    /// Asked when the first cannot be reached.
    fallbacks: Vec<SocketAddr>,
    cert_ttl: Duration,
}

impl World {
    /// The directories for control planes that run elsewhere, at these addresses in order.
    pub(crate) fn without_control_plane(xds: SocketAddr, fallbacks: Vec<SocketAddr>) -> Self {
        Self {
            dir: directories(""),
            control_plane: None,
            xds,
            fallbacks,
            cert_ttl: Duration::from_secs(3600),
        }
    }

    pub(crate) async fn start() -> Self {
        Self::start_with("", Duration::from_secs(3600)).await
    }

    pub(crate) async fn start_with_ttl(cert_ttl: Duration) -> Self {
        Self::start_with("", cert_ttl).await
    }

    /// A control plane that finds `config` when it starts.
    pub(crate) async fn start_with(config: &str, cert_ttl: Duration) -> Self {
        let dir = directories(config);
        // It may come back where it was.
        let own = free_address().unwrap();
        let running = launch(dir.path(), own, cert_ttl).await;
        let xds = running.xds_addr();
        Self {
            dir,
            control_plane: Some(running),
            xds,
            fallbacks: Vec::new(),
            cert_ttl,
        }
    }

    pub(crate) async fn stop_control_plane(&mut self) {
        self.control_plane.take().unwrap().shutdown().await;
    }

    pub(crate) async fn start_control_plane(&mut self) {
        let running = launch(self.dir.path(), self.xds, self.cert_ttl).await;
        self.control_plane = Some(running);
    }

    pub(crate) fn config_dir(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn http_addr(&self) -> SocketAddr {
        self.control_plane.as_ref().unwrap().http_addr()
    }

    /// Writes a file of the configuration the way editors do: a new file that takes the name.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join("config").join(name);
        let temporary = self.dir.path().join(name);
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// Waits until clients have what was written: who asks for it before the control plane has read it
    /// is told that there is no such thing.
    pub(crate) async fn is_read(&self) {
        let control_plane = self.control_plane.as_ref().unwrap();
        let written = load_folder(&self.config_dir()).unwrap();
        let version = input_version(&written.objects);
        let waited = control_plane.wait(Some(version), MUST_HAPPEN).await;
        assert_ne!(waited.progress, Progress::Unknown, "{waited:?}");
    }

    /// A member of the mesh that is `account` in the namespace `default`.
    pub(crate) async fn member(&self, account: &str) -> Mesh {
        self.member_with(account, Telemetry::disabled()).await
    }

    pub(crate) async fn member_with(&self, account: &str, telemetry: Telemetry) -> Mesh {
        let mesh = self.member_builder(account).telemetry(telemetry);
        let mesh = mesh.build().await.unwrap();
        tokio::time::timeout(MUST_HAPPEN, mesh.ready())
            .await
            .expect("a certificate")
            .unwrap();
        mesh
    }

    pub(crate) fn member_builder(&self, account: &str) -> MeshBuilder {
        Mesh::builder()
            .bootstrap(self.bootstrap(account, account, &[]))
            .telemetry(Telemetry::disabled())
            .drain_timeout(Duration::from_secs(5))
    }

    /// Where xDS is served.
    pub(crate) fn xds_addr(&self) -> SocketAddr {
        self.xds
    }

    /// A join token of `account` in the namespace `default`.
    pub(crate) fn token(&self, account: &str) -> String {
        let life = Duration::from_secs(3600);
        control_plane::ca::create_token(&self.data_dir(), "default", account, life).unwrap()
    }

    /// What a member that is `account` and calls itself `node` starts from.
    pub(crate) fn bootstrap(&self, account: &str, node: &str, features: &[&str]) -> Bootstrap {
        Bootstrap::from_json(&self.bootstrap_json(account, node, features)).unwrap()
    }

    /// The same as text, for another process.
    pub(crate) fn bootstrap_json(&self, account: &str, node: &str, features: &[&str]) -> String {
        let token_file = self.dir.path().join(format!("{node}.token"));
        fs::write(&token_file, self.token(account)).unwrap();
        let server = |xds: &SocketAddr| {
            serde_json::json!({
                "server_uri": format!("http://{xds}"),
                "channel_creds": [{"type": "insecure"}],
                "server_features": features,
            })
        };
        let servers: Vec<_> = [self.xds]
            .iter()
            .chain(&self.fallbacks)
            .map(server)
            .collect();
        let json = serde_json::json!({
            "xds_servers": servers,
            "node": {
                "id": format!("{node}~ns/default/sa/{account}"),
                "metadata": {"NAMESPACE": "default"},
            },
            "server_listener_resource_name_template": "mesh/inbound/%s",
            "certificate_providers": {
                "default": {"plugin_name": "mesh_csr", "config": {"token_file": token_file}},
            },
        });
        json.to_string()
    }

    /// A greeter of the given version on a port of its own.
    pub(crate) async fn greeter(&self, version: &'static str) -> Server {
        let own = free_address().unwrap();
        self.greeter_at(own, version, Telemetry::disabled()).await
    }

    pub(crate) async fn greeter_at(
        &self,
        address: SocketAddr,
        version: &'static str,
        telemetry: Telemetry,
    ) -> Server {
        let mesh = self.member_with("greeter", telemetry).await;
        self.greeter_of_at(mesh, address, version).await
    }

    /// A greeter that is the given member.
    pub(crate) async fn greeter_of(&self, mesh: Mesh, version: &'static str) -> Server {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        self.greeter_of_at(mesh, any, version).await
    }

    pub(crate) async fn greeter_of_at(
        &self,
        mesh: Mesh,
        address: SocketAddr,
        version: &'static str,
    ) -> Server {
        Self::serve_greeter(mesh, address, version, None)
    }

    /// A greeter that nobody declared: it registers itself.
    pub(crate) fn serve_greeter(
        mesh: Mesh,
        address: SocketAddr,
        version: &'static str,
        registration: Option<Registration>,
    ) -> Server {
        let listener = bind(address);
        let address = listener.local_addr().unwrap();
        let greeter = TestGreeter {
            version,
            fail_next: Arc::default(),
            served: Arc::default(),
        };
        let served = Arc::clone(&greeter.served);
        let fail_next = Arc::clone(&greeter.fail_next);
        let routes = tonic::service::Routes::new(GreeterServer::new(greeter)).prepare();
        let task = tokio::spawn(async move {
            match registration {
                Some(registration) => mesh.serve_as(registration, listener, routes).await,
                None => mesh.serve(listener, routes).await,
            }
        });
        Server {
            address,
            fail_next,
            served,
            task,
        }
    }
}

/// A greeter of the given version, to be served by something else.
pub(crate) fn greeter_routes(version: &'static str) -> tonic::service::Routes {
    tonic::service::Routes::new(GreeterServer::new(TestGreeter {
        version,
        fail_next: Arc::default(),
        served: Arc::default(),
    }))
}

/// In the directory of a world: roots of those who serve the keys of issuers.
pub(crate) const ISSUER_ROOTS: &str = "issuers.pem";

async fn launch(dir: &Path, xds: SocketAddr, cert_ttl: Duration) -> Running {
    let mut builder = ControlPlane::builder(dir.join("config"), dir.join("data"))
        .xds_listen(xds)
        .http_listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .cert_ttl(cert_ttl);
    let roots = dir.join(ISSUER_ROOTS);
    if roots.exists() {
        builder = builder
            .jwks_ca_file(roots)
            .jwks_refresh(Duration::from_millis(50));
    }
    builder.start().await.unwrap()
}

fn directories(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("config")).unwrap();
    fs::write(dir.path().join("config/first.yaml"), config).unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    dir
}

pub(crate) fn bind(address: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

/// A running service.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The next so many calls answer UNAVAILABLE.
    pub(crate) fail_next: Arc<AtomicUsize>,
    /// Calls that were answered.
    pub(crate) served: Arc<AtomicUsize>,
    task: JoinHandle<Result<(), mesh_tower::server::ServeError>>,
}

impl Server {
    /// Ends at once, in the middle of whatever there is.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.task.abort();
        _ = self.task.await;
        self.address
    }
}

#[derive(Clone)]
struct TestGreeter {
    version: &'static str,
    fail_next: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Greeter for TestGreeter {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let fails = self
            .fail_next
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_ok();
        if fails {
            return Err(Status::unavailable("asked to fail"));
        }
        self.served.fetch_add(1, Relaxed);
        let peer = request.extensions().get::<PeerIdentity>();
        let peer = peer
            .map(|peer| peer.principal().to_owned())
            .unwrap_or_default();
        let message = format!("hello {}", request.into_inner().name);
        Ok(Response::new(HelloReply {
            message,
            version: self.version.into(),
            peer,
        }))
    }
}

pub(crate) type Client = GreeterClient<Channel>;

pub(crate) fn greeter_client(mesh: &Mesh) -> Client {
    GreeterClient::new(mesh.channel("xds:///greeter.default").unwrap())
}

/// The mesh's policy for the greeter: STRICT, and only `frontend` may call.
pub(crate) const SECURITY: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: frontend-only, namespace: default}
spec:
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/default/sa/frontend]}
";

/// The greeter with its endpoints by version.
pub(crate) fn endpoints(servers: &[(&str, SocketAddr)]) -> String {
    let mut text = String::from(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: greeter, namespace: default}
spec:
  hosts: [greeter.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  endpoints:
",
    );
    for (version, address) in servers {
        text += &format!(
            "  - {{address: {}, ports: {{grpc: {}}}, labels: {{version: {version}}}, \
             serviceAccount: greeter}}\n",
            address.ip(),
            address.port()
        );
    }
    text
}

/// Routes by header and weight, with retries.
pub(crate) fn routes(v1: u32, v2: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: greeter, namespace: default}}
spec:
  host: greeter.default.svc.cluster.local
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: greeter, namespace: default}}
spec:
  hosts: [greeter.default.svc.cluster.local]
  http:
  - match: [{{headers: {{canary: {{exact: 'true'}}}}}}]
    route: [{{destination: {{host: greeter.default.svc.cluster.local, subset: v2}}}}]
  - route:
    - {{destination: {{host: greeter.default.svc.cluster.local, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: greeter.default.svc.cluster.local, subset: v2}}, weight: {v2}}}
    retries: {{attempts: 3, retryOn: 'unavailable,reset,connect-failure,refused-stream'}}
"
    )
}
