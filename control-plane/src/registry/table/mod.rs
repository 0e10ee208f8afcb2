//! All instances, their checks and leases, and what time does to them.
//!
//! Sans-IO: every call says what time it is, and what is to be kept is taken with
//! [`Table::take_records`]. Waiting, probing and storing are done around it.

mod entry;
mod time;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use self::entry::Clock;
pub(in crate::registry) use self::entry::Entry;
pub use self::entry::{Member, Members};
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
pub(in crate::registry) struct Table {
    pub(in crate::registry) entries: BTreeMap<String, Entry>,
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
    pub(in crate::registry) fn restored(stored: Vec<Stored>, now: Instant) -> Self {
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
    pub(in crate::registry) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// Grows with everything that can be seen.
    pub(in crate::registry) fn index(&self) -> u64 {
        self.index.max(1)
    }

    /// The index of the last change to a service; that of all if there is none of that name.
    pub(in crate::registry) fn index_of(&self, service: &str) -> u64 {
        self.indexes
            .get(service)
            .map_or_else(|| self.index(), |index| *index)
    }

    /// What is to be kept since the last call.
    pub(in crate::registry) fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// Takes an instance in, in the place of one of the same id. Checks that stay the same keep what
    /// they found, as in Consul.
    pub(in crate::registry) fn register(&mut self, registration: Registration, now: Instant) {
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
    pub(in crate::registry) fn renew(&mut self, id: &str, now: Instant) -> bool {
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
    pub(in crate::registry) fn deregister(
        &mut self,
        id: &str,
        now: Instant,
    ) -> Result<(), Unknown> {
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
    pub(in crate::registry) fn maintain(
        &mut self,
        id: &str,
        reason: Option<String>,
    ) -> Result<(), Unknown> {
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
    pub(in crate::registry) fn tell(
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
    pub(in crate::registry) fn observe(
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
