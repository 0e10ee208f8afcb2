//! What is replaced stays as long as somebody looks at it, and no longer.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    mpsc,
};

use super::{Rcu, read};

/// One test at a time: what one lets go waits for the readings of all.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts those that are there.
struct Held {
    number: usize,
    live: Arc<AtomicUsize>,
}

impl Held {
    fn new(number: usize, live: &Arc<AtomicUsize>) -> Arc<Self> {
        live.fetch_add(1, SeqCst);
        let live = Arc::clone(live);
        Arc::new(Self { number, live })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whoever looks at it later sees that it is gone.
        self.number = usize::MAX;
        self.live.fetch_sub(1, SeqCst);
    }
}

#[test]
fn what_is_replaced_goes_at_once_when_nobody_reads() {
    let _alone = alone();
    let live = Arc::default();
    let cell = Rcu::new(Held::new(1, &live));
    drop(cell.replace(Held::new(2, &live)));
    assert_eq!((live.load(SeqCst), cell.load().number), (1, 2));
    drop(cell);
    assert_eq!(live.load(SeqCst), 0);
}

#[test]
fn what_is_looked_at_stays_until_the_reading_ends_and_goes_with_it() {
    let _alone = alone();
    let live = Arc::default();
    let cell = Rcu::new(Held::new(1, &live));
    read(|outer| {
        let seen = cell.get(outer);
        drop(cell.replace(Held::new(2, &live)));
        // One inside of another does not end it.
        assert_eq!(read(|inner| cell.get(inner).number), 2);
        assert_eq!((seen.number, live.load(SeqCst)), (1, 2));
    });
    assert_eq!(live.load(SeqCst), 1);
}

#[test]
fn another_threads_reading_is_waited_for_and_its_end_lets_go() {
    let _alone = alone();
    let live = Arc::default();
    let cell = Rcu::new(Held::new(1, &live));
    let (reads, is_reading) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let (cell, live) = (&cell, &live);
        let thread = scope.spawn(move || {
            read(|reading| {
                let seen = cell.get(reading);
                reads.send(()).unwrap();
                may_go_on.recv().unwrap();
                assert_eq!(seen.number, 1);
            });
            live.load(SeqCst)
        });
        is_reading.recv().unwrap();
        drop(cell.replace(Held::new(2, live)));
        assert_eq!(live.load(SeqCst), 2, "somebody looks at it");
        go_on.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), 1, "who leaves last lets it go");
    });
}

#[test]
fn a_reading_that_panics_ends() {
    let _alone = alone();
    let live = Arc::default();
    let cell = Rcu::new(Held::new(1, &live));
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        read(|_| panic!("in a reading"));
    }));
    assert!(broken.is_err());
    drop(cell.replace(Held::new(2, &live)));
    assert_eq!(live.load(SeqCst), 1);
}

#[test]
fn readers_never_see_what_is_gone_however_often_it_is_replaced() {
    let _alone = alone();
    let rounds = if cfg!(miri) { 200 } else { 20_000 };
    let live = Arc::default();
    let cells: Vec<_> = (0..3).map(|_| Rcu::new(Held::new(0, &live))).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !is_over.load(Relaxed) {
                    read(|reading| {
                        for cell in &cells {
                            let held = cell.get(reading);
                            assert_ne!(held.number, usize::MAX, "it is gone");
                        }
                        let first = cells[0].get_full(reading).number;
                        assert!(first >= last, "something older");
                        last = first;
                    });
                }
            });
        }
        for round in 1..=rounds {
            Rcu::replace_all(cells.iter().map(|cell| (cell, Held::new(round, &live))));
        }
        is_over.store(true, Relaxed);
    });
    assert_eq!(live.load(SeqCst), cells.len());
}

#[test]
fn destructors_of_threads_may_read() {
    let _alone = alone();
    struct ReadsLate(Arc<Rcu<usize>>);
    impl Drop for ReadsLate {
        fn drop(&mut self) {
            assert_eq!(read(|reading| *self.0.get(reading)), 7);
        }
    }
    thread_local! {
        static LATE: std::cell::OnceCell<ReadsLate> = const { std::cell::OnceCell::new() };
    }
    let cell = Arc::new(Rcu::new(Arc::new(7)));
    let theirs = Arc::clone(&cell);
    std::thread::spawn(move || {
        // Its destructor runs after that of the thread's reader.
        LATE.with(|late| _ = late.set(ReadsLate(theirs)));
        read(|_| ());
    })
    .join()
    .unwrap();
    assert_eq!(*cell.load(), 7);
}
