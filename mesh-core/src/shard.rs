//! What each thread has for itself, so that threads do not slow each other.
//!
//! Stage: counters and pointers on the request path. Threads take shards in turn, and there are
//! more shards than cores: on a machine that runs one request thread for each core no two of them
//! share one. When they do, everything is as correct as before and a little slower.

use std::{
    fmt,
    ops::Deref,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Most shards of a value: bounds the memory on machines with many cores.
pub const SHARDS_MAX: usize = 32;

/// How many shards a value has: a power of two, twice the cores and at most [`SHARDS_MAX`].
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores * 2).next_power_of_two().min(SHARDS_MAX)
    })
}

/// The shard of the current thread, below [`SHARDS_MAX`] and not below [`count`]: mask it.
#[inline]
fn index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: usize = NEXT.fetch_add(1, Relaxed);
    }
    // A thread that is ending has no index any more.
    INDEX.try_with(|index| *index).unwrap_or(0)
}

/// A value for each shard.
pub struct Sharded<T> {
    shards: Box<[T]>,
}

impl<T> Sharded<T> {
    /// Makes the value of each shard.
    pub fn new(make: impl FnMut() -> T) -> Self {
        let shards = std::iter::repeat_with(make).take(count()).collect();
        Self { shards }
    }

    /// The current thread's.
    #[inline]
    pub fn local(&self) -> &T {
        // The count is a power of two.
        &self.shards[index() & (self.shards.len() - 1)]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter()
    }
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

impl<T: fmt::Debug> fmt::Debug for Sharded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.shards).finish()
    }
}

/// A value on cache lines of its own; two, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
