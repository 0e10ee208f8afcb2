//! The tasks that report load, one for each server that any is reported to.
//!
//! Beside the driver, which tells them about clusters and waits for their last reports. A server gets
//! reports only if the bootstrap knows it: a resource cannot make the process connect elsewhere.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::rng::{Rng, SplitMix64};
use tokio::task::JoinHandle;

use crate::{
    bootstrap::Bootstrap,
    connection::ConnectionOptions,
    transport::{
        backoff::Backoff,
        lrs::{self, Counted, LoadSource, Reporter, Sources},
        node,
    },
};

/// How long the end of the client waits for the last reports.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts and ends the tasks.
#[derive(Debug)]
pub(crate) struct Load {
    bootstrap: Bootstrap,
    options: ConnectionOptions,
    rng: SplitMix64,
    /// By the address of the server.
    tasks: BTreeMap<Arc<str>, Task>,
}

#[derive(Debug)]
struct Task {
    sources: Sources,
    handle: JoinHandle<()>,
}

impl Load {
    pub(crate) fn new(
        bootstrap: &Bootstrap,
        options: ConnectionOptions,
        rng: &mut SplitMix64,
    ) -> Self {
        Self {
            bootstrap: bootstrap.clone(),
            options,
            rng: SplitMix64::new(rng.next_u64()),
            tasks: BTreeMap::new(),
        }
    }

    /// Other clusters than before.
    pub(crate) fn update(&mut self, sources: Vec<LoadSource>) {
        let mut by_server: BTreeMap<Arc<str>, Vec<LoadSource>> = BTreeMap::new();
        for source in sources {
            let server = Arc::clone(&source.server);
            by_server.entry(server).or_default().push(source);
        }
        for (server, task) in &self.tasks {
            // Without any its stream goes on, for what is still in progress.
            let sources = by_server.remove(server).unwrap_or_default();
            task.sources.replace(sources);
        }
        for (server, sources) in by_server {
            if let Some(task) = self.start(&server, sources) {
                self.tasks.insert(server, task);
            }
        }
    }

    fn start(&mut self, server: &str, sources: Vec<LoadSource>) -> Option<Task> {
        let mut known = self.bootstrap.authority_servers();
        let is_it = |known: &&crate::bootstrap::Server| known.uri.to_string() == server;
        let server = known.find_map(|(_, servers)| servers.iter().find(is_it))?;
        let server = Arc::new(server.clone());
        let (handed, reader) = lrs::sources();
        handed.replace(sources);
        let mut node = node::node(&self.bootstrap.node);
        let feature = "envoy.lrs.supports_send_all_clusters";
        node.client_features.push(feature.into());
        let reporter = Reporter {
            server,
            node,
            keep_alive: self.options.keep_alive,
            own: self.options.own.clone(),
            backoff: Backoff::new(self.options.backoff_base, self.options.backoff_cap),
            rng: SplitMix64::new(self.rng.next_u64()),
            sources: reader,
            counted: Counted::default(),
        };
        Some(Task {
            sources: handed,
            handle: tokio::spawn(reporter.run()),
        })
    }

    /// Lets the tasks send their last reports.
    pub(crate) async fn finish(&mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        let handles: Vec<_> = tasks
            .into_values()
            .map(|task| {
                drop(task.sources);
                task.handle
            })
            .collect();
        let aborts: Vec<_> = handles.iter().map(JoinHandle::abort_handle).collect();
        let all = futures_util::future::join_all(handles);
        if tokio::time::timeout(LAST_REPORT_TIMEOUT, all)
            .await
            .is_err()
        {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}
