//! From endpoints to one endpoint.
//!
//! Stage 10. A [`Picker`] is immutable but for counters and weights, belongs to one
//! [`ClusterSnapshot`](crate::snapshot::ClusterSnapshot) and looks at connectivity while picking:
//! a connecting or failing endpoint is never picked while a ready one exists, so a refusing
//! endpoint with nothing in flight does not attract requests.
//!
//! Round robin and least request over one priority without weights are called directly; all else is
//! a [`LoadBalancer`], as a policy of the application is.

mod bound;
mod build;
mod by_metadata;
mod client_side_wrr;
mod least_request;
mod locality;
mod maglev;
mod peak_ewma;
mod pick_first;
mod prequal;
mod priority;
mod probing;
mod provided;
mod ring_hash;
mod round_robin;
mod sample;
mod session;
mod spill_over;
mod subset;
#[cfg(test)]
mod tests;
mod weighted;
mod zone;

use std::{fmt, net::SocketAddr, sync::Arc, time::Instant};

pub(crate) use build::{Group, LbPolicyFactories, Parts};
use least_request::LeastRequest;
pub use pick_first::ATTEMPT_DELAY;
pub use priority::{Failover, FailoverChoice, PRIORITY_FAILOVER_TIMEOUT, TriedPriorities};
pub(crate) use priority::{TierParts, TierState};
pub(crate) use provided::Provided;
use round_robin::RoundRobin;
pub(crate) use session::resolve as resolve_override;
pub use session::{SessionCookie, SessionCookieError};
pub(crate) use subset::{aperture, nearest};

use crate::{
    config::{HealthStatus, LbMetadata, LocalityId},
    observed::Observation,
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
    /// As the control plane sees it.
    pub health: HealthStatus,
    /// Where it is.
    pub locality: Arc<LocalityId>,
    /// Counters that outlive the snapshot.
    pub stats: Arc<EndpointStats>,
}

/// What a pick may depend on besides the endpoints.
#[derive(Debug)]
pub struct PickContext<'c, R: ?Sized> {
    /// Randomness.
    pub rng: &'c mut R,
    /// Endpoints that earlier attempts of this request used; avoided while there are others.
    pub previous: &'c [SocketAddr],
    /// Hash of the request, for policies that send equal hashes to the same endpoint; random if
    /// `None`.
    pub hash: Option<u64>,
    /// The endpoint that the request's session sticks to.
    pub override_host: Option<SocketAddr>,
    /// The metadata that the endpoint must have, for clusters with subsets.
    pub metadata: Option<&'c LbMetadata>,
    /// The time; without it, what was learned from earlier requests does not age.
    pub now: Option<Instant>,
}

impl<'c, R: ?Sized> PickContext<'c, R> {
    /// A request of which nothing else is known.
    pub fn new(rng: &'c mut R, previous: &'c [SocketAddr]) -> Self {
        Self {
            rng,
            previous,
            hash: None,
            override_host: None,
            metadata: None,
            now: None,
        }
    }
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

impl PickResult {
    /// The result in a larger list, of which this one's begins at `offset`.
    fn after(self, offset: usize) -> Self {
        match self {
            Self::Endpoint(index) => Self::Endpoint(index + offset),
            other => other,
        }
    }
}

/// A load balancing algorithm over a list of endpoints that does not change.
///
/// ```
/// use mesh_core::balance::{ClusterEndpoint, LoadBalancer, PickContext, PickResult};
/// use mesh_core::rng::Rng;
///
/// /// The first one that can take a request.
/// #[derive(Debug)]
/// struct First;
///
/// impl LoadBalancer for First {
///     fn pick(
///         &self,
///         endpoints: &[ClusterEndpoint],
///         _: &mut PickContext<'_, dyn Rng + '_>,
///     ) -> PickResult {
///         let first = endpoints.iter().position(|endpoint| endpoint.stats.is_ready());
///         first.map_or(PickResult::Queue, PickResult::Endpoint)
///     }
/// }
/// ```
pub trait LoadBalancer: fmt::Debug + Send + Sync {
    /// Picks one of `endpoints`, those that it was made for. Called by many threads at a time: it
    /// must not wait.
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult;

    /// Picks for a retry that avoids the priorities of earlier attempts. Policies of the application
    /// are asked for an endpoint of one priority, and need not know.
    fn pick_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        _ = tried;
        self.pick(endpoints, context)
    }

    /// Whether it wants to [observe](Self::observe) how attempts end.
    fn observes(&self) -> bool {
        false
    }

    /// Learns how an attempt on one of the endpoints ended.
    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        _ = (endpoints, index, observation);
    }

    /// Does what time asks for: weights that grow, timers. Returns when it is to be called again;
    /// also called when the connectivity of an endpoint has changed.
    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        _ = (endpoints, now);
        None
    }

    /// Whether connections to an endpoint are wanted, before a request comes to it.
    fn connects(&self, endpoint: usize) -> bool {
        _ = endpoint;
        true
    }
}

