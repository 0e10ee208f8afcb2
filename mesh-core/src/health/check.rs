//! What active health checks make of an endpoint (Envoy's health checker).
//!
//! No I/O: somebody else checks, and tells the outcome.

use std::time::Duration;

use crate::{config::HealthCheck, rng::Rng, stats::CheckedHealth};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The endpoint is well.
    Passed,
    /// It says that it is not.
    Failed,
    /// It says so in a way that needs no second one.
    FailedForGood,
}

/// One endpoint and one check.
#[derive(Clone, Copy, Debug)]
pub struct CheckedEndpoint {
    health: CheckedHealth,
    /// Outcomes in a row that speak against `health`.
    against: u32,
    /// Checks in a row that failed.
    failed: u32,
}

impl Default for CheckedEndpoint {
    /// One that was not checked yet.
    fn default() -> Self {
        Self {
            health: CheckedHealth::Unchecked,
            against: 0,
            failed: 0,
        }
    }
}

impl CheckedEndpoint {
    /// Takes the outcome of a check; the health since.
    pub fn observe(&mut self, config: &HealthCheck, outcome: CheckOutcome) -> CheckedHealth {
        let passed = outcome == CheckOutcome::Passed;
        self.failed = if passed {
            0
        } else {
            self.failed.saturating_add(1)
        };
        let (said, threshold) = match outcome {
            CheckOutcome::Passed => (CheckedHealth::Healthy, config.healthy_threshold),
            CheckOutcome::Failed => (CheckedHealth::Unhealthy, config.unhealthy_threshold),
            CheckOutcome::FailedForGood => (CheckedHealth::Unhealthy, 1),
        };
        if said == self.health {
            self.against = 0;
            return self.health;
        }
        self.against += 1;
        // The first check of all decides by itself.
        if self.against >= threshold || self.health == CheckedHealth::Unchecked {
            self.health = said;
            self.against = 0;
        }
        self.health
    }

    /// The pause before the next check.
    pub fn pause(&self, config: &HealthCheck, rng: &mut impl Rng) -> Duration {
        let interval = match config.unhealthy_interval {
            Some(interval) if self.failed > 0 => interval,
            _ => config.interval,
        };
        let percent = f64::from(config.interval_jitter_percent) / 100.0;
        let jitter = config.interval_jitter.mul_f64(rng.unit());
        interval + interval.mul_f64(percent * rng.unit()) + jitter
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::HealthCheckKind, rng::SplitMix64};
    use CheckOutcome::{Failed, FailedForGood, Passed};
    use CheckedHealth::{Healthy, Unhealthy};

    fn config() -> HealthCheck {
        let kind = HealthCheckKind::Tcp {
            send: Vec::new(),
            receive: Vec::new(),
        };
        HealthCheck {
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            ..HealthCheck::new(Duration::from_secs(1), Duration::from_secs(10), kind)
        }
    }

    fn after(outcomes: &[CheckOutcome]) -> Vec<CheckedHealth> {
        let mut endpoint = CheckedEndpoint::default();
        let outcomes = outcomes.iter();
        outcomes
            .map(|outcome| endpoint.observe(&config(), *outcome))
            .collect()
    }

    #[test]
    fn the_first_check_decides_and_later_ones_by_thresholds() {
        assert_eq!(after(&[Passed]), [Healthy]);
        assert_eq!(after(&[Failed]), [Unhealthy]);
        let seen = after(&[Passed, Failed, Failed, Passed, Failed, Failed, Failed]);
        assert_eq!(
            seen[..6],
            [Healthy; 6],
            "a success between them starts anew"
        );
        assert_eq!(seen[6], Unhealthy);
        let seen = after(&[Failed, Passed, Failed, Passed, Passed]);
        assert_eq!(seen, [Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy]);
    }

    #[test]
    fn a_clear_answer_needs_no_second_one() {
        assert_eq!(after(&[Passed, FailedForGood]), [Healthy, Unhealthy]);
    }

    #[test]
    fn pauses_have_their_jitter_and_are_others_while_checks_fail() {
        let config = HealthCheck {
            unhealthy_interval: Some(Duration::from_secs(1)),
            interval_jitter: Duration::from_secs(2),
            interval_jitter_percent: 10,
            ..config()
        };
        let mut rng = SplitMix64::new(1);
        let mut endpoint = CheckedEndpoint::default();
        endpoint.observe(&config, Passed);
        for _ in 0..100 {
            let pause = endpoint.pause(&config, &mut rng).as_secs_f64();
            assert!((10.0..13.0).contains(&pause), "{pause}");
        }
        endpoint.observe(&config, Failed);
        assert!(endpoint.pause(&config, &mut rng) < Duration::from_millis(3_100));
    }
}
