//! A control plane that other machines could reach: TLS, a one-time token, and identities that are
//! what they say.

use std::{fs, net::SocketAddr, time::Duration};

use control_plane::{
    ControlPlane, Running, Tls,
    ca::{Identity, TokenUse, create_token_for},
};
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::{Bootstrap, StreamStatus};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::world::MUST_HAPPEN;

struct Secured {
    dir: TempDir,
    running: Running,
}

impl Secured {
    async fn start(cert_ttl: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("config/first.yaml"), "").unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let running = ControlPlane::builder(dir.path().join("config"), dir.path().join("data"))
            .xds_listen(any)
            .http_listen(any)
            .cert_ttl(cert_ttl)
            .tls(Tls::Always)
            .start()
            .await
            .unwrap();
        Self { dir, running }
    }

    /// A member with a token that is good once, which calls itself `node`.
    async fn member(&self, account: &str, node: &str) -> Mesh {
        let (token_file, data) = (self.dir.path().join(account), self.dir.path().join("data"));
        let identity = Identity::new("default", account).unwrap();
        let life = Duration::from_secs(600);
        let token = create_token_for(&data, &identity, life, TokenUse::Once).unwrap();
        fs::write(&token_file, token).unwrap();
        let roots = data.join("ca/trust-bundle.pem");
        let creds = json!([{"type": "tls", "config": {"ca_certificate_file": roots}}]);
        let json = json!({
            "xds_servers": [{
                "server_uri": format!("https://{}", self.running.xds_addr()),
                "channel_creds": creds,
            }],
            "node": {"id": node, "metadata": {"NAMESPACE": "default"}},
            "certificate_providers": {
                "default": {"plugin_name": "mesh_csr", "config": {"token_file": token_file}},
            },
        });
        Mesh::builder()
            .bootstrap(Bootstrap::from_json(&json.to_string()).unwrap())
            .telemetry(Telemetry::disabled())
            .build()
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_time_token_is_enough_and_renewals_follow_over_tls() {
    let world = Secured::start(Duration::from_secs(10)).await;
    let member = world.member("web", "web~ns/default/sa/web").await;
    let ready = timeout(MUST_HAPPEN, member.ready()).await;
    ready.expect("a certificate and the trust bundle").unwrap();
    let identity = member.identity().unwrap();
    let first = identity.certificate().unwrap().not_after();
    let mut certificates = identity.certificates();
    let renewed = certificates.wait_for(|held| held.as_ref().unwrap().not_after() != first);
    let renewed = timeout(2 * MUST_HAPPEN, renewed).await;
    _ = renewed
        .expect("renewed, although the token is used up")
        .unwrap();
    let nodes = world.running.clients();
    assert_eq!(nodes[0].node, "web~ns/default/sa/web");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_claims_to_be_another_is_refused() {
    let world = Secured::start(Duration::from_secs(600)).await;
    let liar = world.member("web", "bank~ns/default/sa/bank").await;
    let mut status = liar.control_plane_status();
    let refused = status.wait_for(|status| match status {
        StreamStatus::Disconnected { error, .. } => error.contains("names another identity"),
        _ => false,
    });
    _ = timeout(MUST_HAPPEN, refused)
        .await
        .expect("refused")
        .unwrap();
    assert!(world.running.clients().is_empty());
}
