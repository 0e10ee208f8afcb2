//! Instances that register themselves, and what is known of their health.
//!
//! ```text
//! consul (HTTP) ─┐                ┌─► members ─► compile ─► EDS
//! lease (gRPC) ──┼─► table (time) ┤
//! probes ────────┘                └─► store
//! ```
//!
//! [`Registry`] is the handle. The table decides, sans-IO; here it gets its clock, probes, a store
//! and those who wait for changes. What becomes of the instances is compile's.

pub mod consul;
mod guard;
mod instance;
mod lease;
mod probe;
mod report;
mod store;
#[cfg(test)]
mod store_tests;
mod table;
#[cfg(test)]
mod table_tests;
mod tls;

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use mesh_core::rng::{Rng as _, SplitMix64};
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    task::JoinHandle,
    time::{sleep, sleep_until},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::audit::Audit;
use crate::diagnostic::Diagnostic;
pub use guard::{GUARD_ENDPOINTS_MIN, GUARD_SHARE, GUARD_WINDOW};
pub use instance::{
    CheckKind, CheckSpec, CheckState, CheckStatus, CheckTls, OUTPUT_MAX, Place, Registration,
    Schedule, Source, Stored, UNNAMED, Weights,
};
pub(crate) use lease::proto;
pub use lease::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, LeaseService};
pub(crate) use report::word;
pub use report::{CheckReport, InstanceReport};
pub use store::{FileStore, MemoryStore, Record, Store};
use table::Table;
pub use table::{DRAIN, Member, Members, RESTART_GRACE, Unknown};
pub(crate) use tls::ProbeTls;

/// Checks that are done at the same time; the others wait for their turn.
pub const PROBES_MAX: usize = 64;
/// A new check is done within so long, or its interval if that is shorter.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// An interval is longer or shorter by up to this share, so that checks spread.
const JITTER: f64 = 0.1;
/// What is due is done at most this often.
const TICK_MIN: Duration = Duration::from_millis(20);

/// Longest that whoever registers waits until clients are told of it.
pub const SHOWN_WAIT_MAX: Duration = Duration::from_secs(2);

/// All instances that registered. Clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    members: watch::Sender<Arc<Members>>,
    /// What clients are shown; `None` as long as nobody shows them anything.
    shown: watch::Sender<Option<Arc<Members>>>,
    index: watch::Sender<u64>,
    writer: Writer,
    probes: Mutex<BTreeMap<String, Probes>>,
    permits: Semaphore,
    tls: Option<ProbeTls>,
    /// What is due may be due earlier now.
    wake: Arc<Notify>,
    /// Where those who change something are written down; set once.
    audit: OnceLock<Audit>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let probes = self
            .probes
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        probes.values().for_each(Probes::stop);
        self.wake.notify_one();
    }
}

