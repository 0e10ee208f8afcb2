//! What threads do to counters without a lock, in every order that is possible.
//!
//! ```console
//! $ RUSTFLAGS="--cfg mesh_loom" cargo test -p mesh-core --test loom
//! ```
#![cfg(mesh_loom)]

use std::time::{Duration, Instant};

use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
        },
    },
    thread,
};
use mesh_core::{
    config::{CircuitBreakers, RetryBudget},
    health::Circuit,
    outcome::Verdict,
    rcu::Domain,
    stats::{Connectivity, EndpointStats},
};

/// Runs both at a time, and waits for them.
fn both<T: Send + Sync + 'static>(
    shared: &Arc<T>,
    one: impl FnOnce(&T) + Send + 'static,
    other: impl FnOnce(&T) + Send + 'static,
) {
    let theirs = Arc::clone(shared);
    let thread = thread::spawn(move || one(&theirs));
    other(shared);
    thread.join().unwrap();
}

#[test]
fn what_is_in_flight_comes_back_and_every_end_is_counted() {
    loom::model(|| {
        let stats = Arc::new(EndpointStats::default());
        both(
            &stats,
            |stats| {
                stats.begin();
                stats.end_as(Verdict::ServerFailure);
            },
            |stats| {
                stats.begin();
                stats.end_as(Verdict::Success);
            },
        );
        assert_eq!(
            (stats.in_flight(), stats.succeeded(), stats.failed()),
            (0, 1, 1)
        );
    });
}

#[test]
fn failures_of_two_threads_are_two_in_a_row() {
    loom::model(|| {
        let stats = Arc::new(EndpointStats::default());
        let fail = |verdict| {
            move |stats: &EndpointStats| {
                stats.begin();
                stats.end_as(verdict);
            }
        };
        both(
            &stats,
            fail(Verdict::GatewayFailure),
            fail(Verdict::LocalFailure),
        );
        assert_eq!(stats.streaks().any, 2);
        assert_eq!(stats.streaks().any_gateway, 2);
    });
}

#[test]
fn an_ejection_and_a_connection_do_not_undo_each_other() {
    loom::model(|| {
        let stats = Arc::new(EndpointStats::default());
        both(
            &stats,
            |stats| stats.set_ejected(true),
            |stats| stats.set_connectivity(Connectivity::Ready),
        );
        assert!(stats.is_ejected() && !stats.is_ready());
        assert_eq!(stats.connectivity(), Connectivity::Ready);
    });
}

#[test]
fn a_probe_is_taken_once() {
    loom::model(|| {
        let stats = Arc::new(EndpointStats::default());
        stats.set_connectivity(Connectivity::Ready);
        stats.set_ejected(true);
        stats.ask_probe();
        let taken = Arc::new(AtomicU32::new(0));
        let take = |taken: &Arc<AtomicU32>| {
            let taken = Arc::clone(taken);
            move |stats: &EndpointStats| {
                if stats.take_probe() {
                    taken.fetch_add(1, SeqCst);
                }
            }
        };
        both(&stats, take(&taken), take(&taken));
        assert_eq!(taken.load(SeqCst), 1);
        assert!(stats.is_ejected());
    });
}

#[test]
fn a_peak_is_never_lost() {
    let now = Instant::now();
    let decay = Duration::from_secs(10);
    loom::model(move || {
        let stats = Arc::new(EndpointStats::default());
        stats.observe(now);
        let add = move |millis| {
            move |stats: &EndpointStats| {
                let latency = Duration::from_millis(millis);
                stats.observe(now).add_latency(now, latency, decay);
            }
        };
        both(&stats, add(10), add(20));
        let peak = stats.observe(now).latency(Some(now), decay);
        assert!(peak.unwrap() >= Duration::from_millis(19));
    });
}

#[test]
fn a_limit_of_one_is_held_by_one_and_the_permit_comes_back() {
    loom::model(|| {
        let circuit = Arc::new(Circuit::new(1));
        let held = Arc::new(AtomicU32::new(0));
        let hold = |held: &Arc<AtomicU32>| {
            let held = Arc::clone(held);
            move |circuit: &Circuit| {
                if circuit.try_acquire() {
                    assert_eq!(held.fetch_add(1, SeqCst), 0, "one at a time");
                    held.fetch_sub(1, SeqCst);
                    circuit.release();
                }
            }
        };
        both(&circuit, hold(&held), hold(&held));
        assert_eq!(circuit.requests(), 0);
        assert!(circuit.try_acquire(), "no permit is lost");
    });
}

#[test]
fn what_was_earned_is_spent_once() {
    loom::model(|| {
        let budget = RetryBudget {
            percent: 100,
            min_retry_concurrency: 0,
        };
        let limits = CircuitBreakers {
            retry_budget: budget,
            ..CircuitBreakers::default()
        };
        let circuit = Arc::new(Circuit::new(10));
        assert!(circuit.try_acquire(), "earns one");
        let taken = Arc::new(AtomicU32::new(0));
        let take = |taken: &Arc<AtomicU32>| {
            let taken = Arc::clone(taken);
            move |circuit: &Circuit| {
                if circuit.try_acquire_retry(&limits) {
                    taken.fetch_add(1, SeqCst);
                }
            }
        };
        both(&circuit, take(&taken), take(&taken));
        assert_eq!(taken.load(SeqCst), 1);
        assert_eq!(circuit.retries(), 1);
    });
}

/// Two values of which the second replaces the first, as in `Rcu`, and whether each is gone.
struct Cell {
    current: AtomicUsize,
    gone: [AtomicBool; 2],
}

/// Says that a value is gone when it is let go.
struct Value(Arc<Cell>, usize);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.gone[self.1].store(true, Relaxed);
    }
}

#[test]
fn what_a_reading_looks_at_is_not_let_go_and_what_nobody_looks_at_is() {
    loom::model(|| {
        let domain: &'static Domain = Box::leak(Box::new(Domain::default()));
        let cell = Arc::new(Cell {
            current: AtomicUsize::new(0),
            gone: [AtomicBool::new(false), AtomicBool::new(false)],
        });
        let reader = domain.claim();
        let replaced = Arc::clone(&cell);
        both(
            &cell,
            move |cell| {
                assert!(reader.enter());
                let seen = cell.current.load(Acquire);
                assert!(!cell.gone[seen].load(Relaxed), "{seen} is gone");
                reader.leave(domain);
            },
            move |cell| {
                let before = cell.current.swap(1, AcqRel);
                domain.retire(Value(replaced, before));
            },
        );
        assert!(cell.gone[0].load(Relaxed), "nobody looks at it any more");
        assert!(!cell.gone[1].load(Relaxed));
    });
}
