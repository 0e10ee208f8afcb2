//! Load reports: how many requests went where, told to the control plane that asks for it (LRS).
//!
//! Stage 1, the way out. Reads counters, never writes them. One stream for each server that a cluster in
//! use names (`lrs_server`), a report per interval of the clusters that the server asks for, and a last
//! one at the end. Results, drops, and backends' metrics where CDS selects them (gRFC A85). An error is
//! what the classifier of requests counts as one. Deviation: an aggregate is reported as one cluster.

mod count;
mod source;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_client::LoadReportingServiceClient,
    },
};
use mesh_core::rng::SplitMix64;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{KeepAlive, backoff::Backoff, connect, own::OwnCertificate};
use crate::bootstrap::Server;
pub(crate) use count::Counted;
pub(crate) use source::{LoadSource, Sources, SourcesReader, sources};

/// Shortest interval that a control plane gets.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Interval when the control plane names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

/// What the task needs.
pub(crate) struct Reporter {
    pub(crate) server: Arc<Server>,
    pub(crate) node: Node,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) own: OwnCertificate,
    pub(crate) backoff: Backoff,
    pub(crate) rng: SplitMix64,
    pub(crate) sources: SourcesReader,
    pub(crate) counted: Counted,
}

impl Reporter {
    /// Runs until the sender of sources is gone, and a last report is sent.
    pub(crate) async fn run(mut self) {
        loop {
            if !self.sources.any().await {
                return;
            }
            let Err(error) = self.stream().await else {
                return;
            };
            let pause = self.backoff.after_failure(&mut self.rng);
            tracing::warn!(server = %self.server.uri, error, "no load reports for a while");
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream; `Ok` when there is nothing to report any more.
    async fn stream(&mut self) -> Result<(), String> {
        let connected =
            connect(Arc::clone(&self.server), self.keep_alive, self.own.clone()).await?;
        let (requests, queue) = mpsc::channel(2);
        let first = LoadStatsRequest {
            node: Some(self.node.clone()),
            ..LoadStatsRequest::default()
        };
        let is_gone = |_| "the stream is gone".to_owned();
        requests.send(first).await.map_err(is_gone)?;
        let mut client = LoadReportingServiceClient::new(connected.channel.clone());
        let call = connected.call(ReceiverStream::new(queue));
        let status = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let mut responses = client
            .stream_load_stats(call)
            .await
            .map_err(status)?
            .into_inner();
        let first = responses.message().await.map_err(status)?;
        let mut wanted = Wanted::new(&first.ok_or("the server ended the stream")?);
        self.backoff.reset();
        let mut last = Instant::now();
        loop {
            let is_over = tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(status)?;
                    wanted = Wanted::new(&response.ok_or("the server ended the stream")?);
                    continue;
                }
                () = tokio::time::sleep_until(last + wanted.interval) => false,
                () = self.sources.closed() => true,
            };
            let now = Instant::now();
            let lists = self.sources.take();
            let stats = self.counted.report(&lists, &wanted, now - last);
            last = now;
            let request = LoadStatsRequest {
                cluster_stats: stats,
                ..LoadStatsRequest::default()
            };
            requests.send(request).await.map_err(is_gone)?;
            if is_over {
                drop(requests);
                // Until the server has read it.
                let read = async { while let Ok(Some(_)) = responses.message().await {} };
                _ = tokio::time::timeout(Duration::from_secs(1), read).await;
                return Ok(());
            }
        }
    }
}

/// What the control plane wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    interval: Duration,
    /// `None` is all.
    clusters: Option<Vec<String>>,
    /// Whether endpoints are told apart.
    endpoints: bool,
}

impl Wanted {
    fn new(response: &LoadStatsResponse) -> Self {
        let interval = response.load_reporting_interval.as_ref().and_then(|i| {
            let seconds = u64::try_from(i.seconds).ok()?;
            let nanos = u32::try_from(i.nanos).ok().filter(|n| *n < 1_000_000_000)?;
            Some(Duration::new(seconds, nanos))
        });
        Self {
            interval: interval.unwrap_or(INTERVAL_DEFAULT).max(INTERVAL_MIN),
            clusters: (!response.send_all_clusters).then(|| response.clusters.clone()),
            endpoints: response.report_endpoint_granularity,
        }
    }

    fn contains(&self, cluster: &str) -> bool {
        let clusters = self.clusters.as_ref();
        clusters.is_none_or(|clusters| clusters.iter().any(|name| name == cluster))
    }
}

#[cfg(test)]
mod tests;
