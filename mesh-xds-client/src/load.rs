//! The task that reports load, while there is any to report.
//!
//! Beside the driver, which tells it about clusters and waits for its last report.

use std::{sync::Arc, time::Duration};

use mesh_core::rng::{Rng, SplitMix64};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    bootstrap::Bootstrap,
    connection::ConnectionOptions,
    transport::{
        backoff::Backoff,
        lrs::{Counted, LoadSource, Reporter},
        node,
    },
};

/// How long the end of the client waits for the last report.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts and ends the task.
#[derive(Debug)]
pub(crate) struct Load {
    bootstrap: Bootstrap,
    options: ConnectionOptions,
    seed: u64,
    task: Option<(watch::Sender<Vec<LoadSource>>, JoinHandle<()>)>,
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
            seed: rng.next_u64(),
            task: None,
        }
    }

    /// Other clusters than before.
    pub(crate) fn update(&mut self, sources: Vec<LoadSource>) {
        match &self.task {
            Some((tx, _)) => _ = tx.send_replace(sources),
            None if sources.is_empty() => {}
            None => self.task = self.start(sources),
        }
    }

    fn start(
        &self,
        sources: Vec<LoadSource>,
    ) -> Option<(watch::Sender<Vec<LoadSource>>, JoinHandle<()>)> {
        let server = self.bootstrap.servers.first()?;
        let (tx, sources) = watch::channel(sources);
        let mut node = node::node(&self.bootstrap.node);
        let feature = "envoy.lrs.supports_send_all_clusters";
        node.client_features.push(feature.into());
        let reporter = Reporter {
            server: Arc::new(server.clone()),
            node,
            keep_alive: self.options.keep_alive,
            backoff: Backoff::new(self.options.backoff_base, self.options.backoff_cap),
            rng: SplitMix64::new(self.seed),
            sources,
            counted: Counted::default(),
        };
        Some((tx, tokio::spawn(reporter.run())))
    }

    /// Lets the task send its last report.
    pub(crate) async fn finish(&mut self) {
        if let Some((tx, mut task)) = self.task.take() {
            drop(tx);
            if tokio::time::timeout(LAST_REPORT_TIMEOUT, &mut task)
                .await
                .is_err()
            {
                task.abort();
            }
        }
    }
}
