//! What is measured of an attempt for policies that learn from it.

use std::time::Duration;

use mesh_core::{observed::Observation, outcome::Verdict};
use tokio::time::Instant;

/// An attempt on an endpoint of a cluster that [observes](super::ClusterState::observes).
pub(crate) struct Watched {
    began: Instant,
    /// To the head of the response.
    latency: Option<Duration>,
}

impl Watched {
    /// The attempt begins.
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
            latency: None,
        }
    }

    /// The head of the response is there.
    pub(crate) fn respond(&mut self) {
        self.latency = Some(self.began.elapsed());
    }

    /// How the attempt went, where it ends now.
    pub(super) fn observation(&self, verdict: Verdict) -> Observation<'static> {
        let now = Instant::now();
        Observation {
            now: now.into_std(),
            latency: self.latency.unwrap_or_else(|| now - self.began),
            is_success: verdict == Verdict::Success,
            report: None,
        }
    }
}
