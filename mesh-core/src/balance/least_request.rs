//! The least loaded of a few random endpoints (gRFC A48, power of two choices).
//!
//! Samples with replacement among the ready endpoints; fewest requests in flight wins, the first
//! sampled on a tie. With one choice it is the random policy.

use std::net::SocketAddr;

use super::{ClusterEndpoint, sample::sample};
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

    pub(super) fn pick<R: Rng + ?Sized>(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
        rng: &mut R,
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

/// Most choices (gRFC A48).
const CHOICES_MAX: u32 = 10;
