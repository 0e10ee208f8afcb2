//! When another attempt begins beside those under way.

use mesh_core::{
    config::{HEDGE_ATTEMPTS_MAX, HedgeDelay, HedgePolicy},
    rng::Rng,
};
use tokio::time::Instant;

use crate::cluster::{ClusterState, MakeEndpoint};

/// What a call's hedge policy still asks for.
pub(super) struct Hedge {
    policy: HedgePolicy,
    /// Attempts that may be added.
    left: u32,
    /// When the next one begins.
    pub(super) at: Option<Instant>,
}

impl Hedge {
    pub(super) fn new(policy: HedgePolicy) -> Self {
        let attempts_max = policy.attempts_max.clamp(1, HEDGE_ATTEMPTS_MAX);
        Self {
            policy,
            left: attempts_max - 1,
            at: None,
        }
    }

    /// Attempts to begin at once beside the first.
    pub(super) fn initial(&self, rng: &mut impl Rng) -> u32 {
        let is_lucky = self
            .policy
            .additional_request_chance
            .contains(rng.next_u64());
        (self.policy.initial_requests.max(1) - 1 + u32::from(is_lucky)).min(self.left)
    }

    /// An attempt began: another one is due when it takes too long.
    pub(super) fn began<M: MakeEndpoint>(&mut self, state: &ClusterState<M>, now: Instant) {
        self.at = None;
        if self.left == 0 {
            return;
        }
        let delay = match self.policy.delay {
            None => return,
            Some(HedgeDelay::Fixed(delay)) => delay,
            Some(HedgeDelay::Percentile { percentile, min }) => {
                let known = state.latencies().percentile(percentile);
                known.map_or(min, |known| known.max(min))
            }
        };
        self.at = Some(now + delay);
    }

    /// Whether one more may begin now; counts it.
    pub(super) fn take(&mut self) -> bool {
        self.at = None;
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    pub(super) fn is_on_per_try_timeout(&self) -> bool {
        self.policy.on_per_try_timeout
    }

    /// Learns how long a call's first attempt took, or was under way when another one answered.
    pub(super) fn learn<M: MakeEndpoint>(&self, state: &ClusterState<M>, began: Instant) {
        if matches!(self.policy.delay, Some(HedgeDelay::Percentile { .. })) {
            state.latencies().record(began.elapsed());
        }
    }
}
