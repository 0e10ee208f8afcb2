//! Requests that stay in the caller's zone, as many as it can take (Envoy's zone-aware routing).
//!
//! If a zone has a quarter of the endpoints and half of the callers, each of these callers sends half of
//! its requests there and the rest to where there are more endpoints than callers, so that all endpoints
//! get the same load as long as all callers do the same. Shares follow the health of the endpoints. In
//! parts of ten thousand, rounded down, as Envoy has them; only in the first priority, and not for ring
//! hash, Maglev and pick first.
//!
//! Deviation: a zone none of whose endpoints is connected gives its requests to all others, which Envoy
//! finds out by health checks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, Picker, locality::Locality,
    weighted::Weights,
};
use crate::{
    config::{LocalZones, LocalityId, ZoneAware, ZoneSize},
    observed::Observation,
    rng::Rng,
};

/// The whole, in the parts that shares are counted in.
const WHOLE: u64 = 10_000;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Zones {
    config: ZoneAware,
    callers: Arc<LocalZones>,
    /// Whether most of the callers are unusable, so that nothing follows from where they are.
    is_callers_panic: bool,
    zones: Box<[Locality]>,
    shares: Weights,
    /// Whether zones say anything at the moment.
    counts: AtomicBool,
    /// For requests for which zones do not count.
    all: Picker,
}

impl Zones {
    /// `all` picks among all endpoints. Most callers are unusable below `panic_threshold` percent.
    pub(super) fn new(
        config: ZoneAware,
        callers: &Arc<LocalZones>,
        panic_threshold: u32,
        zones: Vec<Locality>,
        all: Picker,
        endpoints: &[ClusterEndpoint],
    ) -> Self {
        let this = Self {
            config,
            callers: Arc::clone(callers),
            is_callers_panic: callers.is_below(panic_threshold),
            shares: Weights::new(vec![1.0; zones.len()], None),
            zones: zones.into(),
            counts: AtomicBool::new(false),
            all,
        };
        this.share(endpoints);
        this
    }

    fn share(&self, endpoints: &[ClusterEndpoint]) {
        let sizes = self.zones.iter().map(|zone| {
            let mut size = ZoneSize::default();
            zone.usable(endpoints)
                .for_each(|endpoint| size.add(endpoint.weight));
            (&*endpoints[zone.range.start].locality, size)
        });
        let shares = zone_shares(&sizes.collect::<Vec<_>>(), &self.callers, &self.config);
        if let Some(shares) = &shares {
            self.shares.set(shares);
        }
        self.counts.store(shares.is_some(), Relaxed);
    }
}

impl LoadBalancer for Zones {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let enabled = self.config.routing_enabled;
        let counts =
            self.counts.load(Relaxed) && (enabled >= 100.0 || context.rng.unit() * 100.0 < enabled);
        if !counts {
            return self.all.pick_dyn(endpoints, context);
        }
        if self.is_callers_panic {
            return match self.config.fail_traffic_on_panic {
                true => PickResult::Fail,
                false => self.all.pick_dyn(endpoints, context),
            };
        }
        let point = (context.rng.next_u64() >> 32) as u32;
        let zone = &self.zones[self.shares.at(point)];
        match zone.can_serve(endpoints, context.previous) {
            true => zone.pick(endpoints, context),
            false => self.all.pick_dyn(endpoints, context),
        }
    }

    fn observes(&self) -> bool {
        self.all.observes()
    }

    /// What is known of an endpoint is kept with it; what is known of a list, with the one in use.
    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let mut zones = self.zones.iter();
        match zones.find(|zone| zone.range.contains(&index)) {
            Some(zone) if self.counts.load(Relaxed) => zone.observe(endpoints, index, observation),
            _ => self.all.observe(endpoints, index, observation),
        }
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        self.share(endpoints);
        let zones = self.zones.iter();
        zones
            .filter_map(|zone| zone.refresh(endpoints, now))
            .chain(self.all.refresh(endpoints, now))
            .min()
    }
}

/// How a caller shares its requests among `zones`, each with the size of its usable endpoints; sums up
/// to 1. `None` when zones say nothing: there are too few, or too few endpoints, or it is not known
/// where the callers are.
pub(super) fn zone_shares(
    zones: &[(&LocalityId, ZoneSize)],
    callers: &LocalZones,
    config: &ZoneAware,
) -> Option<Vec<f64>> {
    let endpoints: u64 = zones.iter().map(|(_, size)| size.endpoints).sum();
    let is_forced = config.force_local_zone.is_some();
    if zones.len() < 2
        || endpoints < config.min_cluster_size
        || !callers.callers.contains_key(&callers.own)
        || callers.callers.len() < 2 && !is_forced
    {
        return None;
    }
    let basis = config.locality_basis;
    let part = |size: u64, all: u64| (WHOLE * size).checked_div(all).unwrap_or(0);
    let all: u64 = zones.iter().map(|(_, size)| size.by(basis)).sum();
    let all_callers: u64 = callers.callers.values().map(|size| size.by(basis)).sum();
    // Of the endpoints, and of the callers.
    let parts = zones.iter().map(|(place, size)| {
        let own = callers.callers.get(*place).copied().unwrap_or_default();
        (part(size.by(basis), all), part(own.by(basis), all_callers))
    });
    let parts: Vec<_> = parts.collect();
    let own = zones.iter().position(|(place, _)| **place == callers.own);
    let kept = own.map_or(0, |own| {
        let (has, calls) = parts[own];
        let forced = config.force_local_zone.map(|least| u64::from(least.max(1)));
        let is_forced = forced.is_some_and(|least| zones[own].1.endpoints >= least);
        match calls {
            _ if is_forced || has > 0 && has >= calls => WHOLE,
            0 => 0,
            calls => has * WHOLE / calls,
        }
    });
    let room = |index: usize| match parts[index] {
        _ if Some(index) == own => 0,
        (has, calls) => has.saturating_sub(calls),
    };
    let all_room: u64 = (0..zones.len()).map(room).sum();
    let kept = kept as f64 / WHOLE as f64;
    let shares = (0..zones.len()).map(|index| {
        let rest = match all_room {
            // Only by rounding.
            0 => 1.0 / zones.len() as f64,
            all_room => room(index) as f64 / all_room as f64,
        };
        let kept_here = if Some(index) == own { kept } else { 0.0 };
        kept_here + (1.0 - kept) * rest
    });
    Some(shares.collect())
}
