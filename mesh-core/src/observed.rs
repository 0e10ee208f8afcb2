//! What policies remember of an endpoint: latencies, and the load that it reported.
//!
//! Stage 13 writes, stage 10 reads, both without a lock. Each value is one word: a reader sees an
//! older or a newer one, never half of one. Times are milliseconds since the endpoint was first
//! observed.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use crate::{
    config::ClientSideWrr,
    sync::{AtomicU32, AtomicU64},
};

/// How an attempt ended, for policies that want to know.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'o> {
    /// When it ended.
    pub now: Instant,
    /// From its beginning to the head of its response.
    pub latency: Duration,
    /// Whether the endpoint did what it was asked for.
    pub is_success: bool,
    /// What the endpoint said of its load.
    pub report: Option<&'o LoadReport>,
}

/// What an endpoint says of its load (ORCA `OrcaLoadReport`, gRFC A51).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// `application_utilization`; 0 is unknown.
    pub application_utilization: f64,
    /// `cpu_utilization`; 0 is unknown.
    pub cpu_utilization: f64,
    /// `mem_utilization`; 0 is unknown.
    pub mem_utilization: f64,
    /// `rps_fractional`: requests per second.
    pub requests_per_second: f64,
    /// `eps`: errors per second.
    pub errors_per_second: f64,
    /// `named_metrics`.
    pub named_metrics: Vec<(String, f64)>,
    /// `utilization`.
    pub utilization: Vec<(String, f64)>,
    /// `request_cost`, of the request alone that the report came with.
    pub request_cost: Vec<(String, f64)>,
}

/// Name in [`LoadReport::named_metrics`] of the requests in flight at a server, for Prequal.
pub const REQUESTS_IN_FLIGHT_METRIC: &str = "rif";

/// Name in [`LoadReport::named_metrics`] of the latency, in seconds, that a request has at a server
/// with so many in flight, for Prequal.
pub const LATENCY_METRIC: &str = "latency";

impl LoadReport {
    fn named(&self, name: &str) -> Option<f64> {
        let mut metrics = self.named_metrics.iter();
        metrics.find_map(|(key, value)| (key == name).then_some(*value))
    }

    /// The value of a metric by the name that configuration uses for it: `cpu_utilization`,
    /// `named_metrics.NAME`, `utilization.NAME` and so on (gRFC A114).
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name.split_once('.') {
            Some(("named_metrics", name)) => self.named(name),
            Some(("utilization", name)) => {
                let mut metrics = self.utilization.iter();
                metrics.find_map(|(key, value)| (key == name).then_some(*value))
            }
            Some(_) => None,
            None => match name {
                "application_utilization" => Some(self.application_utilization),
                "cpu_utilization" => Some(self.cpu_utilization),
                "mem_utilization" => Some(self.mem_utilization),
                _ => None,
            },
        }
    }

    /// How busy the endpoint is (gRFC A58, A114); `None` when it does not say.
    pub fn utilization(&self, metrics: &[String]) -> Option<f64> {
        let positive = |value: &f64| *value > 0.0 && value.is_finite();
        let named = metrics.iter().filter_map(|name| self.metric(name));
        named
            .filter(positive)
            .max_by(f64::total_cmp)
            .or_else(|| Some(self.application_utilization).filter(positive))
            .or_else(|| Some(self.cpu_utilization).filter(positive))
    }

    /// The weight that follows: requests per second for each unit of utilisation, where errors count
    /// as utilisation.
    pub fn weight(&self, config: &ClientSideWrr) -> Option<f64> {
        let rate = self.requests_per_second;
        let utilization = self.utilization(&config.metric_names_for_computing_utilization)?;
        if rate.is_nan() || rate <= 0.0 {
            return None;
        }
        let errors = self.errors_per_second.max(0.0) / rate;
        let weight = rate / (utilization + errors * config.error_utilization_penalty);
        (weight.is_finite() && weight > 0.0).then_some(weight)
    }
}

/// What policies remember of one endpoint.
#[derive(Debug)]
#[repr(align(64))]
pub struct Observed {
    since: Instant,
    /// Upper half: latency in units of [`LATENCY_UNIT_NANOS`]; lower half: when, in milliseconds.
    /// 0 is none.
    latency: AtomicU64,
    /// `f32` bits.
    weight: AtomicU32,
    /// When the weight was reported; 0 is never.
    weight_at: AtomicU64,
    /// Since when there are weights without a break; 0 is none.
    weight_since: AtomicU64,
    /// Upper half: requests in flight; lower half: microseconds. See [`ServerLoad`].
    server: AtomicU64,
    /// When that was reported; 0 is never.
    server_at: AtomicU64,
    /// Requests of this process in flight when that was reported.
    own_in_flight: AtomicU32,
}

/// What a server last said, as Prequal's probes would have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServerLoad {
    /// Requests in flight there, those of others among them.
    pub in_flight: u32,
    /// How long a request takes there.
    pub latency: Duration,
    /// Requests of this process in flight when it was said.
    pub own_in_flight: u32,
    /// How long ago it was said.
    pub age: Duration,
}

/// 64 ns: 32 bits of it are more than four minutes, which is where latencies are capped.
const LATENCY_UNIT_NANOS: u64 = 64;

