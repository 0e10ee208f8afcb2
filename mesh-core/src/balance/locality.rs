//! Requests shared among the localities of one priority by their weights (gRFC A27; Envoy
//! `locality_weighted_lb_config`), and how much of its traffic a zone keeps for itself.
//!
//! A locality has its share as long as one of its endpoints is ready; one without gives it to the
//! others by their weights.

use std::{ops::Range, time::Instant};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, unready, weighted::Weights,
};
use crate::{observed::Observation, rng::Rng};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Localities {
    weights: Weights,
    children: Box<[(Range<usize>, Picker)]>,
}

impl Localities {
    pub(super) fn new(children: Vec<(u32, Range<usize>, Picker)>) -> Self {
        let weights = children.iter().map(|(weight, ..)| f64::from(*weight));
        Self {
            weights: Weights::new(weights.collect(), None),
            children: children
                .into_iter()
                .map(|(_, range, picker)| (range, picker))
                .collect(),
        }
    }
}

impl LoadBalancer for Localities {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let previous = context.previous;
        let can_use = |index: usize| {
            let (range, _) = &self.children[index];
            let mut endpoints = endpoints[range.clone()].iter();
            endpoints.any(|endpoint| super::is_eligible(endpoint, previous))
        };
        let point = || (context.rng.next_u64() >> 32) as u32;
        let Some(index) = self.weights.draw(point, can_use) else {
            return unready(endpoints);
        };
        let (range, picker) = &self.children[index];
        picker
            .pick_dyn(&endpoints[range.clone()], context)
            .after(range.start)
    }

    fn observes(&self) -> bool {
        self.children.iter().any(|(_, picker)| picker.observes())
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut children = self.children.iter();
        if let Some((range, picker)) = children.find(|(range, _)| range.contains(&index)) {
            picker.observe(&endpoints[range.clone()], index - range.start, observation);
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let children = self.children.iter();
        children
            .filter_map(|(range, picker)| picker.refresh(&endpoints[range.clone()], now))
            .min()
    }
}

/// A zone, with how many endpoints it has of those that call and of those that are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneShare {
    /// Endpoints of the calling service.
    pub callers: u32,
    /// Usable endpoints of the called service.
    pub endpoints: u32,
}

/// How a caller in zone `local` shares its requests among `zones`, in parts that sum up to 1: as much
/// as the local zone can take without more than its part of the load stays there, the rest goes where
/// there is room (Envoy's zone-aware routing). `None` when zones cannot be taken into account: the
/// local one has no endpoint, or there are no callers.
pub fn zone_shares(zones: &[ZoneShare], local: usize) -> Option<Vec<f64>> {
    let callers: u32 = zones.iter().map(|zone| zone.callers).sum();
    let endpoints: u32 = zones.iter().map(|zone| zone.endpoints).sum();
    if callers == 0 || zones.get(local)?.endpoints == 0 || zones[local].callers == 0 {
        return None;
    }
    let part = |count: u32, total: u32| f64::from(count) / f64::from(total);
    let room = |zone: &ZoneShare| part(zone.endpoints, endpoints) - part(zone.callers, callers);
    let kept =
        (part(zones[local].endpoints, endpoints) / part(zones[local].callers, callers)).min(1.0);
    let free: f64 = zones.iter().map(|zone| room(zone).max(0.0)).sum();
    let shares = zones.iter().enumerate().map(|(index, zone)| match index {
        _ if index == local => kept,
        _ if free > 0.0 => (1.0 - kept) * room(zone).max(0.0) / free,
        _ => 0.0,
    });
    Some(shares.collect())
}
