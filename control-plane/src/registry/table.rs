//! All instances, their checks and leases, and what time does to them.
//!
//! Sans-IO: every call says what time it is, and what is to be kept is taken with
//! [`Table::take_records`]. Waiting, probing and storing are done around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::config::HealthStatus;

use super::{
    guard::Guard,
    instance::{CheckKind, CheckState, CheckStatus, Registration, Stored},
    store::Record,
};

/// An instance that deregistered is DRAINING for so long: clients that have not heard of it yet are
/// still answered, and those that have end what they began.
pub const DRAIN: Duration = Duration::from_secs(30);
/// After a restart of the control plane a lease, or a check that waits to be told, gets at least so
/// long: nobody could renew while it was away.
pub const RESTART_GRACE: Duration = Duration::from_secs(30);
/// The output of a check that was not told in time (Consul's words).
const EXPIRED: &str = "TTL expired";

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
pub(super) struct Entry {
    pub(super) registration: Arc<Registration>,
    pub(super) checks: Vec<CheckState>,
    /// When each check that waits to be told is critical, and since when it is.
    clocks: Vec<Clock>,
    /// Why it is draining, if an operator said so.
    pub(super) maintenance: Option<String>,
    /// When the lease ends.
    pub(super) lease_until: Option<Instant>,
    /// When one that deregistered is forgotten.
    pub(super) drained_at: Option<Instant>,
    /// It was lost with too many others, and counts as it did before.
    pub(super) is_kept: bool,
    /// Its lease ended.
    has_expired: bool,
    pub(super) create_index: u64,
    pub(super) modify_index: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    until: Option<Instant>,
    critical_since: Option<Instant>,
}

impl Entry {
    /// The worst of its checks.
    pub(super) fn status(&self) -> CheckStatus {
        let worst = self.checks.iter().map(|check| check.status).max();
        worst.unwrap_or(CheckStatus::Passing)
    }

    /// Checks or lease say that it is lost.
    fn is_lost(&self) -> bool {
        self.has_expired || self.status() == CheckStatus::Critical
    }

    pub(super) fn health(&self) -> HealthStatus {
        if self.maintenance.is_some() || self.drained_at.is_some() {
            HealthStatus::Draining
        } else if self.is_lost() && !self.is_kept {
            HealthStatus::Unhealthy
        } else {
            HealthStatus::Healthy
        }
    }

    pub(super) fn weight(&self) -> u32 {
        let weights = self.registration.weights;
        let weight = match self.status() {
            CheckStatus::Passing => weights.passing,
            CheckStatus::Warning | CheckStatus::Critical => weights.warning,
        };
        weight.max(1)
    }

    fn member(&self) -> Member {
        Member {
            registration: Arc::clone(&self.registration),
            health: self.health(),
            weight: self.weight(),
        }
    }

    fn stored(&self) -> Stored {
        Stored {
            registration: Registration::clone(&self.registration),
            checks: self.checks.clone(),
            maintenance: self.maintenance.clone(),
        }
    }

    /// When something happens to it by itself.
    fn next(&self) -> Option<Instant> {
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

/// Why something asked for was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is no instance of that id.
    Instance(String),
    /// There is no check of that id.
    Check(String),
    /// The check is done by the control plane: it waits for nobody.
    NotTold(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(id) => write!(f, "there is no instance {id:?}"),
            Self::Check(id) => write!(f, "there is no check {id:?}"),
            Self::NotTold(id) => write!(f, "check {id:?} is done by the control plane"),
        }
    }
}

/// All instances.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: BTreeMap<String, Entry>,
    members: Arc<Members>,
    guards: BTreeMap<(String, String), Guard>,
    /// Those that are kept although they seem lost.
    kept: BTreeSet<String>,
    index: u64,
    /// When each service changed last, by name.
    indexes: BTreeMap<String, u64>,
    records: Vec<Record>,
}

impl Table {
    /// A table of what an earlier process knew.
    pub(super) fn restored(stored: Vec<Stored>, now: Instant) -> Self {
        let mut table = Self::default();
        for Stored {
            registration,
            checks,
            maintenance,
        } in stored
        {
            let id = registration.id.clone();
            let lease = registration.lease;
            table.insert(registration, checks, now, RESTART_GRACE);
            if let Some(entry) = table.entries.get_mut(&id) {
                entry.maintenance = maintenance;
                entry.lease_until = lease.map(|lease| now + lease.max(RESTART_GRACE));
            }
            table.publish(&id);
        }
        table.records.clear();
        table
    }

    /// What clients are to see.
    pub(super) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// Grows with everything that can be seen.
    pub(super) fn index(&self) -> u64 {
        self.index.max(1)
    }

