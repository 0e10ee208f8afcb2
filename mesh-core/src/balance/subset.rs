//! Which few of many endpoints a process uses (gRFC A68).
//!
//! Rendezvous hashing: the endpoints with the lowest hash of their address, with a seed of the
//! process. A change of one endpoint changes at most one of the subset.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

/// The `count` items whose addresses hash lowest, in their order; all when there are not more.
pub(crate) fn nearest<T>(
    items: Vec<T>,
    count: usize,
    seed: u64,
    address: impl Fn(&T) -> SocketAddr,
) -> Vec<T> {
    if items.len() <= count {
        return items;
    }
    let score = |item: &T| xxh64(address(item).to_string().as_bytes(), seed);
    let mut scores: Vec<_> = items.iter().map(score).collect();
    let (_, limit, _) = scores.select_nth_unstable(count - 1);
    let limit = *limit;
    let mut kept: Vec<_> = items
        .into_iter()
        .filter(|item| score(item) <= limit)
        .collect();
    // Equal hashes are rare; the first ones stay then.
    kept.truncate(count);
    kept
}
