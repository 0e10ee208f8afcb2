//! The detector against a model that keeps every request and looks at all of them each time.
//!
//! `MESH_PROPERTY_CASES` says how many cases; a failure names its seed.

use super::*;
use crate::{
    config::{FailurePercentage, SuccessRate},
    outcome::Verdict,
    rng::SplitMix64,
};

const CASES: u64 = 60;
/// Steps of one case, a second or more each.
const STEPS: u64 = 150;

/// One request: when it ended, and whether well.
type Request = (u64, bool);

/// An endpoint, with all that happened to it.
#[derive(Default)]
struct Watched {
    requests: Vec<Request>,
    /// Requests before this one are not in the streak.
    streak_from: usize,
    /// Requests before this one were in an earlier interval.
    interval_from: usize,
    /// Since when it is ejected, and for how many times the base time.
    ejected: Option<(u64, u64)>,
    multiplier: u64,
}

impl Watched {
    fn streak(&self) -> usize {
        let recent = self.requests[self.streak_from..].iter().rev();
        recent.take_while(|(_, is_success)| !is_success).count()
    }

    /// How many in the interval, and what part of them, in percent, was well.
    fn interval(&self) -> (usize, f64) {
        let of = &self.requests[self.interval_from..];
        let succeeded = of.iter().filter(|(_, is_success)| *is_success).count();
        (of.len(), succeeded as f64 * 100.0 / of.len() as f64)
    }
}

struct Model {
    config: OutlierDetection,
    hosts: Vec<Watched>,
    swept: u64,
}

impl Model {
    fn eject(&mut self, host: usize, now: u64) {
        let ejected = self
            .hosts
            .iter()
            .filter(|host| host.ejected.is_some())
            .count();
        let is_full = ejected * 100 / self.hosts.len() >= self.config.max_ejection_percent as usize;
        let host = &mut self.hosts[host];
        if host.ejected.is_none() && !is_full {
            host.multiplier += 1;
            host.ejected = Some((now, host.multiplier));
        }
    }

