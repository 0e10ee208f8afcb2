//! The pointer.

#![allow(unsafe_code)]

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{
            AtomicPtr,
            Ordering::{AcqRel, Acquire},
        },
    },
};

use super::thread::{Reading, read, retire};

/// A shared value that can be replaced while others look at it.
pub struct Rcu<T: Send + Sync + 'static> {
    /// From [`Arc::into_raw`]; the cell owns one reference of it.
    current: AtomicPtr<T>,
    owns: PhantomData<Arc<T>>,
}

impl<T: Send + Sync + 'static> Rcu<T> {
    /// A cell that holds `value`.
    pub fn new(value: Arc<T>) -> Self {
        Self {
            current: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
            owns: PhantomData,
        }
    }

    /// What it holds, without taking a reference.
    #[inline]
    pub fn get<'r>(&'r self, _: &'r Reading) -> &'r T {
        let current = self.current.load(Acquire);
        // SAFETY: `current` is from `Arc::into_raw`. The cell's reference to it is given up by `swap`
        // and by `drop` alone. Whoever calls `swap` retires what it returns, which is let go when all
        // readings have ended that began before: this one began before `current` was loaded
        // (`Reader::enter` says why that is enough) and outlives `'r`. `drop` has the cell to itself,
        // which is after `'r`.
        unsafe { &*current }
    }

    /// What it holds, to be kept.
    #[inline]
    pub fn get_full(&self, _: &Reading) -> Arc<T> {
        let current = self.current.load(Acquire);
        // SAFETY: as in `get`, the cell's reference is there during the reading. So the count is not
        // zero, and may be raised for another one.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// What it holds, to be kept, outside of a reading.
    #[inline]
    pub fn load(&self) -> Arc<T> {
        read(|reading| self.get_full(reading))
    }

    /// Holds `value` from now on; returns what was there.
    pub fn replace(&self, value: Arc<T>) -> Arc<T> {
        let before = self.swap(value);
        let kept = Arc::clone(&before);
        retire(before);
        kept
    }

    /// Replaces what many cells hold: cheaper than one after the other.
    pub fn replace_all<'c>(cells: impl Iterator<Item = (&'c Self, Arc<T>)>) {
        let before: Vec<_> = cells.map(|(cell, value)| cell.swap(value)).collect();
        retire(before);
    }

    /// What was there may still be looked at: it must be retired.
    fn swap(&self, value: Arc<T>) -> Arc<T> {
        let value = Arc::into_raw(value).cast_mut();
        let before = self.current.swap(value, AcqRel);
        // SAFETY: it is from `Arc::into_raw`, and the cell's reference to it becomes this one: nobody
        // can find it there any more.
        unsafe { Arc::from_raw(before) }
    }
}

impl<T: Send + Sync + 'static> Drop for Rcu<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: it is from `Arc::into_raw`, and the cell's reference to it is used for the last time.
        drop(unsafe { Arc::from_raw(current) });
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> fmt::Debug for Rcu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rcu").field(&self.load()).finish()
    }
}
