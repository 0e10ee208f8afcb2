//! `control-plane agent`: keeps an identity in files, and says in aligned lines what it does.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::{Uri, uri::Authority};

use super::{
    bootstrap::{REFRESH_INTERVAL, of_files},
    life, terminated,
};
use crate::{
    XDS_PORT,
    agent::{Agent as Keeper, AgentOptions, Progress},
};

/// Widths of the columns but the last.
const WIDTHS: [usize; 3] = [7, 8, 8];
/// Files are to be read so often in the life of a certificate, that no renewal is missed.
const READS_IN_A_LIFE: u32 = 10;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Agent {
    /// The control plane; `https://` unless it is this machine's.
    #[arg(long, default_value = "http://127.0.0.1:18000")]
    xds: Uri,
    /// PEM roots that vouch for the control plane; those that were written before do, too. Default:
    /// the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// File with a join token or a service account token. Over TLS the certificate itself is shown
    /// for the next one, and a token that is good once is enough.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Directory for cert-chain.pem, key.pem and root-cert.pem.
    #[arg(long)]
    out: PathBuf,
    /// Life of a certificate, for example 24h or 90m; the control plane may give less.
    #[arg(long, default_value = "24h", value_parser = life)]
    ttl: Duration,
    /// Writes a bootstrap for gRPC with these files.
    #[arg(long)]
    bootstrap: Option<PathBuf>,
    /// Gets one certificate and ends; exits with 1 when there is none.
    #[arg(long)]
    once: bool,
}

impl Agent {
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        let mut options = AgentOptions::new(self.xds.clone(), &self.out);
        options.ca_file.clone_from(&self.ca);
        options.token_file.clone_from(&self.token_file);
        options.ttl = self.ttl;
        let mut keeper = Keeper::open(options)?;
        println!("{}", line(["RESULT", "LEFT", "NEXT"], "IDENTITY OR REASON"));
        if self.once {
            let (spiffe_id, left) = keeper.renew().await?;
            println!("{}", line(["written", &short(left), "-"], &spiffe_id));
            self.write_bootstrap(&spiffe_id, left)?;
            return Ok(0);
        }
        let mut is_first = true;
        let report = |progress: Progress| {
            println!("{}", text(&progress));
            if let Progress::Written {
                spiffe_id, left, ..
            } = progress
                && std::mem::take(&mut is_first)
                && let Err(error) = self.write_bootstrap(&spiffe_id, left)
            {
                tracing::error!(error = format!("{error:#}"), "no bootstrap is written");
            }
        };
        tokio::select! {
            () = keeper.run(report) => {}
            ended = terminated() => ended?,
        }
        Ok(0)
    }

    fn write_bootstrap(&self, spiffe_id: &str, life: Duration) -> anyhow::Result<()> {
        let Some(file) = &self.bootstrap else {
            return Ok(());
        };
        let Some(node) = node(spiffe_id) else {
            bail!("--bootstrap: {spiffe_id} names no namespace and service account");
        };
        let out = fs::canonicalize(&self.out).with_context(|| self.out.display().to_string())?;
        let authority = self.xds.authority().context("--xds has no host")?;
        let authority: Authority = match authority.port() {
            Some(_) => authority.clone(),
            None => format!("{authority}:{XDS_PORT}").parse()?,
        };
        let is_tls = self.xds.scheme_str() == Some("https");
        let refresh = (life / READS_IN_A_LIFE)
            .min(REFRESH_INTERVAL)
            .max(Duration::from_secs(1));
        let text = format!("{:#}\n", of_files(&authority, is_tls, &out, refresh, node));
        replace(file, &text).with_context(|| file.display().to_string())
    }
}

/// Readers see the old file or the new one.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let next = file.with_extension("new");
    fs::write(&next, text)?;
    fs::rename(next, file)
}

/// Namespace and service account.
fn node(spiffe_id: &str) -> Option<(&str, &str)> {
    let (_, path) = spiffe_id.strip_prefix("spiffe://")?.split_once("/ns/")?;
    path.split_once("/sa/")
}

fn text(progress: &Progress) -> String {
    match progress {
        Progress::Written {
            spiffe_id,
            left,
            next,
        } => line(["written", &short(*left), &short(*next)], spiffe_id),
        Progress::Failed { reason, left, next } => {
            let left = left.map_or_else(|| "-".to_owned(), short);
            line(["failed", &left, &short(*next)], reason)
        }
    }
}

fn line(columns: [&str; 3], last: &str) -> String {
    let mut text = String::new();
    for (column, width) in columns.iter().zip(WIDTHS) {
        text += &format!("{column:width$}  ");
    }
    text + last
}

/// The two largest units of a length of time.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (hours, minutes) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_say_what_is_left() {
        let written = Progress::Written {
            spiffe_id: "spiffe://t/ns/a/sa/b".into(),
            left: Duration::from_secs(86_400),
            next: Duration::from_secs(47_523),
        };
        let failed = |left: Option<u64>| Progress::Failed {
            reason: "it does not answer".into(),
            left: left.map(Duration::from_secs),
            next: Duration::from_secs(61),
        };
        assert_eq!(
            [
                line(["RESULT", "LEFT", "NEXT"], "IDENTITY OR REASON"),
                text(&written),
                text(&failed(Some(59))),
                text(&failed(None)),
            ]
            .join("\n"),
            "\
RESULT   LEFT      NEXT      IDENTITY OR REASON
written  24h00m    13h12m    spiffe://t/ns/a/sa/b
failed   59s       1m01s     it does not answer
failed   -         1m01s     it does not answer"
        );
    }

    #[test]
    fn a_node_is_what_its_certificate_says() {
        assert_eq!(node("spiffe://t/ns/a/sa/b"), Some(("a", "b")));
        for other in [
            "spiffe://t/workload",
            "https://t/ns/a/sa/b",
            "spiffe://t/ns/a",
        ] {
            assert_eq!(node(other), None, "{other}");
        }
    }
}
