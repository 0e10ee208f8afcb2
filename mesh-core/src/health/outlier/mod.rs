//! Endpoints that fail more than they should get no requests for a while (gRFC A50; Envoy's outlier
//! detection).
//!
//! Requests count on their endpoint ([`EndpointStats`]); [`OutlierDetector::advance`] reads the counts
//! and sets who is ejected, with no clock of its own: it says when it wants to be called again. It is
//! also to be called when a streak of failures is long enough ([`is_suspicious`]).
//!
//! Where Envoy and gRPC differ: all kinds of detection (Envoy's), the limit of ejected endpoints is
//! looked at before an ejection, so that one always may be (gRPC), a failure percentage ejects from
//! its threshold on (Envoy), and what fails is a 5xx or its gRPC counterpart, not every status but OK
//! (Envoy).

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    config::{Consecutive, OutlierDetection},
    rng::Rng,
    stats::{EndpointStats, STREAK_MAX, Streaks},
};

/// Passive health of one cluster's endpoints over time.
#[derive(Debug, Default)]
pub struct OutlierDetector {
    swept: Option<Instant>,
    hosts: HashMap<SocketAddr, Host>,
}

#[derive(Debug, Default)]
struct Host {
    /// How many times the base time it is ejected for, next time less one.
    multiplier: u32,
    state: HostState,
    /// Counts at the last sweep.
    seen: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
enum HostState {
    #[default]
    Admitted,
    Ejected {
        until: Instant,
    },
    /// One request decides, which has not ended while the counts are these.
    Probing(Counts),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    succeeded: u64,
    failed: u64,
    failed_local: u64,
}

impl Counts {
    fn of(stats: &EndpointStats) -> Self {
        Self {
            succeeded: stats.succeeded(),
            failed: stats.failed(),
            failed_local: stats.failed_local(),
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            succeeded: self.succeeded.saturating_sub(earlier.succeeded),
            failed: self.failed.saturating_sub(earlier.failed),
            failed_local: self.failed_local.saturating_sub(earlier.failed_local),
        }
    }
}

/// Whether a detector should look at an endpoint now.
pub fn is_suspicious(config: &OutlierDetection, stats: &EndpointStats) -> bool {
    let reaches = |(consecutive, streak)| reaches(consecutive, streak);
    stats.is_ejected() || kinds(config, stats.streaks()).into_iter().any(reaches)
}

fn reaches(consecutive: Consecutive, streak: u32) -> bool {
    consecutive.enforcing > 0 && streak >= consecutive.threshold.clamp(1, STREAK_MAX)
}

/// The kinds of failures in a row, with how many there are.
fn kinds(config: &OutlierDetection, streaks: Streaks) -> [(Consecutive, u32); 3] {
    let (server, gateway, local) = if config.split_external_local_origin_errors {
        (streaks.server, streaks.gateway, streaks.local)
    } else {
        (streaks.any, streaks.any_gateway, 0)
    };
    [
        (config.consecutive_5xx, server),
        (config.consecutive_gateway_failure, gateway),
        (config.consecutive_local_origin_failure, local),
    ]
}

/// Requests of one endpoint in one interval.
#[derive(Clone, Copy)]
struct Volume {
    index: usize,
    succeeded: u64,
    failed: u64,
}

impl Volume {
    fn total(self) -> u64 {
        self.succeeded + self.failed
    }

