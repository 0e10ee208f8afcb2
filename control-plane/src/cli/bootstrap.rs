//! `control-plane bootstrap`: the file that a client starts from (gRFC A27).
//!
//! Always with a certificate provider, without which a client could not join where mTLS is asked
//! for; without a name that the certificate authority would refuse.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::{Uri, uri::Authority};
use serde_json::{Value, json};

use super::Workload;
use crate::{
    agent::{CHAIN, KEY, ROOTS},
    ca::Identity,
};

/// How often gRPC reads certificate files again; its own default is 10 minutes.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_secs(600);

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Bootstrap {
    #[command(flatten)]
    workload: Workload,
    /// The control plane.
    #[arg(long, default_value = "http://127.0.0.1:18000")]
    xds: String,
    /// File with the workload's join token, for this project's library.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Directory of `control-plane agent` or `cert issue`, for gRPC, which reads certificates from files.
    #[arg(long, conflicts_with = "token_file")]
    cert_dir: Option<PathBuf>,
}

impl Bootstrap {
    /// The file.
    pub(super) fn json(&self) -> anyhow::Result<Value> {
        let Workload {
            namespace,
            service_account,
        } = &self.workload;
        Identity::new(namespace, service_account)?;
        let uri: Uri = self
            .xds
            .parse()
            .with_context(|| format!("--xds {:?}", self.xds))?;
        let Some(authority) = uri
            .authority()
            .filter(|authority| authority.port().is_some())
        else {
            bail!(
                "--xds {:?} has no port: write for example http://127.0.0.1:18000",
                self.xds
            );
        };
        let (server, provider) = match &self.cert_dir {
            Some(folder) => {
                let is_tls = uri.scheme_str() == Some("https");
                let node = (namespace.as_str(), service_account.as_str());
                return Ok(of_files(authority, is_tls, folder, REFRESH_INTERVAL, node));
            }
            None => {
                let config = match &self.token_file {
                    Some(path) => json!({"token_file": path}),
                    None => json!({}),
                };
                let provider = json!({"plugin_name": "mesh_csr", "config": config});
                // Our library hears of a change alone, not of everything of its kind.
                (
                    json!({"server_uri": self.xds, "server_features": ["xds_delta"]}),
                    provider,
                )
            }
        };
        let mut server = server;
        server["channel_creds"] = json!([{"type": "insecure"}]);
        Ok(document(&server, (namespace, service_account), &provider))
    }
}

/// What gRPC starts from: it dials a name, not a URL, takes deletions at their word unless told not
/// to, and reads certificates from files.
pub(super) fn of_files(
    authority: &Authority,
    is_tls: bool,
    folder: &Path,
    refresh: Duration,
    node: (&str, &str),
) -> Value {
    let files = json!({
        "certificate_file": folder.join(CHAIN),
        "private_key_file": folder.join(KEY),
        "ca_certificate_file": folder.join(ROOTS),
        "refresh_interval": format!("{}s", refresh.as_secs()),
    });
    // Our roots vouch for the control plane, too.
    let creds = match is_tls {
        true => json!({"type": "tls", "config": files}),
        false => json!({"type": "insecure"}),
    };
    let server = json!({
        "server_uri": authority.as_str(),
        "server_features": ["xds_v3", "ignore_resource_deletion"],
        "channel_creds": [creds],
    });
    document(
        &server,
        node,
        &json!({"plugin_name": "file_watcher", "config": files}),
    )
}

fn document(server: &Value, (namespace, account): (&str, &str), provider: &Value) -> Value {
    json!({
        "xds_servers": [server],
        "node": {
            "id": format!("{account}~ns/{namespace}/sa/{account}"),
            "metadata": {"NAMESPACE": namespace},
        },
        "certificate_providers": {"default": provider},
        "server_listener_resource_name_template": "mesh/inbound/%s",
    })
}