    /// The index of the last change to a service; that of all if there is none of that name.
    pub(super) fn index_of(&self, service: &str) -> u64 {
        self.indexes
            .get(service)
            .map_or_else(|| self.index(), |index| *index)
    }

    /// What is to be kept since the last call.
    pub(super) fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// Takes an instance in, in the place of one of the same id. Checks that stay the same keep what
    /// they found, as in Consul.
    pub(super) fn register(&mut self, registration: Registration, now: Instant) {
        let id = registration.id.clone();
        let before = self.entries.get(&id);
        let held = |id: &str| before?.checks.iter().find(|check| check.spec.id == id);
        let states = registration.checks.iter().map(|spec| match held(&spec.id) {
            Some(held) if held.spec == *spec => held.clone(),
            _ => CheckState::new(spec.clone()),
        });
        let checks: Vec<_> = states.collect();
        if let Some(before) = before {
            let is_same = *before.registration == registration && before.drained_at.is_none();
            if is_same {
                self.renew(&id, now);
                return;
            }
            if before.registration.address != registration.address {
                tracing::warn!(
                    id, before = %before.registration.address, now = %registration.address,
                    "an instance took the id of one at another address"
                );
            }
            if before.registration.service != registration.service {
                let other = before.registration.service.clone();
                self.index += 1;
                self.indexes.insert(other, self.index);
            }
        }
        self.kept.remove(&id);
        self.insert(registration, checks, now, Duration::ZERO);
        self.judge(&id, now);
        self.let_go(now);
    }

    fn insert(
        &mut self,
        registration: Registration,
        checks: Vec<CheckState>,
        now: Instant,
        grace: Duration,
    ) {
        let id = registration.id.clone();
        let clocks = checks.iter().map(|check| Clock {
            until: match check.spec.kind {
                CheckKind::Ttl(ttl) => Some(now + ttl.max(grace)),
                _ => None,
            },
            critical_since: (check.status == CheckStatus::Critical).then_some(now),
        });
        let before = self.entries.remove(&id);
        let entry = Entry {
            clocks: clocks.collect(),
            checks,
            lease_until: registration.lease.map(|lease| now + lease),
            create_index: before
                .as_ref()
                .map_or(self.index + 1, |before| before.create_index),
            maintenance: before.and_then(|before| before.maintenance),
            drained_at: None,
            is_kept: false,
            has_expired: false,
            modify_index: 0,
            registration: Arc::new(registration),
        };
        self.entries.insert(id, entry);
    }

    /// Says that an instance with a lease lives; whether there is one.
    pub(super) fn renew(&mut self, id: &str, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        if entry.drained_at.is_some() {
            return false;
        }
        entry.lease_until = entry.registration.lease.map(|lease| now + lease);
        if entry.has_expired {
            entry.has_expired = false;
            self.judge(id, now);
            self.let_go(now);
        }
        true
    }

    /// An instance goes: it drains, and is forgotten after that.
    pub(super) fn deregister(&mut self, id: &str, now: Instant) -> Result<(), Unknown> {
        let unknown = || Unknown::Instance(id.to_owned());
        let entry = self.entries.get_mut(id).ok_or_else(unknown)?;
        if entry.drained_at.is_some() {
            return Err(unknown());
        }
        entry.drained_at = Some(now + DRAIN);
        self.records.push(Record::Delete(id.to_owned()));
        self.touch(id);
        self.publish(id);
        Ok(())
    }

    /// Takes an instance out of the traffic, or back into it.
    pub(super) fn maintain(&mut self, id: &str, reason: Option<String>) -> Result<(), Unknown> {
        let entry = self.known(id)?;
        if entry.maintenance != reason {
            entry.maintenance = reason;
            self.changed(id);
        }
        Ok(())
    }

    fn known(&mut self, id: &str) -> Result<&mut Entry, Unknown> {
        let entry = self.entries.get_mut(id);
        entry
            .filter(|entry| entry.drained_at.is_none())
            .ok_or_else(|| Unknown::Instance(id.to_owned()))
    }

    /// A check that waits to be told is told.
    pub(super) fn tell(
        &mut self,
        check: &str,
        status: CheckStatus,
        output: &str,
        now: Instant,
    ) -> Result<(), Unknown> {
        let (id, at) = self.find_check(check)?;
        let entry = self.known(&id)?;
        let state = &mut entry.checks[at];
        let CheckKind::Ttl(ttl) = state.spec.kind else {
            return Err(Unknown::NotTold(check.to_owned()));
        };
        entry.clocks[at].until = Some(now + ttl);
        if state.set(status, output) {
            self.found(&id, at, now);
        }
        Ok(())
    }

