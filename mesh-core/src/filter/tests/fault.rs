//! Injected faults (gRFC A33).

use super::*;

fn fault(fault: Fault) -> Filters {
    compiled(&[HttpFilter::new("f", FilterConfig::Fault(Arc::new(fault)))])
}

fn abort(abort: Abort, share: u32) -> Option<FaultAbort> {
    Some(FaultAbort {
        abort,
        percentage: percent(share),
        denominator: 100,
    })
}

fn delay(delay: Delay, share: u32) -> Option<FaultDelay> {
    Some(FaultDelay {
        delay,
        percentage: percent(share),
        denominator: 100,
    })
}

/// Shares of delayed and of aborted requests.
fn shares(filters: &[Filter], head: &Head) -> [f64; 3] {
    let mut rng = SplitMix64::new(3);
    let (mut delayed, mut aborted, mut both) = (0, 0, 0);
    const N: i32 = 20_000;
    for _ in 0..N {
        let (delay, answer, _) = run(filters, head, Instant::now(), &mut rng);
        delayed += i32::from(!delay.is_zero());
        aborted += i32::from(answer.is_some());
        both += i32::from(!delay.is_zero() && answer.is_some());
    }
    [delayed, aborted, both].map(|count| f64::from(count) / f64::from(N))
}

#[test]
fn delays_and_aborts_are_drawn_on_their_own() {
    let filters = fault(Fault {
        delay: delay(Delay::Fixed(Duration::from_secs(1)), 30),
        abort: abort(Abort::Http(503), 50),
        ..Fault::default()
    });
    let got = shares(&filters, &Head::new(&[]));
    for (got, expected) in got.into_iter().zip([0.3, 0.5, 0.15]) {
        assert!((got - expected).abs() < 0.02, "{got} is not {expected}");
    }
}

#[test]
fn headers_ask_for_faults_only_where_the_filter_lets_them() {
    let by_header = fault(Fault {
        delay: delay(Delay::Header, 100),
        abort: abort(Abort::Header, 100),
        ..Fault::default()
    });
    let fixed = fault(Fault {
        delay: delay(Delay::Fixed(Duration::from_millis(7)), 100),
        ..Fault::default()
    });
    let (now, mut rng) = (Instant::now(), SplitMix64::new(1));
    let mut got = |filters: &[Filter], headers: &[(&'static str, &str)]| {
        let (delay, answer, _) = run(filters, &Head::new(headers), now, &mut rng);
        let answer = answer.map(|answer| (answer.status.as_u16(), answer.grpc_status));
        (delay.as_millis(), answer)
    };
    let (delay, http, grpc) = (
        "x-envoy-fault-delay-request",
        "x-envoy-fault-abort-request",
        "x-envoy-fault-abort-grpc-request",
    );
    assert_eq!(got(&by_header, &[]), (0, None));
    assert_eq!(got(&by_header, &[(delay, "250")]), (250, None));
    assert_eq!(got(&by_header, &[(http, "418")]), (0, Some((418, None))));
    assert_eq!(got(&by_header, &[(grpc, "8")]), (0, Some((429, Some(8)))));
    // The HTTP status wins.
    assert_eq!(
        got(&by_header, &[(grpc, "8"), (http, "418")]),
        (0, Some((418, None)))
    );
    // What cannot be read counts as missing.
    for bad in ["", "x", "-1", "199", "600", "99999999999999999999"] {
        assert_eq!(got(&by_header, &[(http, bad)]).1, None, "{bad:?}");
        assert_eq!(
            got(&by_header, &[(http, bad), (grpc, "5")]).1,
            Some((404, Some(5)))
        );
    }
    assert_eq!(got(&by_header, &[(grpc, "17")]).1, None);
    assert_eq!(got(&fixed, &[(delay, "250"), (http, "418")]), (7, None));
}

#[test]
fn a_percentage_in_a_header_only_lowers_the_configured_one() {
    let filters = fault(Fault {
        abort: abort(Abort::Header, 50),
        ..Fault::default()
    });
    for (asked, expected) in [("20", 0.2), ("80", 0.5), ("x", 0.5), ("0", 0.0)] {
        let head = Head::new(&[
            ("x-envoy-fault-abort-request", "500"),
            ("x-envoy-fault-abort-request-percentage", asked),
        ]);
        let got = shares(&filters, &head)[1];
        assert!((got - expected).abs() < 0.02, "{asked}: {got}");
    }
}

#[test]
fn no_more_faults_than_allowed_are_under_way() {
    for (max, expected) in [(None, 3), (Some(2), 2), (Some(0), 0)] {
        let filters = fault(Fault {
            delay: delay(Delay::Fixed(Duration::from_secs(1)), 100),
            max_active_faults: max,
            ..Fault::default()
        });
        let (now, mut rng, head) = (Instant::now(), SplitMix64::new(1), Head::new(&[]));
        let mut under_way: Vec<_> = (0..3).map(|_| Run::new(&filters)).collect();
        let delayed = under_way
            .iter_mut()
            .filter_map(|run| match run.advance(&head.request(), now, &mut rng) {
                Step::Wait(delay) => Some(delay),
                _ => None,
            })
            .count();
        assert_eq!(delayed, expected, "{max:?}");
        drop(under_way);
        let after = run(&filters, &head, now, &mut rng).0;
        assert_eq!(
            !after.is_zero(),
            max != Some(0),
            "a fault that ended makes room"
        );
    }
}

#[test]
fn faults_hit_the_requests_that_they_are_for() {
    let base = || Fault {
        abort: abort(Abort::Http(500), 100),
        ..Fault::default()
    };
    let is_hit = |fault_config: Fault, headers: &[(&'static str, &str)]| {
        let filters = fault(fault_config);
        let mut rng = SplitMix64::new(1);
        run(&filters, &Head::new(headers), Instant::now(), &mut rng)
            .1
            .is_some()
    };
    assert!(is_hit(base(), &[]));
    for (cluster, expected) in [("c", true), ("d", false)] {
        let upstream_cluster = cluster.into();
        assert_eq!(
            is_hit(
                Fault {
                    upstream_cluster,
                    ..base()
                },
                &[]
            ),
            expected
        );
    }
    let headers = || vec![HeaderMatcher::new("x", HeaderPredicate::Present(true))];
    assert!(is_hit(
        Fault {
            headers: headers(),
            ..base()
        },
        &[("x", "1")]
    ));
    assert!(!is_hit(
        Fault {
            headers: headers(),
            ..base()
        },
        &[]
    ));
    let nodes = || vec!["n".to_owned()];
    let node = "x-envoy-downstream-service-node";
    assert!(is_hit(
        Fault {
            downstream_nodes: nodes(),
            ..base()
        },
        &[(node, "n")]
    ));
    assert!(!is_hit(
        Fault {
            downstream_nodes: nodes(),
            ..base()
        },
        &[]
    ));
}