impl Observed {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            latency: AtomicU64::new(0),
            weight: AtomicU32::new(0),
            weight_at: AtomicU64::new(0),
            weight_since: AtomicU64::new(0),
            server: AtomicU64::new(0),
            server_at: AtomicU64::new(0),
            own_in_flight: AtomicU32::new(0),
        }
    }

    /// How long the endpoint is known.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Milliseconds since it is known, and one: 0 stands for never.
    fn tick(&self, now: Instant) -> u64 {
        self.age(now).as_millis() as u64 + 1
    }

    /// The connection is a new one: the reports before it do not count as experience.
    pub(crate) fn reconnected(&self) {
        self.weight_since.store(0, Relaxed);
    }

    /// Takes a latency into the average, which rises at once and falls slowly.
    pub fn add_latency(&self, now: Instant, latency: Duration, decay: Duration) {
        let at = self.tick(now) as u32;
        let latency = nanos(latency);
        let add = |word: u64| {
            let (average, then) = unpack(word);
            if word == 0 || latency >= average {
                return Some(pack(latency, at));
            }
            if at == then {
                // No time has passed that a lower one could have weight for.
                return None;
            }
            let past = f64::from(at.wrapping_sub(then)) / 1000.0;
            let keep = (-past / decay.as_secs_f64()).exp();
            let average = average as f64 * keep + latency as f64 * (1.0 - keep);
            Some(pack(average as u64, at))
        };
        _ = self.latency.fetch_update(Relaxed, Relaxed, add);
    }

    /// The average of the latencies, as much of it as is left of the last one; `None` before the
    /// first.
    pub fn latency(&self, now: Option<Instant>, decay: Duration) -> Option<Duration> {
        let word = self.latency.load(Relaxed);
        if word == 0 {
            return None;
        }
        let (average, then) = unpack(word);
        let Some(now) = now else {
            return Some(Duration::from_nanos(average));
        };
        let past = (self.tick(now) as u32).wrapping_sub(then);
        // Within a hundredth of the decay there is nothing to see.
        if past == 0 || u128::from(past) * 100 < decay.as_millis() {
            return Some(Duration::from_nanos(average));
        }
        let keep = (-f64::from(past) / 1000.0 / decay.as_secs_f64()).exp();
        Some(Duration::from_nanos((average as f64 * keep) as u64))
    }

    /// Takes a report into the weight (gRFC A58).
    pub fn add_weight(&self, now: Instant, report: &LoadReport, config: &ClientSideWrr) {
        let Some(weight) = report.weight(config) else {
            return;
        };
        let at = self.tick(now);
        self.weight.store((weight as f32).to_bits(), Relaxed);
        self.weight_at.store(at, Relaxed);
        if self.weight_since.load(Relaxed) == 0 {
            self.weight_since.store(at, Relaxed);
        }
    }

    /// The weight, if it may be used.
    pub fn weight(&self, now: Instant, config: &ClientSideWrr) -> Option<f64> {
        let at = self.weight_at.load(Relaxed);
        if at == 0 {
            return None;
        }
        let tick = self.tick(now);
        let past = |then: u64| Duration::from_millis(tick.saturating_sub(then));
        if past(at) >= config.weight_expiration_period {
            self.weight_since.store(0, Relaxed);
            return None;
        }
        let since = self.weight_since.load(Relaxed);
        let is_known = config.blackout_period.is_zero()
            || (since != 0 && past(since) >= config.blackout_period);
        is_known.then(|| f32::from_bits(self.weight.load(Relaxed)).into())
    }

    /// Takes what a server says of itself.
    pub fn add_server_load(
        &self,
        now: Instant,
        in_flight: u32,
        latency: Duration,
        own_in_flight: u32,
    ) {
        let micros = latency.as_micros().min(u32::MAX.into()) as u64;
        self.server
            .store(u64::from(in_flight) << 32 | micros, Relaxed);
        self.own_in_flight.store(own_in_flight, Relaxed);
        self.server_at.store(self.tick(now), Relaxed);
    }

    /// What the server last said of itself.
    pub fn server_load(&self, now: Instant) -> Option<ServerLoad> {
        let at = self.server_at.load(Relaxed);
        if at == 0 {
            return None;
        }
        let word = self.server.load(Relaxed);
        Some(ServerLoad {
            in_flight: (word >> 32) as u32,
            latency: Duration::from_micros(word & u64::from(u32::MAX)),
            own_in_flight: self.own_in_flight.load(Relaxed),
            age: Duration::from_millis(self.tick(now).saturating_sub(at)),
        })
    }
}

/// Requests in flight and latency at the server, where a report has both.
pub(crate) fn reported_load(report: &LoadReport) -> Option<(u32, Duration)> {
    let in_flight = report.named(REQUESTS_IN_FLIGHT_METRIC)?;
    let latency = report.named(LATENCY_METRIC)?;
    let latency = Duration::try_from_secs_f64(latency).ok()?;
    (in_flight >= 0.0).then_some((in_flight as u32, latency))
}

fn nanos(latency: Duration) -> u64 {
    latency.as_nanos().min(u64::MAX.into()) as u64
}

fn pack(nanos: u64, at: u32) -> u64 {
    let units = (nanos / LATENCY_UNIT_NANOS).clamp(1, u32::MAX.into());
    units << 32 | u64::from(at)
}

fn unpack(word: u64) -> (u64, u32) {
    ((word >> 32) * LATENCY_UNIT_NANOS, word as u32)
}