    fn advance(&mut self, now: u64) {
        let base = self.config.base_ejection_time.as_secs();
        let longest = self.config.max_ejection_time.as_secs().max(base);
        for host in &mut self.hosts {
            if let Some((since, times)) = host.ejected
                && now >= since + (base * times).min(longest)
            {
                host.ejected = None;
                host.streak_from = host.requests.len();
            }
        }
        let threshold = self.config.consecutive_5xx.threshold as usize;
        for index in 0..self.hosts.len() {
            if self.hosts[index].ejected.is_none() && self.hosts[index].streak() >= threshold {
                self.eject(index, now);
                self.hosts[index].streak_from = self.hosts[index].requests.len();
            }
        }
        if now >= self.swept + self.config.interval.as_secs() {
            self.swept = now;
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: u64) {
        let of = |least: u32| -> Vec<(usize, f64)> {
            let rates = self.hosts.iter().enumerate().map(|(index, host)| {
                let (count, rate) = host.interval();
                (index, count, rate)
            });
            let enough = rates.filter(|(_, count, _)| *count >= least.max(1) as usize);
            enough.map(|(index, _, rate)| (index, rate)).collect()
        };
        let (rate, percentage) = (self.config.success_rate, self.config.failure_percentage);
        let mut found = Vec::new();
        let rates = of(rate.request_volume);
        if rates.len() >= rate.minimum_hosts.max(1) as usize {
            let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / rates.len() as f64;
            let squares = rates.iter().map(|(_, rate)| (rate - mean).powi(2));
            let deviation = (squares.sum::<f64>() / rates.len() as f64).sqrt();
            let lowest = mean - deviation * f64::from(rate.stdev_factor) / 1000.0;
            found.extend(
                rates
                    .iter()
                    .filter(|(_, rate)| *rate < lowest)
                    .map(|(index, _)| *index),
            );
        }
        let rates = of(percentage.request_volume);
        if rates.len() >= percentage.minimum_hosts as usize {
            let limit = f64::from(percentage.threshold) - 1e-9;
            found.extend(
                rates
                    .iter()
                    .filter(|(_, rate)| 100.0 - rate >= limit)
                    .map(|(i, _)| *i),
            );
        }
        for host in found {
            self.eject(host, now);
        }
        for host in &mut self.hosts {
            host.interval_from = host.requests.len();
            if host.ejected.is_none() {
                host.multiplier = host.multiplier.saturating_sub(1);
            }
        }
    }
}

fn between(rng: &mut SplitMix64, least: u64, most: u64) -> u64 {
    least + rng.below(most - least + 1)
}

/// All kinds are certain to eject.
fn config(rng: &mut SplitMix64) -> OutlierDetection {
    let base = between(rng, 5, 40);
    OutlierDetection {
        interval: Duration::from_secs(between(rng, 3, 20)),
        base_ejection_time: Duration::from_secs(base),
        max_ejection_time: Duration::from_secs(between(rng, 1, 5 * base)),
        max_ejection_percent: [0, 10, 30, 50, 100][rng.below(5) as usize],
        consecutive_5xx: Consecutive {
            threshold: between(rng, 1, 8) as u32,
            enforcing: 100,
        },
        success_rate: SuccessRate {
            minimum_hosts: between(rng, 1, 6) as u32,
            request_volume: between(rng, 0, 20) as u32,
            stdev_factor: between(rng, 500, 2_000) as u32,
            ..OutlierDetection::default().success_rate
        },
        failure_percentage: FailurePercentage {
            threshold: between(rng, 10, 100) as u32,
            enforcing: 100,
            minimum_hosts: between(rng, 0, 6) as u32,
            request_volume: between(rng, 0, 20) as u32,
            ..OutlierDetection::default().failure_percentage
        },
        ..OutlierDetection::default()
    }
}

fn run(seed: u64) {
    let mut rng = SplitMix64::new(seed);
    let config = config(&mut rng);
    let count = between(&mut rng, 1, 12) as usize;
    let stats: Vec<_> = (0..count).map(|_| EndpointStats::default()).collect();
    let address = |index| SocketAddr::from(([10, 0, 0, 1], index as u16));
    let endpoints: Vec<_> = (0..count)
        .map(|index| (address(index), &stats[index]))
        .collect();
    let mut model = Model {
        hosts: (0..count).map(|_| Watched::default()).collect(),
        config: config.clone(),
        swept: 0,
    };
    // How often each fails, of ten.
    let mut moods: Vec<_> = (0..count).map(|_| rng.below(11)).collect();
    let (mut detector, start, mut now) = (OutlierDetector::default(), Instant::now(), 0);
    // What was before an endpoint is first seen does not count.
    _ = detector.advance(Some(&config), &endpoints, start, &mut rng);
    for step in 0..STEPS {
        for (index, host) in model.hosts.iter_mut().enumerate() {
            for _ in 0..rng.below(8) {
                let is_success = rng.below(10) >= moods[index];
                let verdict = match is_success {
                    true => Verdict::Success,
                    false => Verdict::ServerFailure,
                };
                stats[index].begin();
                _ = stats[index].end_as(verdict);
                host.requests.push((now, is_success));
            }
        }
        if rng.below(10) == 0 {
            moods[rng.below(count as u64) as usize] = rng.below(11);
        }
        let at = start + Duration::from_secs(now);
        _ = detector.advance(Some(&config), &endpoints, at, &mut rng);
        model.advance(now);
        let ejected: Vec<_> = stats.iter().map(EndpointStats::is_ejected).collect();
        let expected: Vec<_> = model
            .hosts
            .iter()
            .map(|host| host.ejected.is_some())
            .collect();
        assert_eq!(ejected, expected, "seed {seed}, step {step}, {config:?}");
        let out = ejected.iter().filter(|is_out| **is_out).count();
        // The limit, rounded up: it is looked at before an ejection (gRFC A50).
        let most = (config.max_ejection_percent as usize * count).div_ceil(100);
        assert!(out <= most, "seed {seed}: {out} of {count}, at most {most}");
        now += between(&mut rng, 1, 4);
    }
}

#[test]
fn who_is_ejected_and_for_how_long_is_what_a_look_at_every_request_says() {
    let asked = std::env::var("MESH_PROPERTY_CASES");
    let count = asked.map_or(CASES, |count| count.parse().unwrap());
    for seed in 0..count {
        run(seed);
    }
}
