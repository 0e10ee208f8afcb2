//! The endpoints that a call's attempts used, and what that means for the next one.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::{balance::TriedPriorities, config::RetryExtras};

use crate::{
    cluster::{Affinity, ClusterState, MakeEndpoint},
    error::Error,
    rng,
};

/// Endpoints that an attempt avoids at most.
const AVOIDED_MAX: usize = 8;

/// What an attempt avoids.
#[derive(Clone, Default)]
pub(super) struct Previous {
    /// Endpoints that were tried, the newest last. As many as there are attempts at most.
    addresses: Vec<SocketAddr>,
    /// What retries avoid besides.
    policy: Option<Arc<RetryExtras>>,
}

impl Previous {
    pub(super) fn new(policy: Option<Arc<RetryExtras>>) -> Self {
        Self {
            addresses: Vec::new(),
            policy,
        }
    }

    pub(super) fn extend(&mut self, address: Option<SocketAddr>) {
        self.addresses.extend(address);
    }

    /// Picks an endpoint of `state`: none that was tried, if there are others, and for a retry none
    /// that the policy avoids.
    pub(super) fn pick<M: MakeEndpoint>(
        &self,
        state: &ClusterState<M>,
        affinity: &Affinity,
        is_retry: bool,
    ) -> Option<Result<u32, Error>> {
        let newest = self.addresses.len().saturating_sub(AVOIDED_MAX);
        let avoided = &self.addresses[newest..];
        match self.policy.as_deref().filter(|_| is_retry) {
            None => state.pick(&mut rng::fork(), avoided, affinity),
            Some(policy) => self.pick_by(policy, state, avoided, affinity),
        }
    }

    /// Picks an endpoint that `policy` does not avoid, as often as it says; then any.
    #[cold]
    fn pick_by<M: MakeEndpoint>(
        &self,
        policy: &RetryExtras,
        state: &ClusterState<M>,
        avoided: &[SocketAddr],
        affinity: &Affinity,
    ) -> Option<Result<u32, Error>> {
        let frequency = policy.previous_priorities;
        let tried = frequency.map(|every| TriedPriorities::new(&self.addresses, every));
        let rng = &mut rng::fork();
        let mut pick = |avoided: &[SocketAddr]| match &tried {
            Some(tried) => state.pick_untried(rng, avoided, affinity, tried),
            None => state.pick(rng, avoided, affinity),
        };
        if !policy.avoids_by_metadata() {
            return pick(avoided);
        }
        let mut avoided = avoided.to_vec();
        for _ in 0..policy.host_selection_attempts {
            let picked = pick(&avoided);
            let Some(Ok(endpoint)) = picked else {
                return picked;
            };
            let metadata = state.metadata(endpoint);
            if !metadata.is_some_and(|metadata| policy.avoids(metadata)) {
                return picked;
            }
            avoided.push(state.slot(endpoint).address());
        }
        pick(&avoided)
    }
}
