//! From endpoints to one endpoint.
//!
//! Stage 10. A [`Picker`] is immutable but for its own counters, belongs to one
//! [`ClusterSnapshot`](crate::snapshot::ClusterSnapshot) and looks at connectivity while picking:
//! a connecting or failing endpoint is never picked while a ready one exists, so a refusing
//! endpoint with nothing in flight does not attract requests.

mod least_request;
mod round_robin;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use least_request::LeastRequest;
use round_robin::RoundRobin;

use crate::{
    config::{LbPolicy, LocalityId},
    rng::Rng,
    stats::{Connectivity, EndpointStats},
};

/// An endpoint that can be picked.
#[derive(Clone, Debug)]
pub struct ClusterEndpoint {
    /// Where to connect; its identity.
    pub address: SocketAddr,
    /// Share inside the cluster; not 0.
    pub weight: u32,
    /// Where it is.
    pub locality: Arc<LocalityId>,
    /// Counters that outlive the snapshot.
    pub stats: Arc<EndpointStats>,
}

/// What a pick may depend on besides the endpoints.
#[derive(Debug)]
pub struct PickContext<'c, R> {
    /// Randomness.
    pub rng: &'c mut R,
    /// Endpoints that earlier attempts of this request used; avoided while there are others.
    pub previous: &'c [SocketAddr],
}

/// The result of a pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickResult {
    /// Index of the endpoint in its snapshot.
    Endpoint(usize),
    /// No endpoint is ready, but one is idle or connecting.
    Queue,
    /// No endpoint can be used.
    Fail,
}

/// The algorithm of a cluster, ready to use.
#[derive(Debug)]
pub enum Picker {
    /// See [`LbPolicy::RoundRobin`].
    RoundRobin(RoundRobin),
    /// See [`LbPolicy::LeastRequest`]; with one choice, [`LbPolicy::Random`].
    LeastRequest(LeastRequest),
}

impl Picker {
    /// A picker for `policy`; `start` seeds what must differ between processes.
    pub fn new(policy: LbPolicy, _endpoints: &[ClusterEndpoint], start: u64) -> Self {
        match policy {
            LbPolicy::RoundRobin => Self::RoundRobin(RoundRobin::new(start)),
            LbPolicy::LeastRequest { choice_count } => {
                Self::LeastRequest(LeastRequest::new(choice_count))
            }
            LbPolicy::Random => Self::LeastRequest(LeastRequest::new(1)),
        }
    }

    /// Picks one of `endpoints`, which must be those of the picker's snapshot.
    pub fn pick<R: Rng>(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, R>,
    ) -> PickResult {
        let picked = match self {
            Self::RoundRobin(picker) => picker.pick(endpoints, context.previous),
            Self::LeastRequest(picker) => {
                picker.pick(endpoints, context.previous, &mut *context.rng)
            }
        };
        match picked {
            Some(index) => PickResult::Endpoint(index),
            None => unready(endpoints, context.previous),
        }
    }
}

/// The answer when no endpoint outside `previous` is ready.
fn unready(endpoints: &[ClusterEndpoint], previous: &[SocketAddr]) -> PickResult {
    let mut result = PickResult::Fail;
    for (index, endpoint) in endpoints.iter().enumerate() {
        match endpoint.stats.connectivity() {
            // One that was tried before is better than none.
            Connectivity::Ready => return PickResult::Endpoint(index),
            Connectivity::Idle | Connectivity::Connecting
                if !previous.contains(&endpoint.address) =>
            {
                result = PickResult::Queue;
            }
            _ => {}
        }
    }
    result
}

/// Whether `endpoint` can be picked for a request that already used `previous`.
fn is_eligible(endpoint: &ClusterEndpoint, previous: &[SocketAddr]) -> bool {
    endpoint.stats.is_ready() && !previous.contains(&endpoint.address)
}

/// The first eligible endpoint at or after `start`, wrapping around.
fn scan(endpoints: &[ClusterEndpoint], previous: &[SocketAddr], start: usize) -> Option<usize> {
    (start..endpoints.len())
        .chain(0..start)
        .find(|index| is_eligible(&endpoints[*index], previous))
}
