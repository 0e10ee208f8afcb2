//! Who reads, and what waits for them.
//!
//! Each thread has a [`Reader`]: a number that is odd while the thread reads. Whoever has replaced a
//! value notes which numbers are odd; the value is let go when each of them has changed. Where that is
//! not so at once, the last of these readers does it when it leaves.

use std::sync::{
    PoisonError,
    atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::barrier;
use crate::{
    shard::Padded,
    sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard},
};

/// Where a thread says that it reads.
#[derive(Debug)]
pub struct Reader {
    /// Odd while it reads; only its thread writes it.
    section: AtomicU64,
    is_asymmetric: bool,
}

impl Reader {
    /// Begins a reading; `false` inside of another.
    ///
    /// The number becomes odd before anything is looked at, and between both is a [light
    /// barrier](barrier::light); whoever replaces a value has a [heavy one](barrier::heavy) between
    /// that and looking at the numbers. So either they see that the thread reads, and wait for it, or
    /// it sees their new value, and nothing older.
    #[inline]
    pub fn enter(&self) -> bool {
        let section = self.section.load(Relaxed);
        if section & 1 == 1 {
            return false;
        }
        self.section.store(section + 1, Relaxed);
        barrier::light(self.is_asymmetric);
        true
    }

    /// Ends a reading. Likewise: either those who wait see that it has ended, or it sees that somebody
    /// waits.
    #[inline]
    pub fn leave(&self, domain: &Domain) {
        let section = self.section.load(Relaxed);
        self.section.store(section + 1, Release);
        barrier::light(self.is_asymmetric);
        if domain.waiting.load(Relaxed) != 0 {
            domain.collect();
        }
    }
}

/// All readers, and what waits for some of them.
#[derive(Debug)]
pub struct Domain {
    readers: Mutex<Readers>,
    retired: Mutex<Vec<Retired>>,
    /// Values that wait, or are about to.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Readers {
    all: Vec<&'static Padded<Reader>>,
    /// Those whose threads have ended: there are never more than there were threads at a time.
    free: Vec<&'static Padded<Reader>>,
}

/// What nobody can find any more.
struct Retired {
    value: Box<dyn Send>,
    /// Who may still look at it, and the number of that reading.
    readings: Vec<(&'static Padded<Reader>, u64)>,
}

impl std::fmt::Debug for Retired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let readings = &self.readings;
        f.debug_struct("Retired")
            .field("readings", readings)
            .finish_non_exhaustive()
    }
}

/// One without readers.
#[cfg(mesh_loom)]
impl Default for Domain {
    fn default() -> Self {
        let (all, free) = (Vec::new(), Vec::new());
        Self {
            readers: Mutex::new(Readers { all, free }),
            retired: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Domain {
    /// One without readers.
    #[cfg(not(mesh_loom))]
    pub(super) const fn new() -> Self {
        Self {
            readers: Mutex::new(Readers {
                all: Vec::new(),
                free: Vec::new(),
            }),
            retired: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A reader for a thread.
    pub fn claim(&self) -> &'static Padded<Reader> {
        let mut readers = self.readers();
        if let Some(reader) = readers.free.pop() {
            return reader;
        }
        let reader = Box::leak(Box::new(Padded(Reader {
            section: AtomicU64::new(0),
            is_asymmetric: barrier::is_asymmetric(),
        })));
        readers.all.push(reader);
        reader
    }

    /// Gives a reader back, outside of a reading.
    pub fn give_back(&self, reader: &'static Padded<Reader>) {
        self.readers().free.push(reader);
    }

    /// Lets go of `value`, which nobody can find any more, when no reading goes on that may look at it:
    /// now, if there is none.
    pub fn retire(&self, value: impl Send + 'static) {
        // Before the barrier: whoever is seen to read sees, when leaving, that somebody waits.
        self.waiting.fetch_add(1, AcqRel);
        if !barrier::heavy() {
            // Nothing is known of other threads: it is kept for ever.
            std::mem::forget(value);
            self.waiting.fetch_sub(1, AcqRel);
            return;
        }
        let readings = self.readings();
        if readings.is_empty() {
            self.waiting.fetch_sub(1, AcqRel);
            return;
        }
        let value = Box::new(value);
        self.retired().push(Retired { value, readings });
        // Whoever left before it was there has found nothing.
        self.collect();
    }

    /// Who reads now.
    fn readings(&self) -> Vec<(&'static Padded<Reader>, u64)> {
        let readers = self.readers();
        let sections = readers
            .all
            .iter()
            .map(|reader| (*reader, reader.section.load(Acquire)));
        sections.filter(|(_, section)| section & 1 == 1).collect()
    }

    /// Lets go of what nobody looks at any more.
    #[cold]
    fn collect(&self) {
        let mut retired = self.retired();
        for one in &mut *retired {
            one.readings
                .retain(|(reader, section)| reader.section.load(Acquire) == *section);
        }
        let free: Vec<_> = retired
            .extract_if(.., |one| one.readings.is_empty())
            .collect();
        drop(retired);
        self.waiting.fetch_sub(free.len(), AcqRel);
        // Without the lock: what is let go may replace something itself.
        for one in free {
            drop(one.value);
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Retired>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
