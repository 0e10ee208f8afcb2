//! One instance, and what its checks and its lease make of it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use mesh_core::config::HealthStatus;

use super::super::instance::{CheckState, CheckStatus, Registration, Stored};

/// An instance as clients are to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it said.
    pub registration: Arc<Registration>,
    /// What EDS says of it.
    pub health: HealthStatus,
    /// Its share; not 0.
    pub weight: u32,
}

/// Everything that clients are to see, by id.
pub type Members = BTreeMap<String, Arc<Member>>;

/// An instance and what is known of it.
#[derive(Debug)]
pub(in crate::registry) struct Entry {
    pub(in crate::registry) registration: Arc<Registration>,
    pub(in crate::registry) checks: Vec<CheckState>,
    /// When each check that waits to be told is critical, and since when it is.
    pub(super) clocks: Vec<Clock>,
    /// Why it is draining, if an operator said so.
    pub(in crate::registry) maintenance: Option<String>,
    /// When the lease ends.
    pub(in crate::registry) lease_until: Option<Instant>,
    /// When one that deregistered is forgotten.
    pub(in crate::registry) drained_at: Option<Instant>,
    /// It was lost with too many others, and counts as it did before.
    pub(in crate::registry) is_kept: bool,
    /// Its lease ended.
    pub(super) has_expired: bool,
    pub(in crate::registry) create_index: u64,
    pub(in crate::registry) modify_index: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    pub(super) until: Option<Instant>,
    pub(super) critical_since: Option<Instant>,
}

impl Entry {
    /// The worst of its checks.
    pub(in crate::registry) fn status(&self) -> CheckStatus {
        let worst = self.checks.iter().map(|check| check.status).max();
        worst.unwrap_or(CheckStatus::Passing)
    }

    /// Checks or lease say that it is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.has_expired || self.status() == CheckStatus::Critical
    }

    pub(in crate::registry) fn health(&self) -> HealthStatus {
        if self.maintenance.is_some() || self.drained_at.is_some() {
            HealthStatus::Draining
        } else if self.is_lost() && !self.is_kept {
            HealthStatus::Unhealthy
        } else {
            HealthStatus::Healthy
        }
    }

    pub(in crate::registry) fn weight(&self) -> u32 {
        let weights = self.registration.weights;
        let weight = match self.status() {
            CheckStatus::Passing => weights.passing,
            CheckStatus::Warning | CheckStatus::Critical => weights.warning,
        };
        weight.max(1)
    }

    pub(super) fn member(&self) -> Member {
        Member {
            registration: Arc::clone(&self.registration),
            health: self.health(),
            weight: self.weight(),
        }
    }

    pub(super) fn stored(&self) -> Stored {
        Stored {
            registration: Registration::clone(&self.registration),
            checks: self.checks.clone(),
            maintenance: self.maintenance.clone(),
        }
    }

    /// When something happens to it by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.drained_at.is_some() {
            return self.drained_at;
        }
        let of_checks = self.checks.iter().zip(&self.clocks);
        let of_checks = of_checks.flat_map(|(check, clock)| {
            let critical = check.status == CheckStatus::Critical;
            let reaped = clock.critical_since.zip(check.spec.deregister_after);
            let reaped = reaped.map(|(since, after)| since + after);
            [
                clock.until.filter(|_| !critical),
                reaped.filter(|_| critical && !self.is_kept),
            ]
        });
        let lease = self.lease_until.filter(|_| !self.has_expired);
        of_checks.flatten().chain(lease).min()
    }
}
