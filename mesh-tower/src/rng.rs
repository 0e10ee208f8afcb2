//! One generator per thread, so that requests of two threads share nothing.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

use mesh_core::rng::{Rng as _, SplitMix64};

thread_local! {
    static SEED: Cell<u64> = Cell::new(RandomState::new().hash_one("mesh"));
}

/// A generator for one request.
#[inline]
pub(crate) fn fork() -> SplitMix64 {
    SEED.with(|seed| {
        let mut thread = SplitMix64::new(seed.get());
        let fork = thread.next_u64();
        seed.set(seed.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        SplitMix64::new(fork)
    })
}
