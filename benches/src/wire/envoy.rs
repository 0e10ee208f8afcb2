//! Envoy as a sidecar: one beside the client, one beside the server.

use std::{fs, net::SocketAddr};

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    child::{self, Process},
    ports::free_address,
};

/// Two running Envoys.
#[derive(Debug)]
pub(super) struct Sidecars {
    /// The one beside the client.
    pub(super) near: Process,
    /// The one beside the server.
    pub(super) far: Process,
    /// Through `near` to the servers.
    pub(super) one_hop: SocketAddr,
    /// Through `near` and `far` to the servers.
    pub(super) two_hops: SocketAddr,
    _dir: TempDir,
}

impl Sidecars {
    pub(super) async fn start(servers: &[SocketAddr]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let (one_hop, two_hops, inbound) = (free_address()?, free_address()?, free_address()?);
        let far = start(
            &dir,
            "far",
            json!([listener("inbound", inbound, "servers")]),
            json!([cluster("servers", servers)]),
            inbound,
        );
        let far = far.await?;
        let near = start(
            &dir,
            "near",
            json!([
                listener("one", one_hop, "servers"),
                listener("two", two_hops, "far")
            ]),
            json!([cluster("servers", servers), cluster("far", &[inbound])]),
            two_hops,
        );
        Ok(Self {
            near: near.await?,
            far,
            one_hop,
            two_hops,
            _dir: dir,
        })
    }
}

async fn start(
    dir: &TempDir,
    name: &str,
    listeners: Value,
    clusters: Value,
    address: SocketAddr,
) -> anyhow::Result<Process> {
    let config = json!({
        "node": {"id": name, "cluster": "benches"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    let path = dir.path().join(format!("{name}.json"));
    fs::write(&path, config.to_string())?;
    let arguments = [
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
        "-c",
    ];
    let mut arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    arguments.push(path.as_os_str());
    child::start_peer(child::peer("bin/envoy")?, &arguments, address)
        .await
        .with_context(|| format!("Envoy {name}"))
}

fn at(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// Limits that a benchmark does not meet.
const UNLIMITED: u32 = 1_000_000;

fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints = endpoints
        .iter()
        .map(|address| json!({"endpoint": {"address": at(*address)}}));
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{
            "max_requests": UNLIMITED, "max_pending_requests": UNLIMITED,
            "max_connections": UNLIMITED,
        }]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}],
        },
    })
}

fn listener(name: &str, address: SocketAddr, cluster: &str) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager\
                  .v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{
            "name": "any",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
        }]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }],
    });
    json!({
        "name": name,
        "address": at(address),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }]}],
    })
}
