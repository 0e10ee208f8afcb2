//! A limit of requests at a time that follows their latency (Envoy's gradient controller).
//!
//! From time to time the limit falls to its minimum and the latency without load is measured. In between
//! the limit grows or shrinks with the ratio of that latency, and some for noise, to the present one,
//! and by its square root, so that there is always a queue to learn from. Timers are looked at when a
//! request comes or goes: without requests there is nothing to learn.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{Answer, status_of};
use crate::{
    config::{AdaptiveConcurrency, Fraction},
    rng::{Rng, SplitMix64},
};

/// What Envoy says.
const BODY: &str = "reached concurrency limit";
/// The limit changes at most by these factors at a time.
const GRADIENT: [f64; 2] = [0.5, 2.0];
/// As often as this in a row at the minimum, and the latency is measured anew: it is probably wrong.
const MINIMA_MAX: u32 = 5;

/// The limit of one filter.
#[derive(Debug)]
pub struct ConcurrencyController {
    config: Arc<AdaptiveConcurrency>,
    limit: AtomicU32,
    in_flight: AtomicU32,
    window: Mutex<Window>,
}

/// What is known of the latency.
#[derive(Debug)]
struct Window {
    samples: Histogram,
    min_rtt: Duration,
    /// The limit from before the measurement that is under way.
    deferred: Option<u32>,
    /// Requests that began before it do not count.
    epoch: Option<Instant>,
    next_update: Option<Instant>,
    next_measurement: Option<Instant>,
    /// Updates in a row that left the limit at its minimum.
    minima: u32,
    rng: SplitMix64,
}

/// A request that may pass. Dropped without [`finish`](Self::finish) it is no sample.
#[derive(Debug)]
pub struct ConcurrencyPermit {
    controller: Arc<ConcurrencyController>,
    began: Instant,
}

impl ConcurrencyPermit {
    /// The response was read to its end.
    pub fn finish(self, now: Instant) {
        self.controller.sample(self.began, now);
    }
}

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        self.controller.in_flight.fetch_sub(1, Relaxed);
    }
}

