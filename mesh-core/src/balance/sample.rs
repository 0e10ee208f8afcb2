//! A random endpoint, uniform over all eligible ones.

use std::net::SocketAddr;

use super::{ClusterEndpoint, is_eligible};
use crate::rng::Rng;

/// Draws that may hit an ineligible endpoint before the eligible ones are counted.
pub(super) const REJECTIONS_MAX: u32 = 4;

/// An eligible endpoint, uniform over all eligible ones.
#[inline]
pub(super) fn sample<R: Rng + ?Sized>(
    endpoints: &[ClusterEndpoint],
    previous: &[SocketAddr],
    rng: &mut R,
) -> Option<usize> {
    for _ in 0..REJECTIONS_MAX {
        let index = rng.below(endpoints.len() as u64) as usize;
        if is_eligible(&endpoints[index], previous) {
            return Some(index);
        }
    }
    sample_rest(endpoints, rng, |endpoint| is_eligible(endpoint, previous))
}

/// One of those that `accepts`, uniform over them.
pub(super) fn sample_rest<R: Rng + ?Sized>(
    endpoints: &[ClusterEndpoint],
    rng: &mut R,
    accepts: impl Fn(&ClusterEndpoint) -> bool,
) -> Option<usize> {
    // Few are eligible. Counting them keeps the choice uniform, where taking the next one after a
    // gap would give it the gap's share.
    let eligible = || (0..endpoints.len()).filter(|i| accepts(&endpoints[*i]));
    let count = eligible().count() as u64;
    if count == 0 {
        return None;
    }
    // Connectivity may change between the two walks.
    eligible()
        .nth(rng.below(count) as usize)
        .or_else(|| eligible().next())
}

/// Up to `N` different eligible endpoints, the first `count` of the result.
pub(super) fn sample_distinct<const N: usize, R: Rng + ?Sized>(
    endpoints: &[ClusterEndpoint],
    previous: &[SocketAddr],
    wanted: usize,
    rng: &mut R,
) -> ([usize; N], usize) {
    let (mut found, mut count) = ([0; N], 0);
    let wanted = wanted.min(N);
    if endpoints.len() <= wanted {
        for index in (0..endpoints.len()).filter(|i| is_eligible(&endpoints[*i], previous)) {
            // In random order, because the first one wins a tie.
            let place = rng.below(count as u64 + 1) as usize;
            found[count] = found[place];
            found[place] = index;
            count += 1;
        }
        return (found, count);
    }
    for _ in 0..wanted * 2 {
        let index = rng.below(endpoints.len() as u64) as usize;
        if !found[..count].contains(&index) && is_eligible(&endpoints[index], previous) {
            found[count] = index;
            count += 1;
            if count == wanted {
                return (found, count);
            }
        }
    }
    // Few are eligible, or there are few. One alone would be taken whatever is known of it: of three
    // endpoints, a bad one would keep a hundredth of the requests.
    while count < wanted.min(2) {
        let held = found;
        let is_new = |endpoint: &ClusterEndpoint| {
            is_eligible(endpoint, previous)
                && held[..count]
                    .iter()
                    .all(|i| endpoints[*i].address != endpoint.address)
        };
        let Some(index) = sample_rest(endpoints, rng, is_new) else {
            break;
        };
        found[count] = index;
        count += 1;
    }
    (found, count)
}
