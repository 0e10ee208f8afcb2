//! The least loaded of a few random endpoints (gRFC A48, power of two choices).
//!
//! Samples with replacement among the ready endpoints; fewest requests in flight wins, the first
//! sampled on a tie. With one choice it is the random policy. Deviation: an endpoint that fails more
//! than a fifth of its requests counts as busy (`EndpointStats::is_failing`), as failing fast would
//! otherwise look like being fast.

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

    #[inline]
    pub(super) fn pick<R: Rng + ?Sized>(
        &self,
        endpoints: &[ClusterEndpoint],
        previous: &[SocketAddr],
        rng: &mut R,
    ) -> Option<usize> {
        if self.choice_count == 2
            && previous.is_empty()
            && let Some(picked) = pick_of_two(endpoints, rng)
        {
            return Some(picked);
        }
        self.pick_eligible(endpoints, previous, rng)
    }

    fn pick_eligible<R: Rng + ?Sized>(
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
            let load = endpoints[index].stats.load();
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, index));
            }
        }
        // Nothing but failing ones was drawn: with few endpoints that is often.
        for _ in 0..REDRAWS {
            let Some((least, index)) = best else { break };
            // A random choice is one, whatever is known.
            if self.choice_count == 1 || !endpoints[index].stats.is_failing() {
                break;
            }
            let other = sample(endpoints, previous, rng)?;
            let load = endpoints[other].stats.load();
            if load < least {
                best = Some((load, other));
            }
        }
        best.map(|(_, index)| index)
    }
}

/// The usual case: both halves of one draw hit endpoints that are ready.
#[inline]
fn pick_of_two<R: Rng + ?Sized>(endpoints: &[ClusterEndpoint], rng: &mut R) -> Option<usize> {
    let draw = rng.next_u64();
    let below = |half: u32| (u64::from(half).wrapping_mul(endpoints.len() as u64) >> 32) as usize;
    let [first, second] = [below(draw as u32), below((draw >> 32) as u32)];
    let [a, b] = [first, second].map(|index| endpoints.get(index).map(|found| &found.stats));
    let (a, b) = (a?, b?);
    if !(a.is_good() && b.is_good()) {
        return None;
    }
    Some(if b.in_flight() < a.in_flight() {
        second
    } else {
        first
    })
}

/// Draws that avoid an endpoint that is failing: of two endpoints it keeps one request in a thousand.
const REDRAWS: u32 = 8;

/// Most choices (gRFC A48).
const CHOICES_MAX: u32 = 10;
