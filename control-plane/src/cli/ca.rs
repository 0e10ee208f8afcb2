//! `control-plane ca`: changes the roots of a running control plane, over its admin endpoint.
//!
//! The change goes on in the control plane whether somebody looks or not; these commands begin it,
//! show how far it is, and turn it back.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use http::{Method, Uri};
use serde_json::Value;

use super::admin::{self, Admin};

/// How often progress is asked for.
const LOOK: Duration = Duration::from_millis(500);

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
    /// The control plane's admin endpoint: HOST:PORT, or `https://HOST:PORT` where it speaks TLS.
    #[arg(long, default_value = "http://127.0.0.1:18001", value_parser = admin::address)]
    http: Uri,
    /// PEM roots that vouch for it over TLS. Default: those in the data directory.
    #[arg(long)]
    ca: Option<PathBuf>,
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
        let admin = Admin {
            server: &self.http,
            ca: self.ca.as_deref(),
            data_dir: Some(&self.data_dir),
        };
        admin.ask(method, &format!("/v1/ca/rotation{query}")).await
    }
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
