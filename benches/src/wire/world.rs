//! A control plane in this process, and members of its mesh.

use std::{fs, net::SocketAddr, time::Duration};

use control_plane::{ControlPlane, Running};
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use tempfile::TempDir;

/// A control plane and the directories it reads.
#[derive(Debug)]
pub struct World {
    dir: TempDir,
    control_plane: Running,
    is_mutual: bool,
}

impl World {
    /// With mTLS everywhere or nowhere.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(is_mutual: bool) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let (config, data) = (dir.path().join("config"), dir.path().join("data"));
        fs::create_dir(&config)?;
        fs::create_dir(&data)?;
        let mode = if is_mutual { "STRICT" } else { "DISABLE" };
        fs::write(
            config.join("security.yaml"),
            format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: default, namespace: default}}\n\
                 spec: {{mtls: {{mode: {mode}}}}}\n"
            ),
        )?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let control_plane = ControlPlane::builder(config, data)
            .xds_listen(any)
            .http_listen(any)
            .cert_ttl(Duration::from_secs(24 * 3600))
            .start()
            .await?;
        Ok(Self {
            dir,
            control_plane,
            is_mutual,
        })
    }

    /// Where xDS is served.
    pub fn xds_addr(&self) -> SocketAddr {
        self.control_plane.xds_addr()
    }

    /// A service `NAME.default` on port 8080 at `addresses`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn service(
        &self,
        name: &str,
        protocol: &str,
        addresses: &[SocketAddr],
    ) -> anyhow::Result<()> {
        let mut text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  \
             hosts: [{name}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  \
             resolution: STATIC\n  ports: [{{number: 8080, name: main, protocol: {protocol}}}]\n  \
             endpoints:\n"
        );
        for address in addresses {
            text += &format!(
                "  - {{address: {}, ports: {{main: {}}}, serviceAccount: server}}\n",
                address.ip(),
                address.port()
            );
        }
        let temporary = self.dir.path().join(name);
        fs::write(&temporary, text)?;
        let path = self.dir.path().join("config").join(format!("{name}.yaml"));
        Ok(fs::rename(temporary, path)?)
    }

    /// A bootstrap of `account` in the namespace `default`.
    ///
    /// # Errors
    /// When there is no token.
    pub fn bootstrap(&self, account: &str) -> anyhow::Result<String> {
        let mut bootstrap = serde_json::json!({
            "xds_servers": [{
                "server_uri": format!("http://{}", self.xds_addr()),
                "channel_creds": [{"type": "insecure"}],
            }],
            "node": {
                "id": format!("{account}~ns/default/sa/{account}"),
                "metadata": {"NAMESPACE": "default"},
            },
            "server_listener_resource_name_template": "mesh/inbound/%s",
        });
        if self.is_mutual {
            let (data, life) = (self.dir.path().join("data"), Duration::from_secs(3600));
            let token = control_plane::ca::create_token(&data, "default", account, life)?;
            let token_file = self.dir.path().join(format!("{account}.token"));
            fs::write(&token_file, token)?;
            bootstrap["certificate_providers"] = serde_json::json!({
                "default": {"plugin_name": "mesh_csr", "config": {"token_file": token_file}},
            });
        }
        Ok(bootstrap.to_string())
    }

    /// A member of the mesh, with telemetry off as for the peers.
    ///
    /// # Errors
    /// When it cannot join.
    pub async fn member(&self, account: &str) -> anyhow::Result<Mesh> {
        let mesh = Mesh::builder()
            .bootstrap(Bootstrap::from_json(&self.bootstrap(account)?)?)
            .telemetry(Telemetry::disabled())
            .build()
            .await?;
        tokio::time::timeout(Duration::from_secs(20), mesh.ready()).await??;
        Ok(mesh)
    }
}
