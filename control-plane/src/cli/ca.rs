//! `control-plane ca`: changes the roots of a running control plane, over its admin endpoint.
//!
//! The change goes on in the control plane whether somebody looks or not; these commands begin it,
//! show how far it is, and turn it back.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{HTTP_PORT, admin::AdminKey};

/// How often progress is asked for.
const LOOK: Duration = Duration::from_millis(500);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Changes the root: gives everybody a new one, signs with it, and takes the old one away, each
    /// step when the one before is confirmed. Follows a change that is going on; may be stopped and
    /// started again.
    Rotate {
        #[command(flatten)]
        server: Server,
        /// Clients that do not say what they trust have the new root by other means.
        #[arg(long)]
        ignore_unobserved: bool,
    },
    /// Says how far a change of roots is.
    Status {
        #[command(flatten)]
        server: Server,
    },
    /// Goes back to the old root, by the same steps.
    Abort {
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// The control plane's admin endpoint.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], HTTP_PORT)))]
    http: SocketAddr,
    /// The control plane's data directory, which holds the key of its admin endpoint.
    #[arg(long)]
    data_dir: PathBuf,
}

impl Ca {
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        match self {
            Self::Rotate {
                server,
                ignore_unobserved,
            } => {
                let before = server.ask(Method::GET, "").await?;
                if before["step"].is_null() {
                    server.ask(Method::POST, "?do=begin").await?;
                }
                if ignore_unobserved {
                    server.ask(Method::POST, "?do=ignore-unobserved").await?;
                }
                server.follow().await
            }
            Self::Status { server } => {
                println!("{}", line(&server.ask(Method::GET, "").await?));
                Ok(0)
            }
            Self::Abort { server } => {
                let status = server.ask(Method::POST, "?do=abort").await?;
                println!("{}", line(&status));
                Ok(0)
            }
        }
    }
}

impl Server {
    /// Prints progress until the change is over.
    async fn follow(&self) -> anyhow::Result<u8> {
        let mut printed = String::new();
        loop {
            let status = self.ask(Method::GET, "").await?;
            let line = line(&status);
            if line != printed {
                println!("{line}");
                printed = line;
            }
            if status["step"].is_null() {
                return Ok(0);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn ask(&self, method: Method, query: &str) -> anyhow::Result<Value> {
        let key = AdminKey::read(&self.data_dir)
            .with_context(|| format!("admin.key in {}", self.data_dir.display()))?;
        let path = format!("/v1/ca/rotation{query}");
        ask(self.http, Some(&key), method, &path).await
    }
}

/// Asks a control plane's admin endpoint, with its key where that is known.
pub(super) async fn ask(
    http: SocketAddr,
    key: Option<&str>,
    method: Method,
    path: &str,
) -> anyhow::Result<Value> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, send(http, key, method, path)).await;
    let place = format!("control plane at {http}");
    let (status, body) = answer.with_context(|| place.clone())?.context(place)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        bail!(
            "{status}: {}",
            body["error"].as_str().unwrap_or("no reason given")
        );
    }
    Ok(body)
}

async fn send(
    http: SocketAddr,
    key: Option<&str>,
    method: Method,
    path: &str,
) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let stream = TcpStream::connect(http).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, http.to_string());
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.trim()));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("its answer: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// Progress in a line.
fn line(status: &Value) -> String {
    let Some(step) = status["step"].as_str() else {
        return "no change of roots is going on".to_owned();
    };
    let meaning = match step {
        "distribute" => "1/3 both roots are given to every client",
        "issue" => "2/3 the new root signs",
        _ => "3/3 the old root leaves",
    };
    let mut text = format!("{meaning}: {} clients confirmed", status["confirmed"]);
    if let Some(waits_for) = status["waits_for"].as_str().filter(|text| !text.is_empty()) {
        text += &format!("; waits for {waits_for}");
    }
    for (count, nodes) in [
        ("waiting", "waiting_for"),
        ("unobserved", "unobserved_nodes"),
    ] {
        let names: Vec<_> = status[nodes].as_array().into_iter().flatten().collect();
        let names: Vec<_> = names.iter().filter_map(|name| name.as_str()).collect();
        if !names.is_empty() {
            text += &format!("; {} {count}: {}", status[count], names.join(", "));
        }
    }
    text
}
