//! Which shard a thread gets. A process of its own: threads take shards in turn.

use std::{
    collections::HashSet,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use mesh_core::shard::{Padded, Sharded, count};

#[test]
fn threads_that_run_together_have_different_shards_and_keep_them() {
    let sharded = Sharded::<Padded<AtomicUsize>>::default();
    let threads = count() / 2;
    let barrier = Barrier::new(threads);
    let run = || {
        let first = std::ptr::from_ref(sharded.local()) as usize;
        barrier.wait();
        sharded.local().fetch_add(1, Relaxed);
        assert_eq!(first, std::ptr::from_ref(sharded.local()) as usize);
        first
    };
    let addresses = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect::<HashSet<_>>()
    });
    assert_eq!(addresses.len(), threads, "each has its own");
    assert!(addresses.iter().all(|address| address % 128 == 0));
    let sum: usize = sharded.iter().map(|shard| shard.load(Relaxed)).sum();
    assert_eq!(sum, threads);
}
