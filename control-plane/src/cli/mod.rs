//! The command line: what can be asked, and what is done then.
//!
//! `report` prints findings, `ask` what is made of routes, `bootstrap` makes the file that clients start
//! from, `ca` changes roots, `services` lists instances, `agent` keeps an identity in files.

mod admin;
mod agent;
mod ask;
mod bootstrap;
mod ca;
mod report;
mod services;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    CERT_TTL, ControlPlane, HTTP_PORT, Tls, XDS_PORT,
    ca::{Authority, Identity, JwksSource, JwtOptions, TokenUse, create_token_for},
    cache::input_version,
    class::ClientClass,
    explain::parse_header,
    server::is_local,
    source::load_folder,
    value,
};
use bootstrap::Bootstrap;

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
        /// Classes of clients that must honour all of it: rust, grpc-cpp, grpc-java, grpc-go,
        /// grpc-node, envoy.
        #[arg(long, value_delimiter = ',')]
        clients: Vec<ClientClass>,
    },
    /// Says where a request goes, and why not elsewhere; exits with 1 when no route takes it.
    Explain {
        /// For example GET.
        method: http::Method,
        /// For example `http://greeter.default:8080/a?b=c`; the host is the name that clients dial.
        url: http::Uri,
        /// A header, as in `canary: true`.
        #[arg(short = 'H', long = "header", value_parser = parse_header)]
        headers: Vec<(http::HeaderName, http::HeaderValue)>,
        #[command(flatten)]
        of: Where,
        /// Namespace of the client.
        #[arg(long, default_value = "default", conflicts_with = "from")]
        namespace: String,
        /// The client, as `NAMESPACE/KEY=VALUE,...` with its labels.
        #[arg(long)]
        from: Option<String>,
        /// How to print.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Says what became of the routes of Gateway API; exits with 1 when one is not accepted, or refers
    /// to what it cannot.
    Status {
        /// For example `HTTPRoute default/greeter`; default all.
        object: Option<String>,
        #[command(flatten)]
        of: Where,
        /// How to print.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Prints the version of a directory, to wait for at `/v1/wait?version=`.
    Version {
        /// The directory.
        directory: PathBuf,
    },
    /// Join tokens.
    #[command(subcommand)]
    Token(Token),
    /// Certificates in files, for clients that cannot ask for them.
    #[command(subcommand)]
    Cert(Cert),
    /// The roots that everybody trusts.
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Lists every instance of every service, its health and why.
    Services(services::Services),
    /// Keeps an identity in files, for clients that read files: asks for a certificate, and again in
    /// time.
    Agent(agent::Agent),
    /// Prints a bootstrap for a workload.
    Bootstrap(Bootstrap),
}

/// What is asked: a directory, or who serves it.
#[derive(Debug, clap::Args)]
struct Where {
    /// Directory with YAML files.
    #[arg(long, required_unless_present = "server", conflicts_with = "server")]
    config: Option<PathBuf>,
    /// Admin API of a running control plane, for example `http://127.0.0.1:18001`.
    #[arg(long, value_parser = admin::address)]
    server: Option<http::Uri>,
    /// PEM roots that vouch for the server over TLS. Default: those in its data directory, else the
    /// system's.
    #[arg(long, requires = "server")]
    ca: Option<PathBuf>,
    /// The server's data directory, which holds the key of its admin API; not needed on its own
    /// machine.
    #[arg(long, requires = "server")]
    data_dir: Option<PathBuf>,
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
    /// Longest life of a certificate, for example 24h or 90m.
    #[arg(long, default_value = "24h", value_parser = life)]
    cert_ttl: Duration,
    /// Directory with ca-key.pem, ca-cert.pem, cert-chain.pem and root-cert.pem to sign with,
    /// instead of a root in the data directory.
    #[arg(long)]
    ca_dir: Option<PathBuf>,
    /// File with the keys (JWKS) of service account tokens that prove an identity.
    #[arg(
        long,
        group = "token_keys",
        requires = "jwt_issuer",
        requires = "jwt_audience"
    )]
    jwks: Option<PathBuf>,
    /// Address of those keys, `https://` alone, fetched every five minutes.
    #[arg(
        long,
        group = "token_keys",
        requires = "jwt_issuer",
        requires = "jwt_audience"
    )]
    jwks_uri: Option<String>,
    /// Issuer of those tokens, for example `https://kubernetes.default.svc.cluster.local`.
    #[arg(long, requires = "token_keys")]
    jwt_issuer: Option<String>,
    /// Audience that those tokens must be for.
    #[arg(long, requires = "token_keys")]
    jwt_audience: Option<String>,
    /// When to speak TLS: `remote` where other machines can reach an address, `always`, or `never`,
    /// by which whoever is on the network reads everything.
    #[arg(long, value_enum, default_value = "remote")]
    tls: TlsChoice,
    /// Another name or address that clients dial, for the certificate of the control plane.
    #[arg(long = "dialled-as")]
    dialled_as: Vec<String>,
    /// PEM roots of those who serve the keys of issuers (`jwksUri`, --jwks-uri). Default: the
    /// system's.
    #[arg(long)]
    jwks_uri_ca: Option<PathBuf>,
    /// Who may do over HTTP what the admin key allows, as NAMESPACE/SERVICE_ACCOUNT.
    #[arg(long = "admin", value_parser = identity)]
    admins: Vec<Identity>,
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Makes a token and prints it.
    Create {
        /// Whose it is, as NAMESPACE/SERVICE_ACCOUNT.
        #[arg(long = "for", value_parser = identity, required_unless_present = "service_account")]
        whose: Option<Identity>,
        /// Its namespace, with --service-account instead of --for.
        #[arg(long, default_value = "default", conflicts_with = "whose")]
        namespace: String,
        /// Its service account.
        #[arg(long, conflicts_with = "whose")]
        service_account: Option<String>,
        /// The control plane's data directory.
        #[arg(long)]
        data_dir: PathBuf,
        /// Life of the token, for example 24h or 10m.
        #[arg(long, default_value = "24h", value_parser = life)]
        ttl: Duration,
        /// Good for any number of certificates until it expires, instead of for one: for clients
        /// that do not renew over TLS.
        #[arg(long)]
        reusable: bool,
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
        /// Life of the certificate, for example 24h or 90m.
        #[arg(long, default_value = "24h", value_parser = life)]
        ttl: Duration,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TlsChoice {
    Remote,
    Always,
    Never,
}

impl Cli {
    /// Runs the command; the exit code.
    ///
    /// # Errors
    /// What could not be done, for people.
    pub async fn run(self) -> anyhow::Result<u8> {
        match self.command {
            Command::Serve(serve) => serve.run().await.map(|()| 0),
            Command::Check {
                directory,
                output,
                clients,
            } => report::check(&directory, output, &clients.into_iter().collect()),
            Command::Explain {
                method,
                url,
                headers,
                of,
                namespace,
                from,
                output,
            } => {
                let from = from.unwrap_or(namespace);
                ask::explain(&of, &method, &url, &headers, &from, output).await
            }
            Command::Status { object, of, output } => {
                ask::status(&of, object.as_deref(), output).await
            }
            Command::Version { directory } => {
                let loaded =
                    load_folder(&directory).with_context(|| directory.display().to_string())?;
                println!("{}", input_version(&loaded.objects));
                Ok(0)
            }
            Command::Token(Token::Create {
                whose,
                namespace,
                service_account,
                data_dir,
                ttl,
                reusable,
            }) => {
                let whose = match whose {
                    Some(whose) => whose,
                    None => Identity::new(namespace, service_account.unwrap_or_default())?,
                };
                let r#use = if reusable {
                    TokenUse::Reusable
                } else {
                    TokenUse::Once
                };
                println!("{}", create_token_for(&data_dir, &whose, ttl, r#use)?);
                Ok(0)
            }
            Command::Ca(ca) => ca.run().await,
            Command::Services(services) => services.run().await,
            Command::Agent(agent) => agent.run().await,
            Command::Cert(Cert::Issue {
                workload,
                data_dir,
                out,
                ttl,
                trust_domain,
            }) => {
                let identity = Identity::new(&workload.namespace, &workload.service_account)?;
                let authority = Authority::open(&data_dir, &trust_domain, ttl.max(CERT_TTL))?;
                authority
                    .issue_to(&out, &identity, ttl)
                    .with_context(|| out.display().to_string())?;
                Ok(0)
            }
            Command::Bootstrap(bootstrap) => {
                println!("{:#}", bootstrap.json()?);
                Ok(0)
            }
        }
    }
}

/// NAMESPACE/SERVICE_ACCOUNT.
fn identity(text: &str) -> Result<Identity, String> {
    let (namespace, account) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?}: write NAMESPACE/SERVICE_ACCOUNT"))?;
    Identity::new(namespace, account).map_err(|error| error.to_string())
}

/// A length of time that is more than none.
fn life(text: &str) -> Result<Duration, String> {
    match value::duration(text)? {
        Duration::ZERO => Err("it must be more than zero".to_owned()),
        life => Ok(life),
    }
}

/// Whether to write colours: to people, unless they said no (<https://no-color.org>).
pub fn colours(is_terminal: bool, no_color: Option<OsString>) -> bool {
    is_terminal && no_color.is_none_or(|value| value.is_empty())
}

impl Serve {
    async fn run(self) -> anyhow::Result<()> {
        let tls = match self.tls {
            TlsChoice::Remote => Tls::Remote,
            TlsChoice::Always => Tls::Always,
            TlsChoice::Never => Tls::Never,
        };
        for address in [self.xds_listen, self.http_listen] {
            if !is_local(address) && tls == Tls::Never {
                tracing::warn!(%address, "other machines can reach it, and nothing is encrypted");
            }
        }
        let mut builder = ControlPlane::builder(self.config, self.data_dir)
            .xds_listen(self.xds_listen)
            .http_listen(self.http_listen)
            .trust_domain(self.trust_domain)
            .cert_ttl(self.cert_ttl)
            .tls(tls);
        for name in self.dialled_as {
            builder = builder.dialled_as(name);
        }
        for admin in self.admins {
            builder = builder.admin(admin);
        }
        if let Some(roots) = self.jwks_uri_ca {
            builder = builder.jwks_ca_file(roots);
        }
        if let Some(dir) = self.ca_dir {
            builder = builder.ca_dir(dir);
        }
        let jwks = self.jwks.map(JwksSource::File);
        if let Some(jwks) = jwks.or_else(|| self.jwks_uri.map(JwksSource::Uri)) {
            builder = builder.service_account_tokens(JwtOptions {
                jwks,
                issuer: self.jwt_issuer.unwrap_or_default(),
                audience: self.jwt_audience.unwrap_or_default(),
            });
        }
        let running = builder.start().await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_have_units_and_are_more_than_zero() {
        for (text, seconds) in [("24h", Some(86_400)), ("10m", Some(600)), ("30s", Some(30))] {
            assert_eq!(life(text).ok().map(|life| life.as_secs()), seconds);
        }
        for text in ["0s", "24", "", "-1h"] {
            assert!(life(text).is_err(), "{text}");
        }
    }

    #[test]
    fn colours_are_for_terminals_whose_people_want_them() {
        for (is_terminal, no_color, expected) in [
            (true, None, true),
            (true, Some(""), true),
            (true, Some("1"), false),
            (false, None, false),
        ] {
            assert_eq!(colours(is_terminal, no_color.map(Into::into)), expected);
        }
    }
}
