//! The same endpoint for the same hash, on a ring (gRFC A42, A61, A76, A113).
//!
//! Each endpoint has entries on the ring in proportion to its weight, at the hashes of its address and
//! a number; a request goes to the first entry at or after its own hash. Rings are equal to those of
//! Envoy and gRPC, so that processes of any kind agree on where a key lives.
//!
//! An endpoint is connected when the first request comes to it, which waits; when that fails it goes on
//! to the next one. A request without a hash starts at a random place, and does not wait for one that is
//! connecting already while another is ready.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, bound::Bound, is_eligible, unready,
};
use crate::{
    config::{RING_SIZE_CAP, RingHash as Config},
    rng::Rng,
    stats::Connectivity,
};

/// Entries that are walked before it is looked up whether any endpoint can be used at all.
const STEPS_BLIND: usize = 16;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct RingHash {
    /// Hashes in order, with the endpoint of each.
    entries: Box<[(u64, u32)]>,
    bound: Option<Bound>,
}

impl RingHash {
    /// A ring of endpoints with these names and weights, one for each, all above 0.
    pub(super) fn new(
        config: Config,
        keys: &[String],
        weights: &[f64],
        bound: Option<Bound>,
    ) -> Self {
        let total: f64 = weights.iter().sum();
        // In the order of the peers' operations: another one rounds to another ring here and there.
        let parts: Vec<_> = weights.iter().map(|weight| weight / total).collect();
        let least = parts.iter().copied().fold(f64::INFINITY, f64::min);
        let smallest = config.minimum_ring_size.min(RING_SIZE_CAP) as f64;
        let largest = config.maximum_ring_size.min(RING_SIZE_CAP) as f64;
        // The endpoint with the least weight has a whole number of entries, if the ring is not too
        // large then.
        let scale = ((least * smallest).ceil() / least).min(largest);
        let mut order: Vec<_> = (0..keys.len()).collect();
        order.sort_by_key(|index| &keys[*index]);
        let mut entries = Vec::with_capacity(scale.max(0.0).ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        for index in order {
            target += scale * parts[index];
            let mut number = 0;
            while current < target {
                let key = format!("{}_{number}", keys[index]);
                entries.push((xxh64(key.as_bytes(), 0), index as u32));
                number += 1;
                current += 1.0;
            }
        }
        entries.sort_unstable();
        Self {
            entries: entries.into(),
            bound,
        }
    }

    /// The endpoints from a hash on, as often as they have entries.
    fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = self.entries.partition_point(|(entry, _)| *entry < hash);
        let (before, after) = self.entries.split_at(start);
        let entries = after.iter().chain(before);
        entries.map(|(_, endpoint)| *endpoint as usize)
    }

    /// None is ready but those of `previous`, if any.
    #[cold]
    fn unready(
        &self,
        hash: u64,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
    ) -> PickResult {
        let result = unready(endpoints);
        if result == PickResult::Queue {
            // What it waits for must be under way: another one, or the only one there is.
            let is_idle =
                |index: &usize| endpoints[*index].stats.availability() == Connectivity::Idle;
            let is_new = |index: &usize| !previous.contains(&endpoints[*index].address);
            let mut idle = self.walk(hash).filter(is_idle);
            let next = idle.find(is_new).or_else(|| self.walk(hash).find(is_idle));
            if let Some(next) = next {
                endpoints[next].stats.want();
            }
        }
        result
    }
}

impl LoadBalancer for RingHash {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let hash = context.hash.unwrap_or_else(|| context.rng.next_u64());
        let is_first = context.previous.is_empty();
        // A first attempt with a hash waits for its endpoint while that is connecting (gRFC A61).
        let waits = context.hash.is_some() && is_first;
        // The first that would do, but is busy.
        let (mut full, mut total) = (None, None);
        for (step, index) in self.walk(hash).enumerate() {
            let endpoint = &endpoints[index];
            match endpoint.stats.availability() {
                Connectivity::Ready if is_eligible(endpoint, context.previous) => {
                    let bound = self.bound.as_ref();
                    if bound.is_some_and(|bound| bound.is_full(endpoints, index, &mut total)) {
                        full.get_or_insert(index);
                        continue;
                    }
                    return PickResult::Endpoint(index);
                }
                Connectivity::Idle if is_first => {
                    endpoint.stats.want();
                    return PickResult::Queue;
                }
                Connectivity::Connecting if waits => return PickResult::Queue,
                _ => {}
            }
            let is_hopeless = || {
                let mut all = endpoints.iter();
                !all.any(|endpoint| is_eligible(endpoint, context.previous))
            };
            if step == STEPS_BLIND && !waits && is_hopeless() {
                break;
            }
        }
        full.map_or_else(
            || self.unready(hash, endpoints, context.previous),
            PickResult::Endpoint,
        )
    }

    fn connects(&self, _: usize) -> bool {
        false
    }
}
