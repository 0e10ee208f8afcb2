//! The processes of the mesh: started, restarted when they die, and ended with this one.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::ValueEnum;
use tokio::process::{Child, Command};

use crate::services::Role;

/// A dead process is started again after this, so that its absence can be seen.
const RESTART_AFTER: Duration = Duration::from_secs(3);

pub(crate) struct Children {
    folder: PathBuf,
    held: Vec<Service>,
}

pub(crate) struct Service {
    pub(crate) name: &'static str,
    role: Role,
    port: u16,
    process: Option<Child>,
    died: Option<Instant>,
}

impl Service {
    /// Process id; `None` while it is dead.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }
}

impl Children {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            held: Vec::new(),
        }
    }

    pub(crate) fn start(
        &mut self,
        name: &'static str,
        role: Role,
        port: u16,
    ) -> anyhow::Result<()> {
        let process = Some(spawn(&self.folder, role, port)?);
        self.held.push(Service {
            name,
            role,
            port,
            process,
            died: None,
        });
        Ok(())
    }

    pub(crate) fn services(&self) -> &[Service] {
        &self.held
    }

    /// Starts what has been dead for a while; how many are dead still.
    pub(crate) fn restart_dead(&mut self) -> anyhow::Result<usize> {
        for service in &mut self.held {
            let has_ended = match &mut service.process {
                Some(process) => process.try_wait()?.is_some(),
                None => true,
            };
            if !has_ended {
                continue;
            }
            service.process = None;
            let died = *service.died.get_or_insert_with(Instant::now);
            if died.elapsed() >= RESTART_AFTER {
                service.process = Some(spawn(&self.folder, service.role, service.port)?);
                service.died = None;
            }
        }
        Ok(self
            .held
            .iter()
            .filter(|service| service.process.is_none())
            .count())
    }

    /// Kills a service as an operator would, with SIGKILL.
    pub(crate) async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let service = self.held.iter_mut().find(|service| service.name == name);
        let process = service.and_then(|service| service.process.as_mut());
        process
            .context("no such service")?
            .kill()
            .await
            .context("cannot kill")
    }

    pub(crate) async fn stop(&mut self) {
        for service in &mut self.held {
            if let Some(process) = &mut service.process {
                _ = process.kill().await;
            }
        }
    }
}

fn spawn(folder: &Path, role: Role, port: u16) -> anyhow::Result<Child> {
    let executable = std::env::current_exe().context("our own executable")?;
    let role = role.to_possible_value().context("a role has a name")?;
    Command::new(executable)
        .args(["--role", role.get_name(), "--port", &port.to_string()])
        .arg("--folder")
        .arg(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", role.get_name()))
}
