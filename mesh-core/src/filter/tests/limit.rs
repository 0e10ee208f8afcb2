//! Token buckets, descriptors, and what callers see.

use super::*;
use crate::rng::Rng as _;

#[test]
fn no_bucket_gives_more_than_it_holds_and_what_came_since() {
    let mut rng = SplitMix64::new(7);
    for case in 0..300 {
        let config = bucket(
            1 + rng.below(50) as u32,
            1 + rng.below(2000) as u32,
            50 + rng.below(5000),
        );
        let held = AtomicBucket::new(config);
        let start = Instant::now();
        let rate = f64::from(config.tokens_per_fill) / config.fill_interval.as_secs_f64();
        let mut now = start;
        let mut taken: Vec<Instant> = Vec::new();
        for _ in 0..400 {
            // Bursts, steady traffic and long pauses.
            now += match rng.below(3) {
                0 => Duration::ZERO,
                1 => Duration::from_nanos(rng.below(20_000_000)),
                _ => Duration::from_micros(rng.below(3_000_000)),
            };
            if held.try_take(now) {
                taken.push(now);
            }
        }
        let max = f64::from(config.max_tokens);
        for (from, first) in taken.iter().enumerate() {
            for (to, last) in taken.iter().enumerate().skip(from) {
                let count = (to - from + 1) as f64;
                let bound = max + rate * (*last - *first).as_secs_f64();
                // A part of a token is a millionth.
                assert!(
                    count <= bound + 1e-5,
                    "case {case}: {count} > {bound}: {config:?}"
                );
            }
        }
        assert!(taken.len() >= config.max_tokens.min(1) as usize);
    }
}

#[test]
fn a_bucket_gives_all_that_it_may() {
    let held = AtomicBucket::new(bucket(3, 2, 1000));
    let start = Instant::now();
    let take = |millis: u64| held.try_take(start + Duration::from_millis(millis));
    assert_eq!(
        [take(0), take(0), take(0), take(0)],
        [true, true, true, false]
    );
    assert_eq!([take(499), take(500), take(500)], [false, true, false]);
    let at = start + Duration::from_millis(500);
    assert_eq!(held.next_token(at), Duration::from_millis(500));
    assert_eq!(held.reset(at), Duration::from_millis(1500));
    // What does not fit is lost.
    assert_eq!(held.remaining(start + Duration::from_secs(3600)), 3);
    let late = 3_600_000;
    assert_eq!(
        [take(late), take(late), take(late), take(late)],
        [true, true, true, false]
    );
}

#[test]
fn threads_share_what_a_bucket_holds() {
    let held = AtomicBucket::new(bucket(1000, 1, 3_600_000));
    let now = Instant::now();
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..500).filter(|_| held.try_take(now)).count()))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .sum()
    });
    assert_eq!(taken, 1000);
}

#[test]
fn high_rates_and_long_lives_do_not_overflow() {
    let held = AtomicBucket::new(bucket(u32::MAX, 100_000_000, 50));
    let start = Instant::now();
    assert!(held.try_take(start));
    assert!(held.try_take(start + Duration::from_secs(15 * 365 * 86_400)));
    assert_eq!(
        held.remaining(start + Duration::from_secs(16 * 365 * 86_400)),
        u64::from(u32::MAX)
    );
}

fn header_limit(max_dynamic: u32) -> LocalRateLimit {
    let entry = |value: &str| vec![("user".into(), value.into())];
    let mut limit = LocalRateLimit::new("l", bucket(100, 1, 3_600_000));
    limit.rate_limits = vec![RateLimit {
        stage: 0,
        entries: vec![DescriptorEntry {
            key: "user".into(),
            source: DescriptorSource::Header {
                name: HeaderName::from_static("x-user"),
                skip_if_absent: false,
            },
        }],
    }];
    limit.descriptors = vec![
        RateLimitDescriptor {
            entries: entry("root"),
            token_bucket: bucket(2, 1, 3_600_000),
        },
        RateLimitDescriptor {
            entries: entry(""),
            token_bucket: bucket(1, 2, 3_600_000),
        },
    ];
    limit.max_dynamic_descriptors = max_dynamic;
    limit
}

#[test]
fn descriptors_have_buckets_of_their_own_and_open_ones_one_for_each_value() {
    let filters = compiled(&[limited(header_limit(2))]);
    let now = Instant::now();
    let mut rng = SplitMix64::new(1);
    let mut passes = |user: &str| {
        let head = Head::new(&[("x-user", user)]);
        run(&filters, &head, now, &mut rng).1.is_none()
    };
    assert_eq!([passes("a"), passes("a")], [true, false]);
    assert_eq!([passes("b"), passes("b")], [true, false]);
    // "a" was used before "b", so it makes room; its bucket is forgotten, that of "b" is not.
    assert_eq!([passes("c"), passes("b")], [true, false]);
    assert!(passes("a"));
    // A descriptor that names the value holds for it, too; the open one takes it as well.
    assert!(passes("root"));
    assert!(!passes("root"));
}