/// Makes a policy of the application's own, see
/// [`Compiler::with_policy`](crate::snapshot::Compiler::with_policy).
pub trait LbPolicyFactory: fmt::Debug + Send + Sync {
    /// A balancer for these endpoints. `config` is what the control plane says to it, as JSON.
    ///
    /// # Errors
    /// What is wrong with `config`; the cluster cannot be used then.
    fn build(
        &self,
        config: &str,
        endpoints: &[ClusterEndpoint],
    ) -> Result<Box<dyn LoadBalancer>, String>;
}

/// The algorithm of a cluster, ready to use.
#[derive(Debug)]
pub enum Picker {
    /// One priority, no weights: see [`LbPolicy::RoundRobin`](crate::config::LbPolicy::RoundRobin).
    RoundRobin(RoundRobin),
    /// One priority, no weights: see
    /// [`LbPolicy::LeastRequest`](crate::config::LbPolicy::LeastRequest); with one choice,
    /// [`LbPolicy::Random`](crate::config::LbPolicy::Random).
    LeastRequest(LeastRequest),
    /// All else.
    Other(Box<dyn LoadBalancer>),
}

impl Picker {
    /// Picks one of `endpoints`, which must be those of the picker's snapshot.
    #[inline]
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
            Self::Other(balancer) => {
                let mut context = PickContext::<dyn Rng> {
                    rng: &mut *context.rng,
                    previous: context.previous,
                    hash: context.hash,
                    override_host: context.override_host,
                    metadata: context.metadata,
                    now: context.now,
                };
                return balancer.pick(endpoints, &mut context);
            }
        };
        or_unready(picked, endpoints)
    }

    /// The same for a retry that avoids the priorities of earlier attempts.
    #[cold]
    pub fn pick_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        match self {
            Self::Other(balancer) => balancer.pick_untried(endpoints, context, tried),
            // There is one priority.
            Self::RoundRobin(_) | Self::LeastRequest(_) => self.pick_dyn(endpoints, context),
        }
    }

    /// [`pick`](Self::pick) for a picker inside of another.
    fn pick_dyn(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let picked = match self {
            Self::RoundRobin(picker) => picker.pick(endpoints, context.previous),
            Self::LeastRequest(picker) => {
                picker.pick(endpoints, context.previous, &mut *context.rng)
            }
            Self::Other(balancer) => return balancer.pick(endpoints, context),
        };
        or_unready(picked, endpoints)
    }

    /// See [`LoadBalancer::observes`].
    pub fn observes(&self) -> bool {
        match self {
            Self::RoundRobin(_) | Self::LeastRequest(_) => false,
            Self::Other(balancer) => balancer.observes(),
        }
    }

    /// See [`LoadBalancer::observe`].
    pub fn observe(
        &self,
        endpoints: &[ClusterEndpoint],
        index: usize,
        observation: &Observation<'_>,
    ) {
        if let Self::Other(balancer) = self {
            balancer.observe(endpoints, index, observation);
        }
    }

    /// See [`LoadBalancer::refresh`].
    pub fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        match self {
            Self::RoundRobin(_) | Self::LeastRequest(_) => None,
            Self::Other(balancer) => balancer.refresh(endpoints, now),
        }
    }

    /// See [`LoadBalancer::connects`].
    pub fn connects(&self, endpoint: usize) -> bool {
        match self {
            Self::RoundRobin(_) | Self::LeastRequest(_) => true,
            Self::Other(balancer) => balancer.connects(endpoint),
        }
    }
}

fn or_unready(picked: Option<usize>, endpoints: &[ClusterEndpoint]) -> PickResult {
    match picked {
        Some(index) => PickResult::Endpoint(index),
        None => unready(endpoints),
    }
}

/// The answer when no endpoint outside of those that were tried before is ready. One of these is
/// better than none, and one that connects is waited for: it may be the only one, and have said no
/// more than that this connection takes no more requests (GOAWAY).
fn unready(endpoints: &[ClusterEndpoint]) -> PickResult {
    let mut result = PickResult::Fail;
    for (index, endpoint) in endpoints.iter().enumerate() {
        match endpoint.stats.availability() {
            Connectivity::Ready => return PickResult::Endpoint(index),
            Connectivity::Idle | Connectivity::Connecting => result = PickResult::Queue,
            Connectivity::TransientFailure => {}
        }
    }
    result
}

/// Whether `endpoint` can be picked for a request that already used `previous`.
#[inline]
fn is_eligible(endpoint: &ClusterEndpoint, previous: &[SocketAddr]) -> bool {
    endpoint.stats.is_ready() && !previous.contains(&endpoint.address)
}

/// The first eligible endpoint at or after `start`, wrapping around.
fn scan(endpoints: &[ClusterEndpoint], previous: &[SocketAddr], start: usize) -> Option<usize> {
    (start..endpoints.len())
        .chain(0..start)
        .find(|index| is_eligible(&endpoints[*index], previous))
}
