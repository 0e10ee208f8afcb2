//! What each process of the quickstart does.
//!
//! The greeter and the front end are what an application looks like: its own tonic and axum code,
//! and a few lines that make it a member of the mesh.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use clap::ValueEnum;
use control_plane::ControlPlane;
use mesh_examples::greeter::{
    HelloReply, HelloRequest,
    greeter_client::GreeterClient,
    greeter_server::{Greeter, GreeterServer},
};
use mesh_tonic::{Channel, MeshExt};
use mesh_tower::{Mesh, identity::PeerIdentity};
use mesh_xds_client::Bootstrap;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// Which process.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    ControlPlane,
    GreeterV1,
    GreeterV2,
    Frontend,
}

pub(crate) async fn run(role: Role, port: u16, folder: &Path) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match role {
        Role::ControlPlane => {
            let http: u16 = fs::read_to_string(folder.join("http.port"))?.parse()?;
            let running = ControlPlane::builder(folder.join("config"), folder.join("data"))
                .xds_listen(address)
                .http_listen(SocketAddr::from((Ipv4Addr::LOCALHOST, http)))
                .start()
                .await?;
            ended_with_parent().await;
            running.shutdown().await;
            Ok(())
        }
        Role::GreeterV1 => greeter(address, folder, "v1").await,
        Role::GreeterV2 => greeter(address, folder, "v2").await,
        Role::Frontend => frontend(address, folder).await,
    }
}

/// Only Ctrl-C ends a service; the parent kills it otherwise.
async fn ended_with_parent() {
    _ = tokio::signal::ctrl_c().await;
}

async fn greeter(address: SocketAddr, folder: &Path, version: &'static str) -> anyhow::Result<()> {
    let mesh = Mesh::builder()
        .bootstrap(bootstrap(folder, "greeter")?)
        .build()
        .await?;
    let routes = tonic::service::Routes::new(GreeterServer::new(Hello { version }));
    let listener = TcpListener::bind(address).await?;
    mesh.serve(listener, routes.prepare()).await?;
    Ok(())
}

struct Hello {
    version: &'static str,
}

#[tonic::async_trait]
impl Greeter for Hello {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
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

async fn frontend(address: SocketAddr, folder: &Path) -> anyhow::Result<()> {
    let mesh = Mesh::builder()
        .bootstrap(bootstrap(folder, "frontend")?)
        .build()
        .await?;
    let greeter = GreeterClient::new(mesh.channel("xds:///greeter.default")?);
    let router = Router::new()
        .route("/greet/{name}", get(greet))
        .route(
            "/metrics",
            get({
                let metrics = mesh.telemetry().metrics().clone();
                async move || metrics.encode()
            }),
        )
        .with_state(greeter);
    mesh.serve(TcpListener::bind(address).await?, router)
        .await?;
    Ok(())
}

async fn greet(
    State(mut greeter): State<GreeterClient<Channel>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> (StatusCode, Json<Value>) {
    match greeter.say_hello(HelloRequest { name }).await {
        Ok(reply) => {
            let HelloReply {
                message,
                version,
                peer,
            } = reply.into_inner();
            (
                StatusCode::OK,
                Json(json!({"message": message, "version": version, "peer": peer})),
            )
        }
        Err(status) => (
            StatusCode::BAD_GATEWAY,
            Json(json!({"error": status.to_string()})),
        ),
    }
}

/// A bootstrap and a join token for each member.
pub(crate) fn write_bootstraps(folder: &Path, xds: u16) -> anyhow::Result<()> {
    for account in ["greeter", "frontend", "visitor"] {
        let life = Duration::from_secs(24 * 60 * 60);
        let token =
            control_plane::ca::create_token(&folder.join("data"), "default", account, life)?;
        let token_file = folder.join(format!("{account}.token"));
        fs::write(&token_file, token)?;
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": format!("http://127.0.0.1:{xds}"),
                "server_features": ["xds_delta"],
                "channel_creds": [{"type": "insecure"}],
            }],
            "node": {
                "id": format!("{account}~ns/default/sa/{account}"),
                "metadata": {"NAMESPACE": "default"},
            },
            "server_listener_resource_name_template": "mesh/inbound/%s",
            "certificate_providers": {
                "default": {"plugin_name": "mesh_csr", "config": {"token_file": token_file}},
            },
        });
        fs::write(
            folder.join(format!("{account}.json")),
            bootstrap.to_string(),
        )?;
    }
    Ok(())
}

pub(crate) fn bootstrap(folder: &Path, account: &str) -> anyhow::Result<Bootstrap> {
    Ok(Bootstrap::from_file(
        &folder.join(format!("{account}.json")),
    )?)
}
