//! The readers of this process' threads.

use std::{cell::Cell, marker::PhantomData};

use super::domain::{Domain, Reader};
use crate::shard::Padded;

static DOMAIN: Domain = Domain::new();

thread_local! {
    /// Has no destructor, which would be asked for at each use.
    static READER: Cell<Option<&'static Padded<Reader>>> = const { Cell::new(None) };
    static OWNER: Owner = const { Owner };
}

/// Gives the thread's reader back when the thread ends.
struct Owner;

impl Drop for Owner {
    fn drop(&mut self) {
        // Destructors that run later may still read, with one that is lent to them.
        if let Some(reader) = READER.take() {
            DOMAIN.give_back(reader);
        }
    }
}

/// A reading of the current thread: nothing that it looks at is let go meanwhile.
#[derive(Debug)]
pub struct Reading {
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

/// Runs `f` in a reading. One inside of another is part of it.
#[inline]
pub fn read<R>(f: impl FnOnce(&Reading) -> R) -> R {
    let (reader, is_lent) = match READER.get() {
        Some(reader) => (reader, false),
        None => settle(),
    };
    // Ends also when `f` panics.
    let _end = End {
        reader: reader.enter().then_some(reader),
        is_lent,
    };
    let thread = PhantomData;
    f(&Reading { thread })
}

struct End {
    /// `None` inside of another reading.
    reader: Option<&'static Padded<Reader>>,
    is_lent: bool,
}

impl Drop for End {
    #[inline]
    fn drop(&mut self) {
        if let Some(reader) = self.reader {
            reader.leave(&DOMAIN);
            if self.is_lent {
                DOMAIN.give_back(reader);
            }
        }
    }
}

/// Lets go of `value`, which nobody can find any more, when no reading can look at it any more.
pub(super) fn retire(value: impl Send + 'static) {
    DOMAIN.retire(value);
}

/// A reader for the current thread, and whether it is lent for one reading: a thread that is ending
/// keeps none.
#[cold]
fn settle() -> (&'static Padded<Reader>, bool) {
    let reader = DOMAIN.claim();
    let is_kept = OWNER.try_with(|_| READER.set(Some(reader))).is_ok();
    (reader, !is_kept)
}
