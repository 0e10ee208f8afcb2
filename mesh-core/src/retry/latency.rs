//! How long attempts take, for policies that hedge those which take longer than most.
//!
//! Stage 13 writes, stage 9 reads. A histogram whose buckets grow with what they hold (an eighth of
//! an octave: an answer is at most 13 % too high), in shards that threads do not share; every few
//! samples one thread adds the shards up for the readers. Old samples fade: a shard halves its counts
//! when it has as many as [`FADE_AT`].

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    config::Percentile,
    shard::{Padded, Sharded},
    sync::AtomicU32,
};

/// Samples before which nothing is known.
pub const LATENCY_SAMPLES_MIN: u32 = 64;

/// Samples in a shard at which its counts are halved.
const FADE_AT: u32 = 4096;

/// Samples between two sums over the shards.
const SUM_EVERY: u32 = 32;

/// Buckets of an octave.
const PER_OCTAVE: u32 = 8;

/// The lowest bound: 2^16 ns, 66 µs.
const FIRST_OCTAVE: u32 = 16;

/// The highest is 2^37 ns, 137 s.
const OCTAVES: u32 = 21;

const BUCKETS: usize = (OCTAVES * PER_OCTAVE) as usize;

/// Latencies of a cluster's attempts.
#[derive(Debug, Default)]
pub struct Latencies {
    shards: Sharded<Padded<Histogram>>,
    sum: Histogram,
}

#[derive(Debug)]
struct Histogram {
    total: AtomicU32,
    buckets: [AtomicU32; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            total: AtomicU32::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Latencies {
    /// An attempt took this long. One that was given up counts with what it took until then.
    pub fn record(&self, latency: Duration) {
        let shard = self.shards.local();
        shard.buckets[bucket(latency)].fetch_add(1, Relaxed);
        let total = shard.total.fetch_add(1, Relaxed) + 1;
        if total.is_multiple_of(SUM_EVERY) {
            self.add_up();
        }
        if total >= FADE_AT {
            shard.fade();
        }
    }

    /// The latency that this share of the attempts does not exceed; `None` before there are
    /// [`LATENCY_SAMPLES_MIN`] samples.
    pub fn percentile(&self, percentile: Percentile) -> Option<Duration> {
        let total = self.sum.total.load(Relaxed);
        if total < LATENCY_SAMPLES_MIN {
            return None;
        }
        let rank = percentile.rank(total);
        let mut below = 0u32;
        let found = self.sum.buckets.iter().position(|bucket| {
            below = below.saturating_add(bucket.load(Relaxed));
            below >= rank
        });
        Some(upper_bound(found.unwrap_or(BUCKETS - 1)))
    }

    /// Counts of different moments may be mixed: each of them is one that was right.
    fn add_up(&self) {
        let mut total = 0u32;
        for (index, sum) in self.sum.buckets.iter().enumerate() {
            let counts = self.shards.iter().map(|s| s.buckets[index].load(Relaxed));
            let count = counts.fold(0, u32::saturating_add);
            sum.store(count, Relaxed);
            total = total.saturating_add(count);
        }
        self.sum.total.store(total, Relaxed);
    }
}

impl Histogram {
    fn fade(&self) {
        let mut total = 0;
        for bucket in &self.buckets {
            let half = bucket.load(Relaxed) / 2;
            bucket.store(half, Relaxed);
            total += half;
        }
        self.total.store(total, Relaxed);
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    let Some(octave) = nanos.checked_ilog2().filter(|log| *log >= FIRST_OCTAVE) else {
        return 0;
    };
    let within = (nanos >> (octave - PER_OCTAVE.ilog2())) as u32 & (PER_OCTAVE - 1);
    let index = (octave - FIRST_OCTAVE) * PER_OCTAVE + within;
    (index as usize).min(BUCKETS - 1)
}

/// Where the bucket ends.
fn upper_bound(bucket: usize) -> Duration {
    let next = bucket as u32 + 1;
    let (octave, within) = (next / PER_OCTAVE + FIRST_OCTAVE, next % PER_OCTAVE);
    let nanos = u64::from(PER_OCTAVE + within) << (octave - PER_OCTAVE.ilog2());
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng as _, SplitMix64};

    #[test]
    fn a_percentile_is_at_most_an_eighth_too_high_and_never_too_low() {
        let latencies = Latencies::default();
        let mut rng = SplitMix64::new(3);
        let mut all = Vec::new();
        for i in 0..2_048 {
            // From 0.1 ms to 10 s, evenly over the orders of magnitude.
            let latency = Duration::from_secs_f64(1e-4 * 1e5_f64.powf(rng.unit()));
            latencies.record(latency);
            all.push(latency);
            if i < LATENCY_SAMPLES_MIN - 1 {
                assert_eq!(latencies.percentile(Percentile::new(50.0).unwrap()), None);
            }
        }
        all.sort();
        for percent in [1.0, 50.0, 90.0, 95.0, 99.0, 99.9] {
            let known = latencies.percentile(Percentile::new(percent).unwrap());
            let exact = all[(all.len() as f64 * percent / 100.0).ceil() as usize - 1];
            let off = known.unwrap().as_secs_f64() / exact.as_secs_f64();
            assert!((1.0..=1.126).contains(&off), "p{percent}: {off}");
        }
    }

    #[test]
    fn what_was_long_ago_fades() {
        let latencies = Latencies::default();
        let median = Percentile::new(50.0).unwrap();
        for _ in 0..10_000 {
            latencies.record(Duration::from_secs(1));
        }
        assert!(latencies.percentile(median) > Some(Duration::from_millis(900)));
        for _ in 0..10_000 {
            latencies.record(Duration::from_millis(1));
        }
        assert!(latencies.percentile(median) < Some(Duration::from_millis(2)));
    }

    #[test]
    fn all_lengths_have_a_bucket() {
        for nanos in [0, 1, 65_535, 65_536, 1 << 36, (1 << 37) - 1, u64::MAX] {
            let latency = Duration::from_nanos(nanos);
            let bucket = bucket(latency);
            assert!(bucket < BUCKETS);
            assert!(upper_bound(bucket) > latency || bucket == BUCKETS - 1);
        }
    }
}
