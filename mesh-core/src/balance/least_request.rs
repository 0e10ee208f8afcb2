//! The least loaded of a few random endpoints (gRFC A48, power of two choices).
//!
//! Samples with replacement among the ready endpoints; fewest requests in flight wins, the first
//! sampled on a tie. With one choice it is the random policy.

use std::net::SocketAddr;

use super::{ClusterEndpoint, is_eligible};
use crate::rng::Rng;

/// Least request with a number of choices.
#[derive(Debug)]
pub struct LeastRequest {
    choice_count: u32,
}

impl LeastRequest {
    pub(super) fn new(choice_count: u32) -> Self {
        Self {
            choice_count: choice_count.clamp(1, CHOICES_MAX),
        }
    }

    pub(super) fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
        rng: &mut impl Rng,
    ) -> Option<usize> {
        if endpoints.is_empty() {
            return None;
        }
        let mut best: Option<(u32, usize)> = None;
        for _ in 0..self.choice_count {
            let index = sample(endpoints, previous, rng)?;
            let load = endpoints[index].stats.in_flight();
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

/// An eligible endpoint, uniform over all eligible ones.
fn sample(
    endpoints: &[ClusterEndpoint],
    previous: &[SocketAddr],
    rng: &mut impl Rng,
) -> Option<usize> {
    for _ in 0..REJECTIONS_MAX {
        let index = rng.below(endpoints.len() as u64) as usize;
        if is_eligible(&endpoints[index], previous) {
            return Some(index);
        }
    }
    // Few are eligible. Counting them keeps the choice uniform, where taking the next one after a
    // gap would give it the gap's share.
    let eligible = || (0..endpoints.len()).filter(|i| is_eligible(&endpoints[*i], previous));
    let count = eligible().count() as u64;
    if count == 0 {
        return None;
    }
    // Connectivity may change between the two walks.
    eligible()
        .nth(rng.below(count) as usize)
        .or_else(|| eligible().next())
}

/// Draws that may hit an ineligible endpoint before the eligible ones are counted.
const REJECTIONS_MAX: u32 = 4;

/// Most choices (gRFC A48).
const CHOICES_MAX: u32 = 10;
