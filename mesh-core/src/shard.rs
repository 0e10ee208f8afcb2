//! What each thread has for itself, so that threads do not slow each other.
//!
//! Stage: counters and pointers on the request path. There are more shards than cores, and most of
//! them belong to one thread each, from its first use to its end: on a machine that runs one request
//! thread for each core no two of them share one. Threads that come when those are taken share the
//! rest: everything is as correct as before and a little slower.

use std::{
    cell::Cell,
    fmt,
    marker::PhantomData,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
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

/// How many shards belong to one thread at a time; the others are shared.
fn owned_count() -> usize {
    count() - (count() / 4).max(1)
}

/// Where a thread has its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u32);

impl Place {
    const UNKNOWN: Self = Self(u32::MAX);
    const IS_OWN: u32 = 1 << 16;

    fn own(index: usize) -> Self {
        Self(index as u32 | Self::IS_OWN)
    }

    /// One of those for everybody, in turn.
    fn shared() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let shared = count() - owned_count();
        Self((owned_count() + NEXT.fetch_add(1, Relaxed) % shared) as u32)
    }

    /// That of the current thread.
    #[inline]
    fn current() -> Self {
        match PLACE.get() {
            Self::UNKNOWN => Self::settle(),
            place => place,
        }
    }

    #[inline]
    fn index(self) -> usize {
        (self.0 & !Self::IS_OWN) as usize
    }

    #[inline]
    fn is_own(self) -> bool {
        self.0 & Self::IS_OWN != 0
    }

    #[cold]
    fn settle() -> Self {
        let claimed = OWNER.try_with(|owner| *owner.place.get_or_init(Owner::claim));
        // A thread that is ending owns nothing any more.
        let place = claimed.ok().flatten().unwrap_or_else(Self::shared);
        PLACE.set(place);
        place
    }
}

thread_local! {
    /// Has no destructor, which would be asked for at each use.
    static PLACE: Cell<Place> = const { Cell::new(Place::UNKNOWN) };
    static OWNER: Owner = const { Owner { place: std::cell::OnceCell::new() } };
}

/// The shards that have an owner, as bits.
static OWNED: AtomicU32 = AtomicU32::new(0);

/// Gives the thread's own shard back when the thread ends.
struct Owner {
    place: std::cell::OnceCell<Option<Place>>,
}

impl Owner {
    /// The first shard without an owner. What its last owner wrote is seen by the next one.
    fn claim() -> Option<Place> {
        let free = |owned: u32| {
            let index = (!owned).trailing_zeros() as usize;
            (index < owned_count()).then_some(index)
        };
        let with_first = |owned| free(owned).map(|index| owned | 1 << index);
        let before = OWNED.fetch_update(Acquire, Relaxed, with_first).ok()?;
        free(before).map(Place::own)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(Some(place)) = self.place.get() {
            // Destructors that run later may still count.
            PLACE.set(Place::shared());
            OWNED.fetch_and(!(1 << place.index()), Release);
        }
    }
}

/// Adds to the counters of the current thread's shard. Where the thread is the only one that writes
/// them, as nearly all are, adding is a load and a store instead of an atomic operation, which costs
/// some twenty times as much even when nobody else wants the cache line.
#[derive(Clone, Copy, Debug)]
pub struct Adder {
    is_alone: bool,
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Adder {
    /// Adds `n` to a counter of the shard that came with this adder.
    #[inline]
    pub fn add(self, counter: &AtomicU64, n: u64) {
        if self.is_alone {
            counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
        } else {
            counter.fetch_add(n, Relaxed);
        }
    }
}

/// A value for each shard. Clones share the values.
pub struct Sharded<T> {
    shards: Arc<[T]>,
}

impl<T> Clone for Sharded<T> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
        }
    }
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
        self.at(Place::current())
    }

    /// The current thread's, with what adds to its counters: all writes to them must go through it.
    #[inline]
    pub fn counters(&self) -> (&T, Adder) {
        let place = Place::current();
        let adder = Adder {
            is_alone: place.is_own(),
            thread: PhantomData,
        };
        (self.at(place), adder)
    }

    #[inline]
    fn at(&self, place: Place) -> &T {
        // The count is a power of two.
        &self.shards[place.index() & (self.shards.len() - 1)]
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
        f.debug_list().entries(&*self.shards).finish()
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn no_count_is_lost_however_many_threads_come_and_go() {
        let counters = Sharded::<Padded<AtomicU64>>::default();
        let threads = 3 * count();
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        for _ in 0..1_000 {
                            let (counter, adder) = counters.counters();
                            adder.add(counter, 1);
                        }
                    });
                }
            });
        }
        let sum: u64 = counters.iter().map(|counter| counter.load(Relaxed)).sum();
        assert_eq!(sum, 20 * threads as u64 * 1_000);
    }

    #[test]
    fn threads_of_the_same_time_never_own_one_shard_together() {
        let threads = 2 * count();
        let all_have_settled = Barrier::new(threads);
        let mut owned: Vec<_> = std::thread::scope(|scope| {
            let settle = || {
                let place = Place::current();
                all_have_settled.wait();
                place
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(settle)).collect();
            let places = running.into_iter().map(|thread| thread.join().unwrap());
            places.filter(|place| place.is_own()).collect()
        });
        let all = owned.len();
        assert!(all <= owned_count(), "{all}");
        owned.sort_by_key(|place| place.0);
        owned.dedup();
        assert_eq!(owned.len(), all);
    }
}