    fn success_rate(self) -> f64 {
        self.succeeded as f64 * 100.0 / self.total() as f64
    }
}

impl OutlierDetector {
    /// Ejects and takes back what is due. Returns when to call again if nothing happens before;
    /// `None` when there is nothing to wait for.
    pub fn advance(
        &mut self,
        config: Option<&OutlierDetection>,
        endpoints: &[(SocketAddr, &EndpointStats)],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Instant> {
        let Some(config) = config else {
            for (_, stats) in endpoints.iter().filter(|(_, stats)| stats.is_ejected()) {
                stats.set_ejected(false);
            }
            *self = Self::default();
            return None;
        };
        self.follow(endpoints);
        self.readmit(config, endpoints, now, rng);
        self.eject_streaks(config, endpoints, now, rng);
        let swept = *self.swept.get_or_insert(now);
        if now >= swept + config.interval {
            self.sweep(config, endpoints, now, rng);
            self.swept = Some(now);
        }
        let next_sweep = self.swept.map(|swept| swept + config.interval);
        let ends = self.hosts.values().filter_map(|host| match host.state {
            HostState::Ejected { until } => Some(until),
            HostState::Admitted | HostState::Probing(_) => None,
        });
        ends.chain(next_sweep).min()
    }

    /// Endpoints come and go.
    fn follow(&mut self, endpoints: &[(SocketAddr, &EndpointStats)]) {
        for (address, stats) in endpoints {
            self.hosts.entry(*address).or_insert_with(|| Host {
                seen: Counts::of(stats),
                ..Host::default()
            });
        }
        if self.hosts.len() > endpoints.len() {
            let known: HashSet<_> = endpoints.iter().map(|(address, _)| *address).collect();
            self.hosts.retain(|address, _| known.contains(address));
        }
    }

    fn host(&mut self, address: &SocketAddr) -> &mut Host {
        self.hosts.entry(*address).or_default()
    }

    /// Ends ejections.
    fn readmit(
        &mut self,
        config: &OutlierDetection,
        endpoints: &[(SocketAddr, &EndpointStats)],
        now: Instant,
        rng: &mut impl Rng,
    ) {
        for (address, stats) in endpoints {
            let host = self.host(address);
            match host.state {
                HostState::Ejected { until } if now >= until => {
                    stats.clear_streaks();
                    if config.single_probe {
                        host.state = HostState::Probing(Counts::of(stats));
                        stats.ask_probe();
                    } else {
                        host.state = HostState::Admitted;
                        stats.set_ejected(false);
                    }
                }
                HostState::Probing(before) => {
                    let since = Counts::of(stats).since(before);
                    if since.failed > 0 {
                        host.eject(config, stats, now, rng);
                    } else if since.succeeded > 0 || !config.single_probe {
                        host.state = HostState::Admitted;
                        stats.set_ejected(false);
                    }
                }
                HostState::Admitted | HostState::Ejected { .. } => {}
            }
        }
    }

    fn eject_streaks(
        &mut self,
        config: &OutlierDetection,
        endpoints: &[(SocketAddr, &EndpointStats)],
        now: Instant,
        rng: &mut impl Rng,
    ) {
        for (address, stats) in endpoints {
            if stats.is_ejected() {
                continue;
            }
            let kinds = kinds(config, stats.streaks());
            let Some((found, _)) = kinds
                .into_iter()
                .find(|(kind, streak)| reaches(*kind, *streak))
            else {
                continue;
            };
            self.try_eject(
                config,
                endpoints.len(),
                (address, stats),
                found.enforcing,
                now,
                rng,
            );
            // The next decision is about as many failures again.
            stats.clear_streaks();
        }
    }

    /// Ejects if the limit and the dice allow it.
    fn try_eject(
        &mut self,
        config: &OutlierDetection,
        total: usize,
        (address, stats): (&SocketAddr, &EndpointStats),
        enforcing: u32,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let is_out = |host: &&Host| !matches!(host.state, HostState::Admitted);
        let ejected = self.hosts.values().filter(is_out).count();
        let percent = ejected as u64 * 100 / total.max(1) as u64;
        if percent >= config.max_ejection_percent.into() || rng.below(100) >= enforcing.into() {
            return;
        }
        self.host(address).eject(config, stats, now, rng);
    }

    /// Looks at the requests since the last sweep.
    fn sweep(
        &mut self,
        config: &OutlierDetection,
        endpoints: &[(SocketAddr, &EndpointStats)],
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let mut responses = Vec::new();
        let mut connections = Vec::new();
        for (index, (address, stats)) in endpoints.iter().enumerate() {
            let counts = Counts::of(stats);
            let host = self.host(address);
            let since = counts.since(std::mem::replace(&mut host.seen, counts));
            let told = since.failed.saturating_sub(since.failed_local);
            if config.split_external_local_origin_errors {
                responses.push(Volume {
                    index,
                    succeeded: since.succeeded,
                    failed: told,
                });
                connections.push(Volume {
                    index,
                    succeeded: since.succeeded + told,
                    failed: since.failed_local,
                });
            } else {
                responses.push(Volume {
                    index,
                    succeeded: since.succeeded,
                    failed: since.failed,
                });
            }
        }
        let (rate, percentage) = (&config.success_rate, &config.failure_percentage);
        let of = |volumes: &[Volume], rate_enforcing: u32, percentage_enforcing: u32| {
            let mut found = Vec::new();
            if rate_enforcing > 0 {
                let slow = by_success_rate(config, volumes);
                found.extend(slow.into_iter().map(|index| (index, rate_enforcing)));
            }
            if percentage_enforcing > 0 {
                let bad = by_failure_percentage(config, volumes);
                found.extend(bad.into_iter().map(|index| (index, percentage_enforcing)));
            }
            found
        };
        let mut found = of(&responses, rate.enforcing, percentage.enforcing);
        found.extend(of(
            &connections,
            rate.enforcing_local_origin,
            percentage.enforcing_local_origin,
        ));
        for (index, enforcing) in found {
            let (address, stats) = &endpoints[index];
            if !stats.is_ejected() {
                self.try_eject(
                    config,
                    endpoints.len(),
                    (address, stats),
                    enforcing,
                    now,
                    rng,
                );
            }
        }
        for host in self.hosts.values_mut() {
            if matches!(host.state, HostState::Admitted) {
                host.multiplier = host.multiplier.saturating_sub(1);
            }
        }
    }
}

impl Host {
    fn eject(
        &mut self,
        config: &OutlierDetection,
        stats: &EndpointStats,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.multiplier = self.multiplier.saturating_add(1);
        let longest = config.max_ejection_time.max(config.base_ejection_time);
        let time = config
            .base_ejection_time
            .saturating_mul(self.multiplier)
            .min(longest);
        let jitter = config.max_ejection_time_jitter.mul_f64(rng.unit());
        let until = now + time.min(EJECTION_TIME_MAX) + jitter.min(EJECTION_TIME_MAX);
        self.state = HostState::Ejected { until };
        stats.set_ejected(true);
    }
}

/// Longest ejection that is understood: longer than a process lives, short enough to add to a time.
const EJECTION_TIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Endpoints whose success rate is far below the mean.
fn by_success_rate(config: &OutlierDetection, volumes: &[Volume]) -> Vec<usize> {
    let config = &config.success_rate;
    let enough = |volume: &&Volume| volume.total() >= u64::from(config.request_volume.max(1));
    let considered: Vec<_> = volumes.iter().filter(enough).collect();
    if considered.is_empty() || considered.len() < config.minimum_hosts as usize {
        return Vec::new();
    }
    let count = considered.len() as f64;
    let rates = || considered.iter().map(|volume| volume.success_rate());
    let mean = rates().sum::<f64>() / count;
    let variance = rates().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    let lowest = mean - variance.sqrt() * f64::from(config.stdev_factor) / 1000.0;
    let slow = considered
        .iter()
        .filter(|volume| volume.success_rate() < lowest);
    slow.map(|volume| volume.index).collect()
}

/// Endpoints that fail too often.
fn by_failure_percentage(config: &OutlierDetection, volumes: &[Volume]) -> Vec<usize> {
    let config = &config.failure_percentage;
    let enough = |volume: &&Volume| volume.total() >= u64::from(config.request_volume.max(1));
    let considered: Vec<_> = volumes.iter().filter(enough).collect();
    if considered.len() < config.minimum_hosts as usize {
        return Vec::new();
    }
    let bad = considered
        .iter()
        .filter(|volume| volume.failed * 100 >= volume.total() * u64::from(config.threshold));
    bad.map(|volume| volume.index).collect()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
