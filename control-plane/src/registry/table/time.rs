//! What time does to instances: checks that were not told, leases that end, those that are forgotten.

use std::{collections::BTreeSet, time::Instant};

use super::{Entry, Table, service_of};
use crate::registry::{guard::Guard, instance::CheckStatus, store::Record};

/// The output of a check that was not told in time (Consul's words).
const EXPIRED: &str = "TTL expired";

impl Table {
    /// When something happens by itself.
    pub(in crate::registry) fn next(&self) -> Option<Instant> {
        let of_entries = self.entries.values().filter_map(Entry::next);
        let of_guards = self.guards.values().filter_map(Guard::next);
        of_entries.chain(of_guards).min()
    }

    /// Does what is due.
    pub(in crate::registry) fn advance(&mut self, now: Instant) {
        let is_due = |entry: &Entry| entry.next().is_some_and(|at| at <= now);
        let due: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_due(entry))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.advance_one(&id, now);
        }
        self.let_go(now);
    }

    fn advance_one(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_past(entry.drained_at) {
            self.forget(id);
        }
        let Some(entry) = self.entries.get_mut(id).filter(|e| e.drained_at.is_none()) else {
            return;
        };
        let mut expired = Vec::new();
        for (at, (check, clock)) in entry.checks.iter_mut().zip(&entry.clocks).enumerate() {
            if is_past(clock.until) && check.status != CheckStatus::Critical {
                check.set(CheckStatus::Critical, EXPIRED);
                expired.push(at);
            }
        }
        for at in expired {
            self.found(id, at, now);
        }
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if is_past(entry.lease_until) && !entry.has_expired {
            entry.has_expired = true;
            self.judge(id, now);
        }
        self.reap(id, now);
    }

    /// Forgets an instance whose lease ended, or that was critical for as long as it said.
    fn reap(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.entries.get(id).filter(|entry| !entry.is_kept) else {
            return;
        };
        let mut checks = entry.checks.iter().zip(&entry.clocks);
        let is_critical_for_long = checks.any(|(check, clock)| {
            let since = clock.critical_since.zip(check.spec.deregister_after);
            check.status == CheckStatus::Critical
                && since.is_some_and(|(since, after)| since + after <= now)
        });
        if entry.has_expired || is_critical_for_long {
            tracing::info!(
                id,
                service = entry.registration.service,
                reason = if entry.has_expired {
                    "its lease ended"
                } else {
                    "it was critical for long"
                },
                "an instance was removed"
            );
            self.records.push(Record::Delete(id.to_owned()));
            self.forget(id);
        }
    }

    /// Lets those go that were kept, where most others are seen again.
    pub(super) fn let_go(&mut self, now: Instant) {
        let kept = self.kept.iter().filter_map(|id| self.entries.get(id));
        let services: BTreeSet<_> = kept.map(|entry| service_of(&entry.registration)).collect();
        for service in &services {
            let present = self
                .of_service(service)
                .filter(|(_, entry)| entry.drained_at.is_none());
            let (mut all, mut lost, mut kept) = (0, 0, Vec::new());
            for (id, entry) in present {
                all += 1;
                lost += usize::from(entry.is_lost());
                kept.extend(entry.is_kept.then(|| id.clone()));
            }
            let guard = self.guards.entry(service.clone()).or_default();
            if !guard.is_calm(lost, all, now) {
                continue;
            }
            for id in kept {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.is_kept = false;
                }
                self.kept.remove(&id);
                self.changed(&id);
                self.reap(&id, now);
            }
        }
        self.guards
            .retain(|_, guard| guard.next().is_some_and(|at| at > now));
    }
}