#[test]
fn the_filters_own_bucket_counts_all_unless_told_otherwise() {
    for (always, expected) in [(true, [true, false]), (false, [true, true])] {
        let mut limit = header_limit(10);
        limit.token_bucket = Some(bucket(1, 1, 3_600_000));
        limit.always_consume_default_token_bucket = always;
        let filters = compiled(&[limited(limit)]);
        let (now, mut rng) = (Instant::now(), SplitMix64::new(1));
        let got = ["a", "b"].map(|user| {
            let head = Head::new(&[("x-user", user)]);
            run(&filters, &head, now, &mut rng).1.is_none()
        });
        assert_eq!(got, expected);
    }
}

#[test]
fn callers_are_told_the_limit_and_when_to_come_back() {
    let mut limit = LocalRateLimit::new("l", bucket(1, 1, 10_000));
    limit.x_ratelimit_headers = true;
    limit.retry_after_header = true;
    limit.status = 430;
    let filters = compiled(&[limited(limit)]);
    let (now, mut rng, head) = (Instant::now(), SplitMix64::new(1), Head::new(&[]));
    let (_, answer, passed) = run(&filters, &head, now, &mut rng);
    let mut headers = HeaderMap::new();
    passed.respond(StatusCode::OK, &mut headers);
    assert_eq!(answer, None);
    assert_eq!(headers["x-ratelimit-limit"], "1");
    assert_eq!(headers["x-ratelimit-remaining"], "0");
    assert_eq!(headers["x-ratelimit-reset"], "10");
    let later = now + Duration::from_millis(2500);
    let refused = run(&filters, &head, later, &mut rng).1.expect("refused");
    assert_eq!(refused.status.as_u16(), 430);
    assert_eq!(refused.grpc_status, Some(8));
    assert_eq!(refused.headers["retry-after"], "8");
    assert!(
        run(&filters, &head, now + Duration::from_secs(10), &mut rng)
            .1
            .is_none()
    );
}

#[test]
fn a_limit_that_is_not_enforced_lets_pass_and_says_so_to_the_application() {
    let mut limit = LocalRateLimit::new("l", bucket(1, 1, 3_600_000));
    limit.filter_enforced = None;
    limit.request_headers_when_not_enforced.add = vec![crate::config::HeaderValue {
        name: HeaderName::from_static("x-over"),
        value: ValueTemplate::new("yes", false).expect("a template"),
        action: AppendAction::Overwrite,
        keep_empty: false,
    }];
    let filters = compiled(&[limited(limit)]);
    let (now, mut rng, head) = (Instant::now(), SplitMix64::new(1), Head::new(&[]));
    let first = run(&filters, &head, now, &mut rng);
    assert!(first.1.is_none() && first.2.headers.is_none());
    let second = run(&filters, &head, now, &mut rng);
    assert!(second.1.is_none());
    assert_eq!(second.2.headers.expect("changed")["x-over"], "yes");
}

#[test]
fn a_limit_that_is_not_enabled_or_holds_nothing_is_no_filter() {
    let mut disabled = LocalRateLimit::new("l", bucket(1, 1, 1000));
    disabled.filter_enabled = None;
    let mut empty = LocalRateLimit::new("l", bucket(1, 1, 1000));
    empty.token_bucket = None;
    for limit in [disabled, empty] {
        assert!(compile("t", &[limited(limit)], &mut FilterStates::new(1)).is_none());
    }
}

#[test]
fn tokens_outlive_a_snapshot_whose_limit_stays() {
    let mut states = FilterStates::new(1);
    let (now, mut rng, head) = (Instant::now(), SplitMix64::new(1), Head::new(&[]));
    let limit = |max| vec![limited(LocalRateLimit::new("l", bucket(max, 1, 3_600_000)))];
    let first = compile("t", &limit(1), &mut states).expect("a filter");
    assert!(run(&first, &head, now, &mut rng).1.is_none());
    let same = compile("t", &limit(1), &mut states).expect("a filter");
    assert!(run(&same, &head, now, &mut rng).1.is_some());
    let other = compile("t", &limit(2), &mut states).expect("a filter");
    assert!(run(&other, &head, now, &mut rng).1.is_none());
}