impl Registry {
    /// A registry of what `store` kept, whose checks do not go over TLS. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: impl Store + 'static) -> io::Result<Self> {
        Self::open_with(store, None)
    }

    /// The same, with checks over TLS.
    pub(crate) fn open_with(
        mut store: impl Store + 'static,
        tls: Option<ProbeTls>,
    ) -> io::Result<Self> {
        let table = Table::restored(store.load()?, now());
        let (members, _) = watch::channel(Arc::clone(table.members()));
        let (index, _) = watch::channel(table.index());
        let ids: Vec<_> = table.entries.keys().cloned().collect();
        let wake = Arc::<Notify>::default();
        let registry = Self(Arc::new(Inner {
            table: Mutex::new(table),
            members,
            shown: watch::Sender::new(None),
            index,
            writer: Writer::start(store)?,
            probes: Mutex::default(),
            permits: Semaphore::new(PROBES_MAX),
            tls,
            wake: Arc::clone(&wake),
            audit: OnceLock::new(),
        }));
        for id in ids {
            registry.follow(&id);
        }
        tokio::spawn(keep_time(Arc::downgrade(&registry.0), wake));
        Ok(registry)
    }

    /// Who registers and deregisters is written down there. Counts once.
    pub fn audited(&self, audit: Audit) {
        _ = self.0.audit.set(audit);
    }

    pub(crate) fn audit(&self) -> Audit {
        self.0.audit.get().cloned().unwrap_or_default()
    }

    /// What clients are to see, as it changes.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.0.members.subscribe()
    }

    /// Where whoever shows [`members`](Self::members) to clients says which ones they are shown.
    pub(crate) fn shown(&self) -> watch::Sender<Option<Arc<Members>>> {
        self.0.shown.clone()
    }

    /// Takes an instance in; returns when that is kept, and when clients that ask are told of it, for
    /// which it waits for [`SHOWN_WAIT_MAX`].
    ///
    /// # Errors
    /// When it cannot be kept.
    pub async fn register(&self, registration: Registration) -> io::Result<()> {
        let id = registration.id.clone();
        let ((), kept) = self.change(|table, now| table.register(registration, now));
        self.follow(&id);
        kept.wait().await?;
        self.is_shown(&id).await;
        Ok(())
    }

    async fn is_shown(&self, id: &str) {
        let member = self.0.members.borrow().get(id).cloned();
        let mut shown = self.0.shown.subscribe();
        let is_current = |shown: &Option<Arc<Members>>| match (shown, &member) {
            (Some(shown), Some(member)) => match shown.get(id) {
                Some(held) if Arc::ptr_eq(held, member) => true,
                // It has changed in the meantime.
                _ => self
                    .0
                    .members
                    .borrow()
                    .get(id)
                    .is_none_or(|now| !Arc::ptr_eq(now, member)),
            },
            (None, _) | (_, None) => true,
        };
        _ = tokio::time::timeout(SHOWN_WAIT_MAX, shown.wait_for(is_current)).await;
    }

    /// An instance goes: it drains for [`DRAIN`] and is forgotten then.
    ///
    /// # Errors
    /// When there is no such instance, or that cannot be kept.
    pub async fn deregister(&self, id: &str) -> io::Result<Result<(), Unknown>> {
        let (done, kept) = self.change(|table, now| table.deregister(id, now));
        kept.wait().await?;
        Ok(done)
    }

    /// Takes an instance out of the traffic for a reason, or back into it.
    ///
    /// # Errors
    /// When there is no such instance, or that cannot be kept.
    pub async fn maintain(
        &self,
        id: &str,
        reason: Option<String>,
    ) -> io::Result<Result<(), Unknown>> {
        let (done, kept) = self.change(|table, _| table.maintain(id, reason));
        kept.wait().await?;
        Ok(done)
    }

    /// Tells a check that waits for it what its status is.
    ///
    /// # Errors
    /// When there is no such check.
    pub fn tell(&self, check: &str, status: CheckStatus, output: &str) -> Result<(), Unknown> {
        // A status that is lost with the process is told again.
        self.change(|table, now| table.tell(check, status, output, now))
            .0
    }

    /// Says that an instance with a lease lives; `false` when it must register again.
    pub fn renew(&self, id: &str) -> bool {
        self.change(|table, now| table.renew(id, now)).0
    }

    /// What operators must know: endpoints that are kept although they seem lost.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        report::kept(&self.table())
    }

    /// Every instance, its health and why.
    pub fn report(&self) -> Vec<InstanceReport> {
        report::instances(&self.table(), now())
    }

    /// Waits until what `index_of` says is more than `index`, for this long at most.
    async fn changed(&self, index_of: impl Fn(&Table) -> u64, index: u64, limit: Duration) {
        let mut changes = self.0.index.subscribe();
        let passed = async {
            loop {
                changes.borrow_and_update();
                // One that is less comes of a restart: who waits must begin anew.
                if index_of(&self.table()) != index || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        _ = tokio::time::timeout(limit, passed).await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn namespace(&self, id: &str) -> Option<String> {
        let table = self.table();
        Some(table.entries.get(id)?.registration.namespace.clone())
    }

    /// Changes the table, tells everybody, and has it kept in that order.
    fn change<R>(&self, change: impl FnOnce(&mut Table, Instant) -> R) -> (R, Kept) {
        let mut table = self.table();
        let done = change(&mut table, now());
        let kept = self.0.writer.keep(table.take_records());
        self.0.members.send_if_modified(|held| {
            let is_new = !Arc::ptr_eq(held, table.members());
            if is_new {
                *held = Arc::clone(table.members());
            }
            is_new
        });
        let index = table.index();
        drop(table);
        self.0
            .index
            .send_if_modified(|held| std::mem::replace(held, index) != index);
        self.0.wake.notify_one();
        (done, kept)
    }

    /// Does the checks of an instance from now on, and those that it had before no more.
    fn follow(&self, id: &str) {
        let specs: Vec<_> = match self.table().entries.get(id) {
            Some(entry) => {
                let specs = entry.checks.iter().map(|check| &check.spec);
                let done_here = specs.filter(|spec| spec.kind.schedule().is_some());
                done_here.cloned().collect()
            }
            None => Vec::new(),
        };
        let mut probes = self.0.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.retain(|_, probes| !probes.have_ended());
        if probes.get(id).is_some_and(|probes| probes.specs == specs) {
            return;
        }
        let start = |spec: &CheckSpec| {
            let inner = Arc::downgrade(&self.0);
            tokio::spawn(check(inner, id.to_owned(), spec.clone()))
        };
        let before = match specs.is_empty() {
            true => probes.remove(id),
            false => {
                let tasks = specs.iter().map(start).collect();
                probes.insert(id.to_owned(), Probes { specs, tasks })
            }
        };
        before.iter().for_each(Probes::stop);
    }
}

/// The checks of an instance that are done here.
struct Probes {
    specs: Vec<CheckSpec>,
    tasks: Vec<JoinHandle<()>>,
}

impl Probes {
    fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    fn have_ended(&self) -> bool {
        self.tasks.iter().all(JoinHandle::is_finished)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("instances", &self.table().entries.len())
            .finish()
    }
}

/// The clock of everything here, which a test can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Does what is due, for as long as there is a registry.
async fn keep_time(inner: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        let Some(held) = inner.upgrade() else { return };
        let registry = Registry(held);
        let next = registry.table().next();
        // Not held while waiting: the last handle ends this task.
        drop(registry);
        let Some(at) = next else {
            wake.notified().await;
            continue;
        };
        let is_due = tokio::select! {
            () = wake.notified() => false,
            () = sleep_until(at.max(now() + TICK_MIN).into()) => true,
        };
        if is_due && let Some(held) = inner.upgrade() {
            Registry(held).change(Table::advance);
        }
    }
}

/// Does one check again and again until it is gone.
async fn check(inner: Weak<Inner>, id: String, spec: CheckSpec) {
    let Some(schedule) = spec.kind.schedule() else {
        return;
    };
    let mut random = SplitMix64::new(xxh3_64(format!("{id} {}", spec.id).as_bytes()));
    let mut pause = schedule.interval.min(FIRST_PROBE).mul_f64(random.unit());
    loop {
        sleep(pause).await;
        let Some(held) = inner.upgrade() else { return };
        let registry = Registry(held);
        let Ok(permit) = registry.0.permits.acquire().await else {
            return;
        };
        let Some(namespace) = registry.namespace(&id) else {
            return;
        };
        let tls = registry.0.tls.clone();
        let from = probe::From {
            tls: tls.as_ref(),
            namespace: &namespace,
        };
        let (status, output) = probe::probe(&spec.kind, &from).await;
        drop(permit);
        let is_there = registry.table().entries.contains_key(&id);
        if !is_there {
            return;
        }
        registry.change(|table, now| {
            table.observe(&id, (&spec.id, &spec.kind), (status, &output), now);
        });
        let share = 1.0 + JITTER * (2.0 * random.unit() - 1.0);
        pause = schedule.interval.mul_f64(share);
    }
}

/// Writes to the store on a thread of its own, in the order in which it is told to.
struct Writer(std::sync::mpsc::Sender<Batch>);

type Batch = (Vec<Record>, oneshot::Sender<io::Result<()>>);

/// Something that is being kept.
struct Kept(Option<oneshot::Receiver<io::Result<()>>>);

impl Kept {
    async fn wait(self) -> io::Result<()> {
        match self.0 {
            None => Ok(()),
            Some(kept) => kept
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the store is closed"))),
        }
    }
}

impl Writer {
    fn start(mut store: impl Store + 'static) -> io::Result<Self> {
        let (tx, batches) = std::sync::mpsc::channel::<Batch>();
        let write = move || {
            while let Ok((mut records, done)) = batches.recv() {
                // Those that came meanwhile are written with it: one wait for the disk is enough.
                let mut waiting = vec![done];
                while let Ok((more, done)) = batches.try_recv() {
                    records.extend(more);
                    waiting.push(done);
                }
                let kept = store.append(&records);
                if let Err(error) = &kept {
                    tracing::error!(%error, "registrations cannot be kept: a restart will not know them");
                }
                for done in waiting {
                    let same = kept.as_ref().copied();
                    _ = done.send(same.map_err(|error| io::Error::other(error.to_string())));
                }
            }
        };
        std::thread::Builder::new()
            .name("registry-store".to_owned())
            .spawn(write)?;
        Ok(Self(tx))
    }

    fn keep(&self, records: Vec<Record>) -> Kept {
        if records.is_empty() {
            return Kept(None);
        }
        let (done, kept) = oneshot::channel();
        _ = self.0.send((records, done));
        Kept(Some(kept))
    }
}
