//! Requests shared among the localities of one priority by their weights (gRFC A27; Envoy
//! `locality_weighted_lb_config`).
//!
//! A locality has its share as long as one of its endpoints is ready; one without gives it to the
//! others by their weights. With an overprovisioning factor its share follows from its health (Envoy).

use std::{net::SocketAddr, ops::Range, time::Instant};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, is_eligible, unready,
    weighted::Weights,
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

impl Locality {
    /// Its endpoints, of those of the priority, that are not known to fail.
    pub(super) fn usable<'e>(
        &self,
        endpoints: &'e [ClusterEndpoint],
    ) -> impl Iterator<Item = &'e ClusterEndpoint> {
        let endpoints = endpoints[self.range.clone()].iter();
        endpoints.filter(|endpoint| endpoint.stats.availability() != Connectivity::TransientFailure)
    }

    /// Whether it has one that can be picked for a request that already used `previous`.
    pub(super) fn can_serve(&self, endpoints: &[ClusterEndpoint], previous: &[SocketAddr]) -> bool {
        let mut endpoints = endpoints[self.range.clone()].iter();
        endpoints.any(|endpoint| is_eligible(endpoint, previous))
    }

    /// Picks one of its endpoints, by the index in the priority.
    pub(super) fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let own = &endpoints[self.range.clone()];
        self.picker.pick_dyn(own, context).after(self.range.start)
    }

    pub(super) fn observe(
        &self,
        endpoints: &[ClusterEndpoint],
        index: usize,
        observation: &Observation<'_>,
    ) {
        let own = &endpoints[self.range.clone()];
        self.picker
            .observe(own, index - self.range.start, observation);
    }

    pub(super) fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.picker.refresh(&endpoints[self.range.clone()], now)
    }
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
            let usable = child.usable(endpoints).count();
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
        let can_use = |index: usize| self.children[index].can_serve(endpoints, previous);
        let point = || (context.rng.next_u64() >> 32) as u32;
        let Some(index) = self.weights.draw(point, can_use) else {
            return unready(endpoints);
        };
        self.children[index].pick(endpoints, context)
    }

    fn observes(&self) -> bool {
        self.children.iter().any(|child| child.picker.observes())
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut children = self.children.iter();
        if let Some(child) = children.find(|child| child.range.contains(&index)) {
            child.observe(endpoints, index, observation);
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.share(endpoints);
        let children = self.children.iter();
        children
            .filter_map(|child| child.refresh(endpoints, now))
            .min()
    }
}
