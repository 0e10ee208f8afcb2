//! Other processes of a benchmark: this binary again with a hidden subcommand, or a peer.
//!
//! Separate processes tell the processor time of client, proxy and server apart. A child of ours
//! prints one line of JSON when it is ready and ends when its standard input closes.

use std::{ffi::OsStr, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// A child that takes longer to get ready has failed.
const READY_MAX: Duration = Duration::from_secs(120);

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Whether it is to run only when nobody else wants to, as if it had a machine of its own:
    /// `SCHED_IDLE`, which everything else preempts at once.
    ///
    /// # Errors
    /// When there is no `chrt`.
    pub async fn give_way(&self, yes: bool) -> anyhow::Result<()> {
        let policy = if yes { "--idle" } else { "--other" };
        let pid = self.pid().to_string();
        let mut chrt = Command::new("chrt");
        chrt.args(["--all-tasks", policy, "--pid", "0", &pid]);
        let status = chrt.status().await.context("chrt of util-linux")?;
        if !status.success() {
            bail!("chrt {policy}: {status}");
        }
        Ok(())
    }

    /// Writes a line to it.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("a pipe")?;
        Ok(input.write_all(format!("{line}\n").as_bytes()).await?)
    }

    /// Writes a line to it and reads its answer.
    ///
    /// # Errors
    /// When it is gone or says something else.
    pub async fn ask<L: DeserializeOwned>(&mut self, line: &str) -> anyhow::Result<L> {
        self.tell(line).await?;
        self.line().await
    }

    async fn line<L: DeserializeOwned>(&mut self) -> anyhow::Result<L> {
        let mut line = String::new();
        let output = self.output.as_mut().context("a pipe")?;
        timeout(READY_MAX, output.read_line(&mut line)).await??;
        serde_json::from_str(&line).with_context(|| format!("child said {line:?}"))
    }
}

/// Starts this binary with `arguments` and waits for its line.
///
/// # Errors
/// When it ends or stays silent instead.
pub async fn start<L: DeserializeOwned>(
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<(Process, L)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().map(BufReader::new);
    let mut process = Process { child, output };
    let ready = process.line().await?;
    Ok((process, ready))
}

/// Prints the line a parent waits for, and returns when the parent is gone.
///
/// # Errors
/// When the line cannot be written.
pub async fn ready(line: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(line)?);
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while input.next_line().await?.is_some() {}
    Ok(())
}

/// Starts a peer with `arguments` and waits until `address` takes connections.
///
/// # Errors
/// When it does not start or never listens.
pub async fn start_peer(
    program: PathBuf,
    arguments: &[&OsStr],
    address: SocketAddr,
) -> anyhow::Result<Process> {
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.display().to_string())?;
    let listening = async {
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended: {status}", program.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    timeout(READY_MAX, listening).await??;
    Ok(Process {
        child,
        output: None,
    })
}

/// A program that `scripts/setup-peers.sh` installs.
///
/// # Errors
/// When it is not there.
pub fn peer(path: &str) -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("MESH_PEERS_DIR")
        .map_or_else(|| super::root().join("target/peers"), PathBuf::from);
    let path = folder.join(path);
    if !path.exists() {
        bail!("{} is missing: run scripts/setup-peers.sh", path.display());
    }
    Ok(path)
}
