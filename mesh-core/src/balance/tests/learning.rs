//! Policies that learn from how requests end.

use std::time::Instant;

use super::*;
use crate::observed::{LATENCY_METRIC, LoadReport, Observation, REQUESTS_IN_FLIGHT_METRIC};

const MS: Duration = Duration::from_millis(1);

fn observe(
    picker: &Picker,
    endpoints: &[ClusterEndpoint],
    index: usize,
    (now, latency): (Instant, Duration),
    is_success: bool,
    report: Option<&LoadReport>,
) {
    let observation = Observation {
        now,
        latency,
        is_success,
        report,
    };
    picker.observe(endpoints, index, &observation);
}

/// How often each endpoint is picked at a time.
fn count_at(
    picker: &Picker,
    endpoints: &[ClusterEndpoint],
    now: Instant,
    picks: usize,
) -> Vec<usize> {
    let mut rng = SplitMix64::new(4);
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        let mut context = PickContext::new(&mut rng, &[]);
        context.now = Some(now);
        if let PickResult::Endpoint(index) = picker.pick(endpoints, &mut context) {
            counts[index] += 1;
        }
    }
    counts
}

fn utilization(value: f64, rate: f64, errors: f64) -> LoadReport {
    LoadReport {
        application_utilization: value,
        requests_per_second: rate,
        errors_per_second: errors,
        ..LoadReport::default()
    }
}

#[test]
fn reported_utilisation_becomes_weight() {
    let config = ClientSideWrr::default();
    let weight = |report: &LoadReport| report.weight(&config);
    assert_eq!(weight(&utilization(0.5, 100.0, 0.0)), Some(200.0));
    assert_eq!(
        weight(&utilization(0.5, 100.0, 50.0)),
        Some(100.0),
        "errors count"
    );
    let cpu = LoadReport {
        cpu_utilization: 0.25,
        requests_per_second: 10.0,
        ..LoadReport::default()
    };
    assert_eq!(
        weight(&cpu),
        Some(40.0),
        "where the application says nothing"
    );
    for useless in [
        utilization(0.0, 100.0, 0.0),
        utilization(0.5, 0.0, 0.0),
        utilization(f64::NAN, 1.0, 0.0),
        utilization(0.5, f64::NAN, 0.0),
        utilization(0.5, -1.0, 0.0),
        utilization(f64::INFINITY, 1.0, 0.0),
    ] {
        assert_eq!(weight(&useless), None, "{useless:?}");
    }
    let named = ClientSideWrr {
        metric_names_for_computing_utilization: vec![
            "named_metrics.queue.depth".into(),
            "utilization.disk".into(),
            "unknown.x".into(),
            "mem_utilization".into(),
        ],
        ..ClientSideWrr::default()
    };
    let report = LoadReport {
        named_metrics: vec![("queue.depth".into(), 0.3), ("x".into(), 9.0)],
        utilization: vec![("disk".into(), f64::NAN)],
        mem_utilization: 0.8,
        ..utilization(0.1, 80.0, 0.0)
    };
    assert_eq!(report.weight(&named), Some(100.0), "the highest named one");
    assert_eq!(
        utilization(0.5, 10.0, 0.0).weight(&named),
        Some(20.0),
        "none is there"
    );
}

