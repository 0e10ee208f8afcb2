//! Priorities that a retry avoids (Envoy `envoy.retry_priorities.previous_priorities`).
//!
//! Stage 10, for the few calls whose retry policy asks for it. Nothing is kept between picks: which
//! priorities are avoided follows from the endpoints that were tried, as they are placed now.

use std::{net::SocketAddr, num::NonZeroU32, ops::Range};

use super::{
    super::{
        ClusterEndpoint,
        spill_over::{PriorityHealth, priority_loads},
    },
    Tier, Tiers,
};
use crate::rng::Rng;

/// The endpoints that earlier attempts of a request used, for a retry that goes to another priority.
#[derive(Clone, Copy, Debug)]
pub struct TriedPriorities<'a> {
    attempted: &'a [SocketAddr],
    update_frequency: usize,
}

impl<'a> TriedPriorities<'a> {
    /// The priorities of the `attempted` endpoints, the newest last, are avoided; after each
    /// `update_frequency` attempts those of the attempts that came since are added.
    pub fn new(attempted: &'a [SocketAddr], update_frequency: NonZeroU32) -> Self {
        Self {
            attempted,
            update_frequency: update_frequency.get() as usize,
        }
    }

    /// Which of `count` priorities to avoid; `None` when it is none of them. `priority_of` tells where
    /// an endpoint is, if it still is; `is_left` whether anything can be used when these are avoided.
    /// When nothing can, the list starts again.
    pub(super) fn avoided(
        &self,
        count: usize,
        priority_of: impl Fn(SocketAddr) -> Option<usize>,
        is_left: impl Fn(&[bool]) -> bool,
    ) -> Option<Vec<bool>> {
        let mut avoided = vec![false; count];
        let mut start = 0;
        for end in 1..=self.attempted.len() {
            let tried = &self.attempted[start..end];
            if !tried.len().is_multiple_of(self.update_frequency) {
                continue;
            }
            for priority in tried.iter().filter_map(|address| priority_of(*address)) {
                avoided[priority] = true;
            }
            if !is_left(&avoided) {
                avoided.fill(false);
                start = end;
            }
        }
        avoided.contains(&true).then_some(avoided)
    }
}

impl Tiers {
    /// The tier of a retry outside of the priorities that were tried, as Envoy chooses it: by what is
    /// left of the load, or the first that can be used; `None` where nothing is to be avoided.
    #[cold]
    pub(super) fn choose_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        rng: &mut (dyn Rng + '_),
        tried: &TriedPriorities<'_>,
    ) -> Option<usize> {
        let mut left = self.health(endpoints);
        let factor = self.spill_over.overprovisioning_factor;
        // Without a factor one endpoint is enough.
        let capacity = |priority: &PriorityHealth| {
            let usable = priority.healthy.max(priority.degraded);
            priority.capacity(usable, factor.unwrap_or(u32::MAX))
        };
        let avoided = tried.avoided(
            left.len(),
            |address| self.priority_of(endpoints, address),
            |avoided| {
                let mut priorities = left.iter().zip(avoided);
                priorities.any(|(priority, avoided)| !avoided && capacity(priority) > 0)
            },
        )?;
        for (priority, _) in left.iter_mut().zip(avoided).filter(|(_, avoided)| *avoided) {
            (priority.healthy, priority.degraded) = (0, 0);
        }
        let loads = factor.map(|factor| priority_loads(&left, factor, 0));
        let share = |tier: &Tier| {
            let place = tier.parts.priority;
            match (&loads, tier.parts.is_degraded) {
                (Some(loads), false) => loads.healthy[place],
                (Some(loads), true) => loads.degraded[place],
                (None, false) => left[place].healthy,
                (None, true) => left[place].degraded,
            }
        };
        let mut drawn = match &loads {
            Some(_) => rng.below(100) as u32,
            None => 0,
        };
        self.tiers.iter().position(|tier| match share(tier) {
            share if drawn < share => true,
            share => {
                drawn -= share;
                false
            }
        })
    }

    /// The priority of an endpoint, if it still has one.
    fn priority_of(&self, endpoints: &[ClusterEndpoint], address: SocketAddr) -> Option<usize> {
        let held = |range: &Range<usize>| {
            let mut endpoints = endpoints[range.clone()].iter();
            endpoints.any(|endpoint| endpoint.address == address)
        };
        let mut tiers = self.tiers.iter();
        let tier = tiers.find(|tier| held(&tier.range) || held(&tier.parts.rest))?;
        Some(tier.parts.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The priorities that are avoided after attempts on these priorities, where `usable` ones exist.
    fn avoided(tried: &[u16], frequency: u32, usable: &[usize]) -> String {
        let addresses = tried
            .iter()
            .map(|priority| SocketAddr::from(([10, 0, 0, 1], *priority)));
        let addresses: Vec<_> = addresses.collect();
        let tried = TriedPriorities::new(&addresses, NonZeroU32::new(frequency).unwrap());
        let place = |address: SocketAddr| Some(usize::from(address.port())).filter(|p| *p < 3);
        let is_left = |avoided: &[bool]| usable.iter().any(|priority| !avoided[*priority]);
        let avoided = tried.avoided(3, place, is_left);
        let all = avoided.into_iter().flatten().enumerate();
        let avoided = all
            .filter(|(_, is)| *is)
            .map(|(priority, _)| priority.to_string());
        avoided.collect::<Vec<_>>().join(" ")
    }

    /// The sequences in the description of Envoy's `PreviousPrioritiesConfig`.
    #[test]
    fn what_was_tried_is_avoided_until_nothing_is_left() {
        assert_eq!(avoided(&[], 1, &[0, 1, 2]), "");
        assert_eq!(avoided(&[0], 1, &[0, 1, 2]), "0");
        assert_eq!(avoided(&[0, 1], 1, &[0, 1, 2]), "0 1");
        assert_eq!(avoided(&[0, 1, 2], 1, &[0, 1, 2]), "", "it starts again");
        assert_eq!(avoided(&[0, 1, 2, 0], 1, &[0, 1, 2]), "0");
        // P1 cannot be used: P0, P2, P0, P2.
        assert_eq!(avoided(&[0], 1, &[0, 2]), "0");
        assert_eq!(avoided(&[0, 2], 1, &[0, 2]), "");
        assert_eq!(avoided(&[0, 2, 0], 1, &[0, 2]), "0");
    }

    #[test]
    fn the_list_grows_after_each_so_many_attempts() {
        let every_second = |tried: &[u16]| avoided(tried, 2, &[0, 1, 2]);
        assert_eq!(every_second(&[0]), "");
        assert_eq!(every_second(&[0, 0]), "0");
        assert_eq!(every_second(&[0, 0, 1]), "0");
        assert_eq!(every_second(&[0, 0, 1, 1]), "0 1");
        assert_eq!(every_second(&[0, 0, 1, 1, 2, 2]), "");
        assert_eq!(every_second(&[0, 0, 1, 1, 2, 2, 0]), "", "counted anew");
    }

    #[test]
    fn endpoints_that_are_gone_and_clusters_without_any_avoid_nothing() {
        assert_eq!(avoided(&[7], 1, &[0, 1, 2]), "");
        assert_eq!(avoided(&[0, 0], 1, &[]), "");
    }
}
