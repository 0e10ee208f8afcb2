//! The endpoint with the lowest latency among those that are not hot (Prequal, Wydrowski et al., NSDI
//! 2024).
//!
//! Prequal probes random servers and keeps the answers in a pool; the best answer in the pool decides.
//! Here servers answer with each response, and the answer is kept on the endpoint: the pool is a
//! random sample of the endpoints for each request. The rules of the pool hold: an answer is used for
//! a second, requests sent since then are added to it, an endpoint is hot when it has more requests in
//! flight than a quantile of the recent answers, and when all are hot the one with the fewest wins. One
//! that failed counts as hot until half of the penalty is forgotten.
//! Nothing is removed from the pool, because reading an answer again costs nothing, and there is no
//! probe that a server would have to serve. An endpoint of which nothing is known is tried by one
//! request at a time.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    ClusterEndpoint, LoadBalancer, PickContext, PickResult, or_unready, sample::sample_distinct,
};
use crate::{
    config::Prequal as Config,
    observed::{Observation, reported_load},
    rng::Rng,
};

/// Most endpoints that are compared.
const CHOICES_MAX: usize = 16;

/// Answers that the distribution of requests in flight is taken from.
const RECENT: usize = 64;

/// Answers after which the quantile is taken again.
const RECENT_STEP: u32 = 16;

/// In this time the weight of a latency that was measured here falls to 1/e.
const DECAY: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Prequal {
    config: Config,
    /// Requests in flight in the last answers.
    recent: [AtomicU32; RECENT],
    answers: AtomicU32,
    /// With more requests in flight than this an endpoint is hot.
    limit: AtomicU32,
}

/// What is known of an endpoint that could be picked.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    index: usize,
    in_flight: u32,
    latency: Duration,
}

impl Prequal {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            recent: [const { AtomicU32::new(0) }; RECENT],
            answers: AtomicU32::new(0),
            limit: AtomicU32::new(u32::MAX),
        }
    }

    fn candidate(
        &self,
        index: usize,
        endpoint: &ClusterEndpoint,
        now: Option<Instant>,
    ) -> Candidate {
        let own = endpoint.stats.in_flight();
        let observed = endpoint.stats.observed();
        let said = observed
            .zip(now)
            .and_then(|(observed, now)| observed.server_load(now))
            .filter(|said| said.age <= self.config.max_age);
        let measured = observed.and_then(|observed| observed.latency(now, DECAY));
        if let Some(said) = said {
            return Candidate {
                index,
                in_flight: said.in_flight + own.saturating_sub(said.own_in_flight),
                // What it says does not tell of failures and of the way to it.
                latency: said.latency.max(measured.unwrap_or_default()),
            };
        }
        let unknown = match own {
            0 => Duration::ZERO,
            _ => Duration::MAX,
        };
        Candidate {
            index,
            in_flight: own,
            latency: measured.unwrap_or(unknown),
        }
    }

    fn add_recent(&self, in_flight: u32) {
        let count = self.answers.fetch_add(1, Relaxed);
        self.recent[count as usize % RECENT].store(in_flight, Relaxed);
        let known = (count as usize + 1).min(RECENT);
        if (count + 1).is_multiple_of(RECENT_STEP) {
            let mut sorted = [0; RECENT];
            for (copy, recent) in sorted.iter_mut().zip(&self.recent) {
                *copy = recent.load(Relaxed);
            }
            let sorted = &mut sorted[..known];
            let rank = ((known - 1) as f64 * self.config.rif_quantile).round() as usize;
            let (_, limit, _) = sorted.select_nth_unstable(rank);
            self.limit.store(*limit, Relaxed);
        }
    }
}

impl LoadBalancer for Prequal {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        let wanted = self.config.choice_count as usize;
        let (found, count) = sample_distinct::<CHOICES_MAX, _>(
            endpoints,
            context.previous,
            wanted,
            &mut *context.rng,
        );
        let limit = self.limit.load(Relaxed);
        let candidates = found[..count]
            .iter()
            .map(|index| self.candidate(*index, &endpoints[*index], context.now));
        let best = candidates.min_by_key(|candidate| {
            // Few in flight is no recommendation for one that fails.
            let is_failing = candidate.latency >= self.config.failure_penalty / 2;
            let latency = match candidate.in_flight > limit || is_failing {
                false => candidate.latency,
                true => Duration::MAX,
            };
            (latency, is_failing, candidate.in_flight)
        });
        or_unready(best.map(|best| best.index), endpoints)
    }

    fn observes(&self) -> bool {
        true
    }

    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        let now = observation.now;
        let stats = &endpoints[index].stats;
        let (observed, own) = (stats.observe(now), stats.in_flight());
        if !observation.is_success {
            let penalty = observation.latency.max(self.config.failure_penalty);
            observed.add_latency(now, penalty, DECAY);
            // What it says of itself is not what counts then.
            return observed.add_server_load(now, own, penalty, own);
        }
        observed.add_latency(now, observation.latency, DECAY);
        match observation.report.and_then(reported_load) {
            Some((in_flight, latency)) => {
                observed.add_server_load(now, in_flight, latency, own);
                self.add_recent(in_flight);
            }
            None => self.add_recent(own),
        }
    }
}
