//! All requests to one endpoint as long as it can be reached (gRFC A62).
//!
//! The first one that can be used in the order of the list, or in a random order by weight (gRFC
//! A113), is kept until it cannot be used. Deviation: the others are connected too, so that another
//! one takes over at once; which makes the pace of attempts (RFC 8305) a matter of connecting, not of
//! picking.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{ClusterEndpoint, LoadBalancer, PickContext, PickResult, is_eligible, unready};
use crate::rng::{Rng, SplitMix64};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct PickFirst {
    order: Box<[u32]>,
    /// Where in the order the endpoint in use is.
    selected: AtomicUsize,
}

impl PickFirst {
    pub(super) fn new(weights: &[f64], is_shuffled: bool, seed: u64) -> Self {
        let mut order: Vec<_> = (0..weights.len() as u32).collect();
        if is_shuffled {
            let mut rng = SplitMix64::new(seed);
            let keys: Vec<_> = weights
                .iter()
                .map(|weight| rng.unit().powf(1.0 / weight))
                .collect();
            order.sort_by(|a, b| keys[*b as usize].total_cmp(&keys[*a as usize]));
        }
        Self {
            order: order.into(),
            selected: AtomicUsize::new(0),
        }
    }
}

impl LoadBalancer for PickFirst {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let can_use = |place: &usize| {
            let index = self.order[*place] as usize;
            is_eligible(&endpoints[index], context.previous)
        };
        if self.order.is_empty() {
            return PickResult::Fail;
        }
        let selected = self.selected.load(Relaxed);
        let place = if can_use(&selected) {
            selected
        } else {
            let Some(place) = (0..self.order.len()).find(can_use) else {
                return unready(endpoints);
            };
            // A retry that goes elsewhere moves nobody else.
            if context.previous.is_empty() {
                self.selected.store(place, Relaxed);
            }
            place
        };
        PickResult::Endpoint(self.order[place] as usize)
    }
}
