//! How many, how they ended and how long they took, counted without one thread meeting another.
//!
//! `prometheus_client`'s counters are one cache line for everybody and its histogram takes a lock;
//! here each thread adds to a shard of its own, for the most part without atomic operations, and only
//! a scrape reads them all. A scrape may see an end before the duration that belongs to it.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use mesh_core::shard::{Adder, Padded, Sharded};
use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::code::{CODES, Code, Protocol};

/// Upper bounds in milliseconds (OpenTelemetry semantic conventions for RPC and HTTP durations).
const BOUNDS_MS: [u64; 14] = [
    5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000,
];
/// The first of them.
const SOON: Duration = Duration::from_millis(BOUNDS_MS[0]);
/// One for each bound and one for what is above all of them.
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// What is sent beyond the first attempt of each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extra {
    /// An attempt by the retry policy.
    Retry,
    /// An attempt of a request that never left.
    Transparent,
    /// An attempt beside others, by the hedge policy.
    Hedge,
    /// A retry or hedge that the budget had no room for.
    OverBudget,
    /// A copy, by a mirror policy.
    Mirror,
    /// A copy that was not sent, or was given up.
    MirrorDropped,
}

const EXTRAS: usize = 6;

impl Extra {
    /// The name of its span event.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Transparent => "transparent_retry",
            Self::Hedge => "hedge",
            Self::OverBudget => "over_budget",
            Self::Mirror => "mirror",
            Self::MirrorDropped => "mirror_dropped",
        }
    }
}

/// Calls to one cluster, or requests to this server.
/// Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    shards: Sharded<Padded<Shard>>,
}

/// What ends well and soon, as nearly all do, writes to the first cache line alone.
#[derive(Default)]
#[repr(C)]
struct Shard {
    started: AtomicU64,
    good_grpc: GoodShard,
    good_http: GoodShard,
    grpc: DurationShard,
    http: DurationShard,
    ended: [AtomicU64; CODES],
    extra: [AtomicU64; EXTRAS],
}

/// Calls that ended well (`OK` or 2xx), in the first bucket.
#[derive(Default)]
struct GoodShard {
    count: AtomicU64,
    nanos: AtomicU64,
}

#[derive(Default)]
struct DurationShard {
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Counts {
    #[inline]
    fn local(&self) -> (&Shard, Adder) {
        let (shard, adder) = self.shards.counters();
        (shard, adder)
    }

    #[inline]
    pub(super) fn start(&self) {
        let (shard, adder) = self.local();
        adder.add(&shard.started, 1);
    }

    pub(crate) fn extra(&self, extra: Extra) {
        let (shard, adder) = self.local();
        adder.add(&shard.extra[extra as usize], 1);
    }

    #[inline]
    pub(crate) fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        let (shard, adder) = self.local();
        let good = match (protocol, code) {
            (Protocol::Grpc, Code::Grpc(0)) => &shard.good_grpc,
            (Protocol::Http, Code::Http(200..=299)) => &shard.good_http,
            _ => return shard.finish(adder, protocol, code, latency),
        };
        if latency > SOON {
            return shard.finish(adder, protocol, code, latency);
        }
        adder.add(&good.count, 1);
        adder.add(&good.nanos, u64::from(latency.subsec_nanos()));
    }

    /// Adds what was counted so far to `totals`.
    pub(super) fn add_to(&self, totals: &mut Totals) {
        for shard in self.shards.iter() {
            totals.started += shard.started.load(Relaxed);
            for (total, extra) in totals.extra.iter_mut().zip(&shard.extra) {
                *total += extra.load(Relaxed);
            }
            for (total, ended) in totals.ended.iter_mut().zip(&shard.ended) {
                *total += ended.load(Relaxed);
            }
            totals.grpc.add(&shard.grpc);
            totals.http.add(&shard.http);
            totals.add_good(Protocol::Grpc, Code::Grpc(0), &shard.good_grpc);
            totals.add_good(Protocol::Http, Code::Http(200), &shard.good_http);
        }
    }
}

impl Shard {
    fn finish(&self, adder: Adder, protocol: Protocol, code: Code, latency: Duration) {
        adder.add(&self.ended[code.index()], 1);
        let durations = match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        };
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let is_above = |bound: &u64| nanos > bound * 1_000_000;
        let bucket = BOUNDS_MS.iter().take_while(|bound| is_above(bound)).count();
        adder.add(&durations.buckets[bucket], 1);
        adder.add(&durations.nanos, nanos);
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

/// The sum over all shards.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) started: u64,
    extra: [u64; EXTRAS],
    ended: [u64; CODES],
    pub(super) grpc: Durations,
    pub(super) http: Durations,
}

impl Totals {
    fn add_good(&mut self, protocol: Protocol, code: Code, good: &GoodShard) {
        let count = good.count.load(Relaxed);
        self.ended[code.index()] += count;
        let durations = match protocol {
            Protocol::Grpc => &mut self.grpc,
            Protocol::Http => &mut self.http,
        };
        durations.buckets[0] += count;
        durations.nanos = durations.nanos.wrapping_add(good.nanos.load(Relaxed));
    }

    pub(super) fn extra(&self, extra: Extra) -> u64 {
        self.extra[extra as usize]
    }

    pub(super) fn in_flight(&self) -> u64 {
        // An end may have been seen whose start was not.
        self.started.saturating_sub(self.ended.iter().sum())
    }

    /// How many ended in which way; only ways that happened.
    pub(super) fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let ended = self
            .ended
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0);
        ended.map(|(index, count)| (Code::label_of(index), *count))
    }
}

/// A histogram.
#[derive(Debug, Default)]
pub(super) struct Durations {
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl Durations {
    fn add(&mut self, shard: &DurationShard) {
        for (total, bucket) in self.buckets.iter_mut().zip(&shard.buckets) {
            *total += bucket.load(Relaxed);
        }
        self.nanos = self.nanos.wrapping_add(shard.nanos.load(Relaxed));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.iter().all(|count| *count == 0)
    }

    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_MS.iter().map(|bound| *bound as f64 / 1_000.0);
        let bounds = bounds.chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        let seconds = Duration::from_nanos(self.nanos).as_secs_f64();
        let count = self.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}
