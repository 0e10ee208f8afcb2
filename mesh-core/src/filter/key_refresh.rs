//! When an issuer's keys are fetched, and how long those that are held are believed (Envoy
//! `RemoteJwks`).
//!
//! Nothing is fetched here: whoever drives a [`KeyRefresh`] begins a fetch when
//! [`due`](KeyRefresh::due) says so and tells what came of it. Fails closed: without keys nothing is
//! believed. Deviations from Envoy: keys whose refetch fails are believed for [`JWKS_KEPT_MAX`] (Envoy
//! drops those that it fetches on demand), and a token of an unknown key has them fetched, so that a
//! change of keys needs no pause (Envoy waits for the end of `cache_duration`).

use std::time::{Duration, Instant};

use crate::config::RemoteJwks;

/// How long keys are believed that cannot be fetched again: an issuer may be away for a day, and a key
/// that it took back is of use for no longer.
pub const JWKS_KEPT_MAX: Duration = Duration::from_secs(24 * 3600);

/// One fetch because of an unknown key comes free in each of these, so that whoever makes up keys has few of
/// them fetched.
pub const UNKNOWN_KEY_FETCH_INTERVAL: Duration = Duration::from_secs(5);

/// How long before their time is over keys are fetched ahead (Envoy's), but not before half of it.
pub const JWKS_PREFETCH_AHEAD: Duration = Duration::from_secs(5);

/// Most fetches because of unknown keys at once, after which they come free one by one.
pub const UNKNOWN_KEY_FETCHES_MAX: u32 = 3;

/// The fetches of one issuer's keys.
#[derive(Clone, Debug)]
pub struct KeyRefresh {
    cache_duration: Duration,
    failed_refetch: Duration,
    prefetch: bool,
    created: Instant,
    /// When the keys that are held were asked for.
    held: Option<Instant>,
    /// When the last fetch ended, if it failed.
    failed: Option<Instant>,
    /// When the fetch that is on its way began.
    begun: Option<Instant>,
    /// A token came while there were no keys, or old ones.
    is_wanted: bool,
    /// A token came whose key is not held.
    wants_unknown: bool,
    /// Up to when the fetches because of unknown keys are spent.
    spent: Option<Instant>,
}

/// What may be done with the keys that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Judge by them.
    Held,
    /// Wait for a fetch.
    Awaited,
    /// There are none, and the last fetch failed just now.
    Missing,
}

impl KeyRefresh {
    /// Nothing was fetched yet.
    pub fn new(config: &RemoteJwks, now: Instant) -> Self {
        Self {
            cache_duration: config.cache_duration,
            failed_refetch: config.failed_refetch,
            prefetch: config.prefetch,
            created: now,
            held: None,
            failed: None,
            begun: None,
            is_wanted: false,
            wants_unknown: false,
            spent: None,
        }
    }

    /// What a token that came now is judged by.
    pub fn standing(&self, now: Instant) -> Standing {
        let is_paused = self.failed.is_some_and(|at| now < at + self.failed_refetch);
        match self.held {
            Some(asked) if now < asked + self.cache_duration => Standing::Held,
            // Whose issuer does not answer waits for it once, not each time.
            Some(asked) if now < asked + JWKS_KEPT_MAX && self.failed.is_some() => Standing::Held,
            Some(asked) if now < asked + JWKS_KEPT_MAX => Standing::Awaited,
            _ if is_paused && self.begun.is_none() => Standing::Missing,
            _ => Standing::Awaited,
        }
    }

    /// A token came that fresh keys are needed for.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// A token came whose key is not held.
    pub fn want_unknown(&mut self) {
        self.wants_unknown = true;
    }

    /// When the next fetch is to begin; `None` while one is on its way, or nobody needs one.
    pub fn due(&self) -> Option<Instant> {
        if self.begun.is_some() {
            return None;
        }
        let pause = self.failed.map(|at| at + self.failed_refetch);
        let after = |life: Duration| self.held.map_or(self.created, |asked| asked + life);
        let life = self.cache_duration;
        let ahead = life.saturating_sub(JWKS_PREFETCH_AHEAD).max(life / 2);
        let ahead = self.prefetch.then(|| after(ahead));
        let expired = self.is_wanted.then(|| after(life));
        let unknown = self.wants_unknown.then(|| {
            let ahead = UNKNOWN_KEY_FETCH_INTERVAL * (UNKNOWN_KEY_FETCHES_MAX - 1);
            self.spent
                .and_then(|spent| spent.checked_sub(ahead))
                .unwrap_or(self.created)
        });
        let wanted = [ahead, expired, unknown].into_iter().flatten().min()?;
        Some(pause.map_or(wanted, |pause| wanted.max(pause)))
    }

    /// A fetch begins.
    pub fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
        if self.wants_unknown {
            let from = self.spent.map_or(now, |spent| spent.max(now));
            self.spent = Some(from + UNKNOWN_KEY_FETCH_INTERVAL);
        }
        (self.is_wanted, self.wants_unknown) = (false, false);
    }

    /// It ended; returns when it began.
    pub fn end(&mut self, now: Instant, succeeded: bool) -> Instant {
        let begun = self.begun.take().unwrap_or(now);
        match succeeded {
            true => (self.held, self.failed) = (Some(begun), None),
            false => self.failed = Some(now),
        }
        begun
    }
}
