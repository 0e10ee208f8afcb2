//! The same endpoint for the same hash, by a table (Eisenbud et al., NSDI 2016; Envoy `Maglev`).
//!
//! Endpoints take turns in claiming the next free place of their own permutation of the table, those
//! with less weight fewer turns. A pick is one look-up; where that endpoint cannot be used, the next
//! places are tried.

use xxhash_rust::xxh64::xxh64;

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, bound::Bound, is_eligible, unready,
};
use crate::rng::Rng;

/// Places that are tried before it is looked up whether any endpoint can be used at all.
const STEPS_BLIND: usize = 16;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Maglev {
    table: Box<[u32]>,
    bound: Option<Bound>,
}

/// One endpoint while the table is filled.
struct Claimant {
    index: u32,
    weight: f64,
    offset: u64,
    skip: u64,
    next: u64,
    /// Its turn comes when this is reached.
    target: f64,
}

impl Maglev {
    /// A table for endpoints with these names and weights, one for each, all above 0. `size` is a
    /// prime.
    pub(super) fn new(size: u32, keys: &[String], weights: &[f64], bound: Option<Bound>) -> Self {
        let m = u64::from(size.max(2));
        let mut order: Vec<_> = (0..keys.len()).collect();
        order.sort_by_key(|index| &keys[*index]);
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let mut claimants: Vec<_> = order
            .into_iter()
            .map(|index| {
                let key = &keys[index];
                Claimant {
                    index: index as u32,
                    weight: weights[index],
                    offset: xxh64(key.as_bytes(), 0) % m,
                    skip: xxh64(key.as_bytes(), 1) % (m - 1) + 1,
                    next: 0,
                    target: 0.0,
                }
            })
            .collect();
        const FREE: u32 = u32::MAX;
        let mut table = vec![FREE; if claimants.is_empty() { 0 } else { m as usize }];
        let mut left = table.len();
        let mut turn = 1.0;
        while left > 0 {
            for claimant in &mut claimants {
                if left == 0 {
                    break;
                }
                if turn * claimant.weight < claimant.target {
                    continue;
                }
                claimant.target += largest;
                let place = loop {
                    let place = (claimant.offset + claimant.skip * claimant.next) % m;
                    claimant.next += 1;
                    if table[place as usize] == FREE {
                        break place;
                    }
                };
                table[place as usize] = claimant.index;
                left -= 1;
            }
            turn += 1.0;
        }
        Self {
            table: table.into(),
            bound,
        }
    }
}

impl LoadBalancer for Maglev {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        if self.table.is_empty() {
            return PickResult::Fail;
        }
        let hash = context.hash.unwrap_or_else(|| context.rng.next_u64());
        let start = (hash % self.table.len() as u64) as usize;
        let places = self.table[start..].iter().chain(&self.table[..start]);
        // The first that would do, but is busy.
        let (mut full, mut total) = (None, None);
        for (step, index) in places.enumerate() {
            let index = *index as usize;
            if is_eligible(&endpoints[index], context.previous) {
                let bound = self.bound.as_ref();
                if bound.is_some_and(|bound| bound.is_full(endpoints, index, &mut total)) {
                    full.get_or_insert(index);
                    continue;
                }
                return PickResult::Endpoint(index);
            }
            let mut all = endpoints.iter();
            if step == STEPS_BLIND && !all.any(|endpoint| is_eligible(endpoint, context.previous)) {
                break;
            }
        }
        full.map_or_else(|| unready(endpoints), PickResult::Endpoint)
    }
}
