//! When keys are fetched, in simulated time.

use std::time::{Duration, Instant};

use super::super::{
    JWKS_KEPT_MAX, JWKS_PREFETCH_AHEAD, KeyRefresh, Standing, UNKNOWN_KEY_FETCH_INTERVAL,
    UNKNOWN_KEY_FETCHES_MAX,
};
use crate::{
    config::RemoteJwks,
    rng::{Rng, SplitMix64},
};

const SECOND: Duration = Duration::from_secs(1);

fn config(prefetch: bool) -> RemoteJwks {
    let uri = http::Uri::from_static("https://issuer.example/keys");
    RemoteJwks {
        prefetch,
        cache_duration: 60 * SECOND,
        ..RemoteJwks::new(uri, "issuer", SECOND)
    }
}

/// Fetched at `now`, at once.
fn fetch(refresh: &mut KeyRefresh, now: Instant, succeeds: bool) {
    refresh.begin(now);
    refresh.end(now, succeeds);
}

#[test]
fn keys_are_fetched_ahead_where_that_is_asked_for_and_for_the_first_token_elsewhere() {
    let start = Instant::now();
    assert_eq!(KeyRefresh::new(&config(true), start).due(), Some(start));
    let mut lazy = KeyRefresh::new(&config(false), start);
    assert_eq!(lazy.due(), None);
    assert_eq!(lazy.standing(start), Standing::Awaited);
    lazy.want();
    assert_eq!(lazy.due(), Some(start));
}

#[test]
fn keys_are_fetched_again_when_their_time_is_over_and_tokens_wait_for_that() {
    let start = Instant::now();
    let over = start + 60 * SECOND;
    for prefetch in [false, true] {
        let mut refresh = KeyRefresh::new(&config(prefetch), start);
        fetch(&mut refresh, start, true);
        assert_eq!(refresh.standing(over - SECOND), Standing::Held);
        assert_eq!(refresh.standing(over), Standing::Awaited);
        let ahead = over - JWKS_PREFETCH_AHEAD;
        assert_eq!(refresh.due(), prefetch.then_some(ahead));
        refresh.want();
        assert_eq!(refresh.due(), Some(if prefetch { ahead } else { over }));
    }
}

#[test]
fn nothing_is_believed_before_the_first_fetch_has_succeeded() {
    let start = Instant::now();
    let mut refresh = KeyRefresh::new(&config(true), start);
    fetch(&mut refresh, start, false);
    assert_eq!(refresh.standing(start), Standing::Missing);
    let again = start + SECOND;
    assert_eq!(refresh.due(), Some(again));
    assert_eq!(refresh.standing(again), Standing::Awaited);
    refresh.begin(again);
    assert_eq!(refresh.standing(again), Standing::Awaited);
    refresh.end(again, true);
    assert_eq!(refresh.standing(again), Standing::Held);
}

#[test]
fn keys_outlive_an_issuer_that_is_away_for_a_day_and_no_longer() {
    let start = Instant::now();
    let mut refresh = KeyRefresh::new(&config(true), start);
    fetch(&mut refresh, start, true);
    let mut now = start + 60 * SECOND;
    fetch(&mut refresh, now - SECOND, false);
    while now < start + JWKS_KEPT_MAX {
        assert_eq!(refresh.due(), Some(now));
        fetch(&mut refresh, now, false);
        assert_eq!(refresh.standing(now), Standing::Held, "{:?}", now - start);
        now += SECOND;
    }
    assert_ne!(refresh.standing(now), Standing::Held);
    fetch(&mut refresh, now, false);
    assert_eq!(refresh.standing(now), Standing::Missing);
}

#[test]
fn whoever_makes_up_keys_has_few_of_them_fetched() {
    let start = Instant::now();
    let mut refresh = KeyRefresh::new(&config(false), start);
    fetch(&mut refresh, start, true);
    let mut rng = SplitMix64::new(3);
    let (mut now, mut fetches) = (start, 0_u32);
    let hour = start + 3600 * SECOND;
    while now < hour {
        refresh.want_unknown();
        if refresh.due().is_some_and(|due| due <= now) {
            fetch(&mut refresh, now, true);
            fetches += 1;
        }
        let passed = (now - start).as_secs_f64() / UNKNOWN_KEY_FETCH_INTERVAL.as_secs_f64();
        assert!(f64::from(fetches) <= passed + f64::from(UNKNOWN_KEY_FETCHES_MAX));
        now += Duration::from_millis(rng.next_u64() % 50);
    }
    // What comes free is used: a change of keys is seen in an attack, too.
    assert!(fetches >= 700, "{fetches}");
}

#[test]
fn a_fetch_for_an_unknown_key_waits_for_the_pause_after_one_that_failed() {
    let start = Instant::now();
    let mut refresh = KeyRefresh::new(&config(false), start);
    fetch(&mut refresh, start, true);
    refresh.want_unknown();
    assert!(refresh.due().is_some_and(|due| due <= start));
    fetch(&mut refresh, start, false);
    refresh.want_unknown();
    assert_eq!(refresh.due(), Some(start + SECOND));
    assert_eq!(refresh.standing(start), Standing::Held);
}
