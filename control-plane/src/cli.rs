//! The command line.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    CERT_TTL, ControlPlane, HTTP_PORT, XDS_PORT,
    ca::{Authority, Identity, create_token},
    check::check,
    compile::CompileOptions,
    diagnostic::Severity,
};

/// The control plane of the mesh.
#[derive(Debug, Parser)]
#[command(name = "control-plane", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves xDS and certificates for the configuration in a directory.
    Serve(Serve),
    /// Checks a directory; exits with 1 when there are errors.
    Check {
        /// The directory.
        directory: PathBuf,
        /// How to print.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Join tokens.
    #[command(subcommand)]
    Token(Token),
    /// Certificates in files, for clients that cannot ask for them.
    #[command(subcommand)]
    Cert(Cert),
    /// Prints a bootstrap for a workload.
    Bootstrap {
        #[command(flatten)]
        workload: Workload,
        /// The control plane.
        #[arg(long, default_value = "http://127.0.0.1:18000")]
        xds: String,
        /// File with the workload's join token.
        #[arg(long)]
        token_file: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Directory with YAML files.
    #[arg(long)]
    config: PathBuf,
    /// Directory for the root and the join tokens.
    #[arg(long)]
    data_dir: PathBuf,
    /// xDS, certificates and gRPC health.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], XDS_PORT)))]
    xds_listen: SocketAddr,
    /// REST, metrics and health.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], HTTP_PORT)))]
    http_listen: SocketAddr,
    /// Trust domain of identities.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Longest life of a certificate, in seconds.
    #[arg(long, default_value_t = CERT_TTL.as_secs())]
    cert_ttl_seconds: u64,
    /// Listen on addresses that other machines can reach, although nothing here is encrypted yet.
    #[arg(long)]
    allow_remote: bool,
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Makes a token and prints it.
    Create {
        #[command(flatten)]
        workload: Workload,
        /// The control plane's data directory.
        #[arg(long)]
        data_dir: PathBuf,
        /// Life of the token, in seconds.
        #[arg(long, default_value_t = CERT_TTL.as_secs())]
        ttl_seconds: u64,
    },
}

#[derive(Debug, Subcommand)]
enum Cert {
    /// Writes key.pem, cert-chain.pem and root-cert.pem.
    Issue {
        #[command(flatten)]
        workload: Workload,
        /// The control plane's data directory.
        #[arg(long)]
        data_dir: PathBuf,
        /// Directory to write to.
        #[arg(long)]
        out: PathBuf,
        /// Trust domain of identities.
        #[arg(long, default_value = "cluster.local")]
        trust_domain: String,
    },
}

#[derive(Debug, clap::Args)]
struct Workload {
    /// Its namespace.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Its service account.
    #[arg(long)]
    service_account: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Cli {
    /// Runs the command; the exit code.
    ///
    /// # Errors
    /// What could not be done, for people.
    pub async fn run(self) -> anyhow::Result<u8> {
        match self.command {
            Command::Serve(serve) => serve.run().await.map(|()| 0),
            Command::Check { directory, output } => print_check(&directory, output),
            Command::Token(Token::Create {
                workload,
                data_dir,
                ttl_seconds,
            }) => {
                let Workload {
                    namespace,
                    service_account,
                } = workload;
                let life = Duration::from_secs(ttl_seconds);
                println!(
                    "{}",
                    create_token(&data_dir, &namespace, &service_account, life)?
                );
                Ok(0)
            }
            Command::Cert(Cert::Issue {
                workload,
                data_dir,
                out,
                trust_domain,
            }) => {
                let authority = Authority::open(&data_dir, &trust_domain, CERT_TTL)?;
                let identity = Identity::new(&workload.namespace, &workload.service_account)?;
                let issued = authority.issue(&identity, CERT_TTL)?;
                std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
                for (name, text) in [
                    ("key.pem", issued.key_pem.clone()),
                    ("cert-chain.pem", issued.chain_pem.concat()),
                    ("root-cert.pem", authority.root_pem().to_owned()),
                ] {
                    crate::ca::write_private(&out.join(name), text.as_bytes())?;
                }
                Ok(0)
            }
            Command::Bootstrap {
                workload,
                xds,
                token_file,
            } => {
                println!("{:#}", bootstrap(&workload, &xds, token_file.as_deref()));
                Ok(0)
            }
        }
    }
}

impl Serve {
    async fn run(self) -> anyhow::Result<()> {
        for address in [self.xds_listen, self.http_listen] {
            if !address.ip().is_loopback() && !self.allow_remote {
                bail!(
                    "{address} can be reached from other machines, and nothing here is encrypted \
                     yet: listen on 127.0.0.1, or say --allow-remote"
                );
            }
        }
        let running = ControlPlane::builder(self.config, self.data_dir)
            .xds_listen(self.xds_listen)
            .http_listen(self.http_listen)
            .trust_domain(self.trust_domain)
            .cert_ttl(Duration::from_secs(self.cert_ttl_seconds))
            .start()
            .await?;
        terminated().await?;
        tracing::info!("draining");
        running.shutdown().await;
        Ok(())
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn terminated() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

fn print_check(directory: &std::path::Path, output: Output) -> anyhow::Result<u8> {
    let found = check(directory, &CompileOptions::default())
        .with_context(|| directory.display().to_string())?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Text => {
            let is_terminal = std::io::stdout().is_terminal();
            for finding in &found {
                let colour = match finding.severity {
                    Severity::Error => "31",
                    Severity::Warning => "33",
                };
                if is_terminal {
                    println!("\x1b[{colour}m{finding}\x1b[0m");
                } else {
                    println!("{finding}");
                }
            }
            let errors = found
                .iter()
                .filter(|f| f.severity == Severity::Error)
                .count();
            println!("{errors} errors, {} warnings", found.len() - errors);
        }
    }
    Ok(u8::from(
        found
            .iter()
            .any(|finding| finding.severity == Severity::Error),
    ))
}

fn bootstrap(
    workload: &Workload,
    xds: &str,
    token_file: Option<&std::path::Path>,
) -> serde_json::Value {
    let Workload {
        namespace,
        service_account,
    } = workload;
    let mut json = serde_json::json!({
        "xds_servers": [{"server_uri": xds, "channel_creds": [{"type": "insecure"}]}],
        "node": {
            "id": format!("{service_account}~ns/{namespace}/sa/{service_account}"),
            "metadata": {"NAMESPACE": namespace},
        },
        "server_listener_resource_name_template": "mesh/inbound/%s",
    });
    if let Some(token_file) = token_file {
        json["certificate_providers"] = serde_json::json!({
            "default": {"plugin_name": "mesh_csr", "config": {"token_file": token_file}},
        });
    }
    json
}