impl ConcurrencyController {
    /// A controller that begins with a measurement. `seed` spreads the following ones.
    pub fn new(config: &Arc<AdaptiveConcurrency>, seed: u64) -> Self {
        Self {
            config: Arc::clone(config),
            limit: AtomicU32::new(config.min_concurrency),
            in_flight: AtomicU32::new(0),
            window: Mutex::new(Window {
                samples: Histogram::default(),
                min_rtt: Duration::ZERO,
                deferred: Some(config.min_concurrency),
                epoch: None,
                next_update: None,
                next_measurement: None,
                minima: 0,
                rng: SplitMix64::new(seed),
            }),
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &Arc<AdaptiveConcurrency> {
        &self.config
    }

    /// The limit.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Requests that passed and did not end.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Whether the latency without load is being measured.
    pub fn is_measuring(&self) -> bool {
        self.window().deferred.is_some()
    }

    /// A permit while there are fewer than the limit.
    ///
    /// # Errors
    /// The answer of a request above the limit.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<ConcurrencyPermit, Box<Answer>> {
        self.look_at_timers(now);
        let limit = self.limit();
        let more = |in_flight| (in_flight < limit).then_some(in_flight + 1);
        match self.in_flight.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Ok(ConcurrencyPermit {
                controller: Arc::clone(self),
                began: now,
            }),
            Err(_) => Err(Box::new(Answer::new(status_of(self.config.status), BODY))),
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, began: Instant, now: Instant) {
        let mut window = self.window();
        let is_stale = window.epoch.is_some_and(|epoch| began < epoch);
        if !is_stale {
            let latency = now.saturating_duration_since(began);
            window.samples.add(latency);
            let count = u64::from(self.config.min_rtt_request_count);
            if window.deferred.is_some() && window.samples.count >= count {
                self.end_measurement(&mut window, now);
            }
        }
        drop(window);
        self.look_at_timers(now);
    }

    fn look_at_timers(&self, now: Instant) {
        let mut window = self.window();
        window.epoch.get_or_insert(now);
        if window.deferred.is_some() {
            return;
        }
        if window.next_measurement.is_some_and(|at| now >= at) {
            self.begin_measurement(&mut window, now);
        } else if window.next_update.is_some_and(|at| now >= at) {
            window.next_update = Some(now + self.config.concurrency_update_interval);
            self.update(&mut window, now);
        }
    }

    fn begin_measurement(&self, window: &mut Window, now: Instant) {
        window.deferred = Some(self.limit());
        window.minima = 0;
        window.samples = Histogram::default();
        window.epoch = Some(now);
        self.limit.store(self.config.min_concurrency, Relaxed);
    }

    fn end_measurement(&self, window: &mut Window, now: Instant) {
        window.min_rtt = window.take_percentile(self.config.sample_aggregate_percentile);
        let deferred = window.deferred.take();
        let deferred = deferred.unwrap_or(self.config.min_concurrency);
        self.limit.store(deferred, Relaxed);
        let jitter = share(self.config.min_rtt_jitter) * window.rng.unit();
        let interval = self.config.min_rtt_interval.mul_f64(1.0 + jitter);
        window.next_measurement = Some(now + interval);
        window.next_update = Some(now + self.config.concurrency_update_interval);
    }

    fn update(&self, window: &mut Window, now: Instant) {
        if window.samples.count == 0 {
            return;
        }
        let config = &*self.config;
        let present = window.take_percentile(config.sample_aggregate_percentile);
        let buffered = window.min_rtt.as_secs_f64() * (1.0 + share(config.min_rtt_buffer));
        let [least, most] = GRADIENT;
        let gradient = (buffered / present.as_secs_f64().max(1e-6)).clamp(least, most);
        let old = self.limit();
        let limit = f64::from(old) * gradient;
        let limit = (limit + limit.sqrt()) as u32;
        let highest = config.max_concurrency_limit.max(config.min_concurrency);
        let limit = limit.clamp(config.min_concurrency, highest);
        self.limit.store(limit, Relaxed);
        let stays = old == config.min_concurrency && limit == old;
        window.minima = if stays { window.minima + 1 } else { 0 };
        if window.minima >= MINIMA_MAX {
            self.begin_measurement(window, now);
        }
    }
}

impl Window {
    fn take_percentile(&mut self, percentile: Fraction) -> Duration {
        let value = self.samples.percentile(share(percentile));
        self.samples = Histogram::default();
        value
    }
}

fn share(fraction: Fraction) -> f64 {
    f64::from(fraction.per_million()) / 1e6
}

/// Sub-buckets of a power of two: values are kept within 1/32.
const SUB: usize = 32;
/// Up to 2^40 µs, which is twelve days.
const POWERS: usize = 36;

/// Latencies in microseconds.
#[derive(Debug)]
struct Histogram {
    counts: Box<[u32]>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; SUB * POWERS].into(),
            count: 0,
        }
    }
}

impl Histogram {
    fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let index = Self::index(micros.max(1)).min(self.counts.len() - 1);
        self.counts[index] = self.counts[index].saturating_add(1);
        self.count += 1;
    }

    fn index(micros: u64) -> usize {
        let power = micros.ilog2() as usize;
        // Values below SUB are kept as they are.
        match power.checked_sub(5) {
            None | Some(0) => micros as usize,
            Some(shift) => SUB * (shift + 1) + ((micros >> shift) as usize - SUB),
        }
    }

    /// The lowest value of a bucket.
    fn value(index: usize) -> u64 {
        match (index / SUB).checked_sub(1) {
            None | Some(0) => index as u64,
            Some(shift) => ((index % SUB + SUB) as u64) << shift,
        }
    }

    fn percentile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Duration::from_micros(Self::value(index));
            }
        }
        Duration::ZERO
    }
}