#[test]
fn weights_from_reports_wait_for_the_blackout_and_expire() {
    let endpoints = ready(3);
    let policy = LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr::default());
    let picker = picker(&policy, &endpoints);
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let report = |index, seconds, utilisation: f64| {
        let report = utilization(utilisation, 100.0, 0.0);
        observe(
            &picker,
            &endpoints,
            index,
            (at(seconds), MS),
            true,
            Some(&report),
        );
    };
    let shares = |seconds| {
        assert_eq!(
            picker.refresh(&endpoints, at(seconds)),
            Some(at(seconds + 1))
        );
        let counts = count(&picker, &endpoints, 60_000);
        [counts[0] / 1000, counts[1] / 1000, counts[2] / 1000]
    };
    report(0, 0, 0.2);
    report(1, 0, 0.4);
    assert_eq!(shares(9), [20, 20, 20], "blackout");
    // Weights 500, 250 and the mean of them, 375.
    let weighted = [26..=27, 13..=14, 19..=20];
    for (share, expected) in shares(10).iter().zip(&weighted) {
        assert!(expected.contains(share), "{share} {expected:?}");
    }
    report(0, 100, 0.2);
    report(1, 100, 0.4);
    assert_ne!(shares(279), [20, 20, 20]);
    assert_eq!(shares(280), [20, 20, 20], "expired");
    report(0, 281, 0.2);
    report(1, 281, 0.4);
    assert_eq!(shares(282), [20, 20, 20], "blackout again");
    assert_ne!(shares(291), [20, 20, 20]);
    set(&endpoints[0], Connectivity::Connecting);
    set(&endpoints[0], Connectivity::Ready);
    report(0, 292, 0.2);
    assert_eq!(
        shares(293),
        [20, 20, 20],
        "a new connection starts a blackout; one is not enough"
    );
}

#[test]
fn peak_ewma_rises_at_once_falls_slowly_and_comes_back() {
    let stats = EndpointStats::default();
    let start = Instant::now();
    let decay = Duration::from_secs(10);
    let observed = stats.observe(start);
    let add = |seconds: u64, millis: u64| {
        let now = start + Duration::from_secs(seconds);
        observed.add_latency(now, MS * millis as u32, decay);
    };
    let read = |seconds: u64| {
        let now = start + Duration::from_secs(seconds);
        observed.latency(Some(now), decay).unwrap().as_secs_f64() * 1000.0
    };
    assert_eq!(observed.latency(Some(start), decay), None);
    add(0, 10);
    add(1, 100);
    assert!((read(1) - 100.0).abs() < 0.1);
    add(11, 10);
    let expected = 100.0 / std::f64::consts::E + 10.0 * (1.0 - 1.0 / std::f64::consts::E);
    assert!((read(11) - expected).abs() < 0.1, "{} {expected}", read(11));
    assert!(
        (read(21) - expected / std::f64::consts::E).abs() < 0.1,
        "falls with time"
    );
    // A model that keeps all of it in floating point.
    let mut rng = SplitMix64::new(6);
    let (mut model, mut then) = (read(21), 21);
    add(21, 0);
    model *= 1.0;
    for _ in 0..1_000 {
        let now = then + rng.below(5);
        let sample = rng.below(200);
        add(now, sample);
        let keep = (-((now - then) as f64) / 10.0).exp();
        model = match sample as f64 {
            peak if peak >= model => peak,
            lower => model * keep + lower * (1.0 - keep),
        };
        then = now;
        assert!((read(now) - model).abs() < 0.05, "{} {model}", read(now));
    }
}

#[test]
fn peak_ewma_asks_an_endpoint_that_was_never_measured() {
    let endpoints = ready(2);
    let picker = picker(&LbPolicy::PeakEwma(PeakEwma::default()), &endpoints);
    let now = Instant::now();
    observe(&picker, &endpoints, 0, (now, MS), true, None);
    assert_eq!(count_at(&picker, &endpoints, now, 10), [0, 10]);
    // Another request does not follow before the first has come back.
    endpoints[1].stats.begin();
    assert_eq!(count_at(&picker, &endpoints, now, 10), [10, 0]);
}

#[test]
fn peak_ewma_avoids_the_slow_and_the_failing() {
    for is_success in [true, false] {
        let endpoints = ready(10);
        let picker = picker(&LbPolicy::PeakEwma(PeakEwma::default()), &endpoints);
        let now = Instant::now();
        for index in 0..10 {
            let slow = index == 0 && is_success;
            let latency = if slow { MS * 100 } else { MS };
            observe(
                &picker,
                &endpoints,
                index,
                (now, latency),
                is_success || index > 0,
                None,
            );
        }
        let counts = count_at(&picker, &endpoints, now, 10_000);
        assert_eq!(counts[0], 0, "{counts:?}");
        let later = now + Duration::from_secs(100);
        for index in 1..10 {
            observe(&picker, &endpoints, index, (later, MS), true, None);
        }
        let counts = count_at(&picker, &endpoints, later, 10_000);
        assert!(counts[0] > 0, "it is tried again: {counts:?}");
    }
}

