//! The gradient controller in simulated time, against a server with a fixed capacity.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

fn controller(change: impl FnOnce(&mut AdaptiveConcurrency)) -> Arc<ConcurrencyController> {
    let mut config =
        AdaptiveConcurrency::new(Duration::from_millis(100), Duration::from_secs(3600));
    change(&mut config);
    Arc::new(ConcurrencyController::new(&Arc::new(config), 1))
}

/// Offers a request each `gap`; the server does `parallel` at a time, each in 10 ms, and queues the
/// others. Returns how many were refused.
fn offer(
    controller: &Arc<ConcurrencyController>,
    from: Instant,
    gap: Duration,
    parallel: usize,
    count: u32,
) -> (Instant, u32) {
    const WORK: Duration = Duration::from_millis(10);
    let mut ends: BinaryHeap<Reverse<Instant>> = BinaryHeap::new();
    let mut running: Vec<(Instant, ConcurrencyPermit)> = Vec::new();
    let mut refused = 0;
    let mut now = from;
    for _ in 0..count {
        now += gap;
        let (over, rest) = running.into_iter().partition(|(end, _)| *end <= now);
        running = rest;
        let mut over: Vec<(Instant, ConcurrencyPermit)> = over;
        over.sort_by_key(|(end, _)| *end);
        over.into_iter()
            .for_each(|(end, permit)| permit.finish(end));
        match controller.admit(now) {
            Ok(permit) => {
                while ends.len() >= parallel && ends.peek().is_some_and(|end| end.0 <= now) {
                    ends.pop();
                }
                let begin = match ends.len() >= parallel {
                    true => ends.pop().map_or(now, |end| end.0),
                    false => now,
                };
                ends.push(Reverse(begin + WORK));
                running.push((begin + WORK, permit));
            }
            Err(answer) => {
                assert_eq!(answer.status.as_u16(), 503);
                refused += 1;
            }
        }
    }
    (now, refused)
}

#[test]
fn the_limit_starts_at_its_minimum_until_the_latency_is_known() {
    let controller = controller(|config| config.min_rtt_request_count = 5);
    let now = Instant::now();
    assert!(controller.is_measuring());
    let permits: Vec<_> = (0..3)
        .map(|_| controller.admit(now).expect("below"))
        .collect();
    assert!(controller.admit(now).is_err());
    assert_eq!(controller.in_flight(), 3);
    // A request that never ended is no sample, and gives its place back.
    drop(permits);
    assert_eq!(controller.in_flight(), 0);
    for _ in 0..5 {
        assert!(controller.is_measuring());
        let permit = controller.admit(now).expect("below");
        permit.finish(now + Duration::from_millis(10));
    }
    assert!(!controller.is_measuring());
}

#[test]
fn it_grows_while_the_latency_stays_and_stops_at_the_maximum() {
    let controller = controller(|config| config.max_concurrency_limit = 64);
    let gap = Duration::from_millis(1);
    let (_, refused) = offer(&controller, Instant::now(), gap, 1000, 10_000);
    assert_eq!(controller.limit(), 64);
    assert!(
        refused < 2000,
        "{refused} refused, most of them in the beginning"
    );
}

#[test]
fn under_overload_it_keeps_the_queue_short() {
    let controller = controller(|_| {});
    // Twice what eight workers can do: with no limit the queue would grow without bound.
    let gap = Duration::from_micros(625);
    let (_, refused) = offer(&controller, Instant::now(), gap, 8, 40_000);
    let limit = controller.limit();
    assert!((8..40).contains(&limit), "limit {limit}");
    let share = f64::from(refused) / 40_000.0;
    assert!((0.4..0.65).contains(&share), "{share} refused");
}

#[test]
fn the_latency_is_measured_again_after_the_interval_and_its_jitter() {
    let interval = Duration::from_secs(30);
    let controller = controller(|config| config.min_rtt_interval = interval);
    let gap = Duration::from_millis(5);
    let (mut now, _) = offer(&controller, Instant::now(), gap, 1000, 1000);
    assert!(!controller.is_measuring());
    let start = now;
    let highest = controller.limit();
    while !controller.is_measuring() {
        (now, _) = offer(&controller, now, gap, 1000, 1);
        assert!(now < start + interval.mul_f64(1.15), "no measurement");
    }
    assert!(now - start > interval.mul_f64(0.8));
    assert_eq!(controller.limit(), 3);
    (_, _) = offer(&controller, now, gap, 1000, 500);
    assert!(!controller.is_measuring());
    assert!(
        controller.limit() >= highest.min(10),
        "the old limit comes back"
    );
}

#[test]
fn at_the_minimum_for_long_it_measures_anew() {
    let controller = controller(|_| {});
    let (now, _) = offer(
        &controller,
        Instant::now(),
        Duration::from_millis(5),
        1000,
        1000,
    );
    // The server has become slow for good: the old latency is wrong.
    let mut now = now;
    let mut measured = false;
    for _ in 0..20_000 {
        if let Ok(permit) = controller.admit(now) {
            permit.finish(now + Duration::from_millis(200));
        }
        now += Duration::from_millis(5);
        measured |= controller.is_measuring();
        if measured {
            break;
        }
    }
    assert!(measured);
}