    /// A check that the control plane does has a result. One of a check that is gone, or is another
    /// one now, says nothing.
    pub(super) fn observe(
        &mut self,
        id: &str,
        kind: (&str, &CheckKind),
        result: (CheckStatus, &str),
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let is_same = |state: &CheckState| (&*state.spec.id, &state.spec.kind) == kind;
        let Some(at) = entry.checks.iter().position(is_same) else {
            return;
        };
        if entry.checks[at].observe(result.0, result.1) {
            self.found(id, at, now);
        }
    }

    /// The instance of a check, and which of its checks it is.
    fn find_check(&self, check: &str) -> Result<(String, usize), Unknown> {
        let present = self.entries.iter().filter(|(_, e)| e.drained_at.is_none());
        let found = { present }.find_map(|(id, entry)| {
            let at = entry.checks.iter().position(|c| c.spec.id == check)?;
            Some((id.clone(), at))
        });
        found.ok_or_else(|| Unknown::Check(check.to_owned()))
    }

    /// A check says something else than before.
    fn found(&mut self, id: &str, at: usize, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let since = &mut entry.clocks[at].critical_since;
        match entry.checks[at].status {
            CheckStatus::Critical => _ = since.get_or_insert(now),
            CheckStatus::Passing | CheckStatus::Warning => *since = None,
        }
        self.judge(id, now);
        self.let_go(now);
    }

    /// Decides whether a loss is believed.
    fn judge(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let was_usable = self
            .members
            .get(id)
            .is_some_and(|member| member.health.is_usable());
        let is_kept = match entry.is_lost() && entry.drained_at.is_none() {
            false => false,
            // Nobody ever saw it well.
            true if !was_usable => entry.is_kept,
            true if entry.is_kept => true,
            true => {
                let service = service_of(&entry.registration);
                let usable = self.usable(&service);
                let guard = self.guards.entry(service).or_default();
                !guard.lets_go(usable, now)
            }
        };
        if let Some(entry) = self.entries.get_mut(id) {
            if is_kept && !entry.is_kept {
                tracing::warn!(
                    id,
                    service = entry.registration.service,
                    "too many endpoints of this service were lost at once: this one is kept"
                );
            }
            entry.is_kept = is_kept;
        }
        match is_kept {
            true => self.kept.insert(id.to_owned()),
            false => self.kept.remove(id),
        };
        self.changed(id);
    }

    fn of_service<'t>(
        &'t self,
        service: &'t (String, String),
    ) -> impl Iterator<Item = (&'t String, &'t Entry)> {
        let is_of = move |entry: &&Entry| {
            let registration = &entry.registration;
            (&registration.namespace, &registration.service) == (&service.0, &service.1)
        };
        self.entries.iter().filter(move |(_, entry)| is_of(entry))
    }

    /// How many endpoints of a service clients may use.
    fn usable(&self, service: &(String, String)) -> usize {
        let members = self.of_service(service);
        let usable = members.filter(|(id, _)| {
            self.members
                .get(*id)
                .is_some_and(|member| member.health.is_usable())
        });
        usable.count()
    }

    /// When something happens by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        let of_entries = self.entries.values().filter_map(Entry::next);
        let of_guards = self.guards.values().filter_map(Guard::next);
        of_entries.chain(of_guards).min()
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, now: Instant) {
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
    fn let_go(&mut self, now: Instant) {
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

    fn forget(&mut self, id: &str) {
        self.kept.remove(id);
        self.touch(id);
        self.entries.remove(id);
        Arc::make_mut(&mut self.members).remove(id);
    }

    /// An instance is another one now, for clients, API and store.
    fn changed(&mut self, id: &str) {
        self.touch(id);
        self.publish(id);
        if let Some(entry) = self.entries.get(id).filter(|e| e.drained_at.is_none()) {
            self.records.push(Record::Put(Box::new(entry.stored())));
        }
    }

    fn touch(&mut self, id: &str) {
        self.index += 1;
        let index = self.index;
        if let Some(entry) = self.entries.get_mut(id) {
            entry.modify_index = index;
            self.indexes
                .insert(entry.registration.service.clone(), index);
        }
    }

    fn publish(&mut self, id: &str) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let member = entry.member();
        if self.members.get(id).is_none_or(|held| **held != member) {
            Arc::make_mut(&mut self.members).insert(id.to_owned(), Arc::new(member));
        }
    }
}

fn service_of(registration: &Registration) -> (String, String) {
    (registration.namespace.clone(), registration.service.clone())
}