fn load(in_flight: f64, latency: Duration) -> LoadReport {
    LoadReport {
        named_metrics: vec![
            (REQUESTS_IN_FLIGHT_METRIC.into(), in_flight),
            (LATENCY_METRIC.into(), latency.as_secs_f64()),
        ],
        ..LoadReport::default()
    }
}

#[test]
fn prequal_takes_the_fastest_that_is_not_hot() {
    let endpoints = ready(4);
    let policy = Prequal {
        choice_count: 4,
        rif_quantile: 0.7,
        ..Prequal::default()
    };
    let picker = picker(&LbPolicy::Prequal(policy), &endpoints);
    let now = Instant::now();
    let report = |index: usize, in_flight, millis| {
        let report = load(in_flight, MS * millis);
        observe(&picker, &endpoints, index, (now, MS), true, Some(&report));
    };
    // The fastest one is hot: more in flight than seven tenths of the reports say.
    for _ in 0..16 {
        report(0, 9.0, 1);
        report(1, 2.0, 5);
        report(2, 3.0, 3);
        report(3, 1.0, 8);
    }
    assert_eq!(count_at(&picker, &endpoints, now, 100), [0, 0, 100, 0]);
    // Requests sent since the report count.
    for _ in 0..8 {
        endpoints[2].stats.begin();
    }
    assert_eq!(count_at(&picker, &endpoints, now, 100), [0, 100, 0, 0]);
    // All are hot: the fewest in flight.
    for endpoint in &endpoints[..] {
        for _ in 0..20 {
            endpoint.stats.begin();
        }
    }
    assert_eq!(count_at(&picker, &endpoints, now, 100), [0, 0, 0, 100]);
}

#[test]
fn prequal_forgets_old_reports_and_tries_the_unknown_one_at_a_time() {
    let endpoints = ready(2);
    let picker = picker(&LbPolicy::Prequal(Prequal::default()), &endpoints);
    let now = Instant::now();
    let report = load(1.0, MS * 100);
    observe(&picker, &endpoints, 0, (now, MS * 10), true, Some(&report));
    assert_eq!(
        count_at(&picker, &endpoints, now, 10),
        [0, 10],
        "nothing is known of it"
    );
    endpoints[1].stats.begin();
    assert_eq!(
        count_at(&picker, &endpoints, now, 10),
        [10, 0],
        "it is being tried"
    );
    observe(&picker, &endpoints, 1, (now, MS * 20), true, None);
    assert_eq!(
        count_at(&picker, &endpoints, now, 10),
        [0, 10],
        "20 ms against 100 ms, as reported"
    );
    let later = now + Duration::from_secs(2);
    assert_eq!(
        count_at(&picker, &endpoints, later, 10),
        [10, 0],
        "against 10 ms, as measured here"
    );
}

#[test]
fn prequal_avoids_what_fails_even_when_all_others_are_hot() {
    let endpoints = ready(3);
    let picker = picker(&LbPolicy::Prequal(Prequal::default()), &endpoints);
    let now = Instant::now();
    for _ in 0..8 {
        for index in 0..3 {
            let report = load(1.0, MS * 5);
            observe(
                &picker,
                &endpoints,
                index,
                (now, MS),
                index > 0,
                Some(&report),
            );
        }
    }
    for endpoint in &endpoints[1..] {
        for _ in 0..20 {
            endpoint.stats.begin();
        }
    }
    assert_eq!(count_at(&picker, &endpoints, now, 100)[0], 0);
}
