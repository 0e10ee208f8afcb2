//! Which few of many endpoints a process uses.
//!
//! Random ones (gRFC A68) by rendezvous hashing: the endpoints with the lowest hash of their address, with a
//! seed of the process. A change of one endpoint changes at most one of the subset.
//!
//! Or a deterministic aperture (Finagle): endpoints are on a ring at equal distances, in the order of the
//! hashes of their addresses, and so are clients, in their own order; a client uses the endpoints from
//! its place on. Each endpoint has as many clients as any other, or one more. A change of one endpoint
//! changes at most two of a subset, beside one that it grows or shrinks by; a change of the number of
//! clients moves all of them a little.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use crate::config::ClientPosition;

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
    let score = |item: &T| hash(address(item), seed);
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

/// The `count` items from the client's place on the ring on, in their order; more where clients are too
/// few for every item to have one.
pub(crate) fn aperture<T>(
    items: Vec<T>,
    count: usize,
    client: ClientPosition,
    address: impl Fn(&T) -> SocketAddr,
) -> Vec<T> {
    let all = items.len();
    let clients = client.count.max(1) as usize;
    let count = count.max(all.div_ceil(clients));
    if all <= count {
        return items;
    }
    let places = items.iter().enumerate().map(|(index, item)| {
        let address = address(item);
        (hash(address, 0), address, index)
    });
    let mut ring: Vec<_> = places.collect();
    ring.sort_unstable();
    // Below `all`, as the index is below the number of clients.
    let start = client.index as usize % clients * all / clients;
    let mut is_used = vec![false; all];
    for (_, _, index) in ring.iter().cycle().skip(start).take(count) {
        is_used[*index] = true;
    }
    let mut is_used = is_used.into_iter();
    let mut items = items;
    items.retain(|_| is_used.next().unwrap_or(false));
    items
}

fn hash(address: SocketAddr, seed: u64) -> u64 {
    xxh64(address.to_string().as_bytes(), seed)
}
