//! How priorities share the load by their health, and when one uses all of its endpoints (Envoy's
//! overprovisioning and panic threshold).
//!
//! Percentages are whole and rounded down, as Envoy has them: the examples of its documentation, which
//! round, are off by one in places.

/// How the load is shared by health.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpillOver {
    /// Percentage; none: it is not shared, the first priority that can be used is.
    pub(super) overprovisioning_factor: Option<u32>,
    /// Percentage; none or 0: there is no panic.
    pub(super) panic_threshold: Option<u32>,
    /// Whether requests to a priority that panics fail, instead of going to any of its endpoints.
    pub(super) fails_on_panic: bool,
}

/// The endpoints of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PriorityHealth {
    pub(super) healthy: u32,
    pub(super) degraded: u32,
    /// With those that cannot be used.
    pub(super) total: u32,
}

/// What each priority gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PriorityLoads {
    /// Percentage for its healthy endpoints.
    pub(super) healthy: Vec<u32>,
    /// Percentage for its degraded ones; all percentages together are 100.
    pub(super) degraded: Vec<u32>,
    /// Whether it uses all of its endpoints.
    pub(super) panics: Vec<bool>,
}

impl PriorityHealth {
    /// What it can take of the load, when so many of its endpoints can be used.
    pub(super) fn capacity(self, usable: u32, factor: u32) -> u32 {
        let percent = u64::from(factor) * u64::from(usable);
        percent
            .checked_div(self.total.into())
            .map_or(0, |percent| percent.min(100) as u32)
    }

    fn is_below(self, threshold: u32) -> bool {
        let usable = u64::from(self.healthy) + u64::from(self.degraded);
        match self.total {
            0 => threshold > 0,
            total => usable * 100 < u64::from(threshold) * u64::from(total),
        }
    }
}

/// Shares 100 % among priorities. `factor` and `threshold` are in percent.
pub(super) fn priority_loads(
    priorities: &[PriorityHealth],
    factor: u32,
    threshold: u32,
) -> PriorityLoads {
    let capacities = |usable: fn(&PriorityHealth) -> u32| {
        let each = priorities.iter();
        each.map(|priority| priority.capacity(usable(priority), factor))
            .collect::<Vec<_>>()
    };
    let healthy = capacities(|priority| priority.healthy);
    let degraded = capacities(|priority| priority.degraded);
    let sum: u32 = healthy.iter().chain(&degraded).sum();
    let available = sum.min(100);
    let panics: Vec<_> = priorities
        .iter()
        .map(|priority| available < 100 && priority.is_below(threshold))
        .collect();
    if !panics.is_empty() && panics.iter().all(|panics| *panics) {
        return PriorityLoads {
            healthy: by_size(priorities),
            degraded: vec![0; priorities.len()],
            panics,
        };
    }
    let mut left = 100;
    let mut take = |capacities: &[u32]| {
        let shares = capacities.iter().map(|capacity| {
            let share = (capacity * 100).checked_div(available).unwrap_or(0);
            let share = share.min(left);
            left -= share;
            share
        });
        shares.collect::<Vec<_>>()
    };
    let mut loads = PriorityLoads {
        healthy: take(&healthy),
        degraded: take(&degraded),
        panics,
    };
    // What rounding leaves over goes to the first that takes anything; with none, nothing is picked.
    let first = |capacities: &[u32]| capacities.iter().position(|capacity| *capacity > 0);
    if let (None, Some(first)) = (first(&healthy), first(&degraded)) {
        loads.degraded[first] += left;
    } else if let Some(load) = loads.healthy.get_mut(first(&healthy).unwrap_or(0)) {
        *load += left;
    }
    loads
}

/// Shares by the number of endpoints, whatever is known of their health: all priorities panic.
fn by_size(priorities: &[PriorityHealth]) -> Vec<u32> {
    let all: u64 = priorities.iter().map(|p| u64::from(p.total)).sum();
    let share = |priority: &PriorityHealth| {
        let share = u64::from(priority.total) * 100;
        share.checked_div(all).unwrap_or(0) as u32
    };
    let mut loads: Vec<_> = priorities.iter().map(share).collect();
    let left = 100 - loads.iter().sum::<u32>();
    let first = priorities.iter().position(|priority| priority.total > 0);
    loads[first.unwrap_or(0)] += left;
    loads
}
