//! Requests shared among the localities of one priority by their weights (gRFC A27; Envoy
//! `locality_weighted_lb_config`), and how much of its traffic a zone keeps for itself.
//!
//! A locality has its share as long as one of its endpoints is ready; one without gives it to the
//! others by their weights. With an overprovisioning factor its share follows from its health (Envoy).

use std::{ops::Range, time::Instant};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, unready, weighted::Weights,
};
use crate::{observed::Observation, rng::Rng, stats::Connectivity};

/// One locality.
#[derive(Debug)]
pub(super) struct Locality {
    /// Its share.
    pub(super) weight: u32,
    /// Its usable endpoints.
    pub(super) range: Range<usize>,
    /// How many it has, with those that are not usable.
    pub(super) total: usize,
    pub(super) picker: Picker,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Localities {
    weights: Weights,
    children: Box<[Locality]>,
    /// Percentage; with it a locality's share follows from its health.
    overprovisioning_factor: Option<u32>,
}

impl Localities {
    pub(super) fn new(
        children: Vec<Locality>,
        overprovisioning_factor: Option<u32>,
        endpoints: &[ClusterEndpoint],
    ) -> Self {
        let weights = children.iter().map(|child| f64::from(child.weight));
        let this = Self {
            weights: Weights::new(weights.collect(), None),
            children: children.into(),
            overprovisioning_factor,
        };
        this.share(endpoints);
        this
    }

    /// Lowers the shares of localities that have lost endpoints, as Envoy does: by what is left of them
    /// times the factor.
    fn share(&self, endpoints: &[ClusterEndpoint]) {
        let Some(factor) = self.overprovisioning_factor else {
            return;
        };
        let weights = self.children.iter().map(|child| {
            let usable = endpoints[child.range.clone()]
                .iter()
                .filter(|endpoint| endpoint.stats.availability() != Connectivity::TransientFailure)
                .count();
            let part = usable as f64 / child.total.max(1) as f64;
            f64::from(child.weight) * (part * f64::from(factor) / 100.0).min(1.0)
        });
        let weights: Vec<_> = weights.collect();
        if weights.iter().any(|weight| *weight > 0.0) {
            self.weights.set(&weights);
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
            let mut endpoints = endpoints[self.children[index].range.clone()].iter();
            endpoints.any(|endpoint| super::is_eligible(endpoint, previous))
        };
        let point = || (context.rng.next_u64() >> 32) as u32;
        let Some(index) = self.weights.draw(point, can_use) else {
            return unready(endpoints);
        };
        let child = &self.children[index];
        let result = child
            .picker
            .pick_dyn(&endpoints[child.range.clone()], context);
        result.after(child.range.start)
    }

    fn observes(&self) -> bool {
        self.children.iter().any(|child| child.picker.observes())
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut children = self.children.iter();
        if let Some(child) = children.find(|child| child.range.contains(&index)) {
            let (endpoints, index) = (&endpoints[child.range.clone()], index - child.range.start);
            child.picker.observe(endpoints, index, observation);
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.share(endpoints);
        let children = self.children.iter();
        let refresh = |child: &Locality| {
            let endpoints = &endpoints[child.range.clone()];
            child.picker.refresh(endpoints, now)
        };
        children.filter_map(refresh).min()
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
