//! Who is connected, what each was sent, and what each said of it.
//!
//! Nothing is stored twice: a question is answered from the sessions themselves. Only how far each
//! client has come is kept beside them, so that waiting for all of them costs little.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    Variant,
    sent::{Held, State},
    session::Session,
    status::{ClientStatus, Progress, ResourceStatus, TypeStatus, Unfinished, Waited},
};
use crate::{
    cache::{Client, ResourceType, Version, World},
    class::Classes,
    diagnostic::Diagnostic,
    rotate::Confirmed,
};

/// Clients that one answer names; the others are counted.
const NAMED_MAX: usize = 20;
/// Worlds whose versions can still be waited for.
const HISTORY_MAX: usize = 1_000;

/// Who is connected. Clones share it.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Mutex<BTreeMap<u64, Connected>>,
    next: AtomicU64,
    count: watch::Sender<usize>,
    classes: watch::Sender<Classes>,
    /// Grows whenever a client has come further, or is gone.
    steps: watch::Sender<u64>,
    /// Versions of the last worlds, with their generations.
    history: Mutex<VecDeque<(Version, u64)>>,
}

/// A client, as its stream introduces it.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) session: Arc<dyn Report>,
    /// The last generation that it has answered in full.
    pub(super) settled: Arc<AtomicU64>,
    /// Wakes its stream.
    pub(super) wake: Arc<Notify>,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connected").field(&self.settled).finish()
    }
}

impl Default for Clients {
    fn default() -> Self {
        Self(Arc::new(Inner {
            held: Mutex::default(),
            next: AtomicU64::new(0),
            count: watch::channel(0).0,
            classes: watch::channel(Classes::new()).0,
            steps: watch::channel(0).0,
            history: Mutex::default(),
        }))
    }
}

/// A session that can be asked, and told of a newer world.
pub(super) trait Report: Send + Sync {
    /// There is a newer world; the generation that is answered in full, if its stream has nothing
    /// to do about it.
    fn offer(&self, world: &Arc<World>, now: Instant) -> Option<u64>;

    fn status(&self) -> ClientStatus;

    /// Calls `each` for every resource that the client has.
    fn resources(&self, each: &mut dyn FnMut(Seen<'_>));

    /// What the client is not sent because it could not take it, as operators are told.
    fn withheld(&self) -> Vec<Diagnostic>;

    /// The same as what keeps a version from being done.
    fn unsent(&self) -> Vec<Unfinished>;
}

/// A resource that a client has.
pub(super) struct Seen<'s> {
    client: &'s Client,
    world: &'s World,
    kind: ResourceType,
    name: &'s str,
    held: &'s Held,
}

impl Seen<'_> {
    fn unfinished(&self, text: &str) -> Unfinished {
        Unfinished {
            node: self.client.node_id.clone(),
            class: self.client.class.as_str(),
            resource: format!("{} {}", self.kind.as_str(), self.name),
            text: text.to_owned(),
        }
    }
}

impl<V: Variant> Report for Mutex<Session<V>> {
    fn offer(&self, world: &Arc<World>, now: Instant) -> Option<u64> {
        let mut session = self.lock().unwrap_or_else(PoisonError::into_inner);
        session.world_changed(Arc::clone(world), now.into_std());
        session.rest()
    }

    fn status(&self) -> ClientStatus {
        let session = self.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = session.client() else {
            return ClientStatus::default();
        };
        let is_settled = |world: &&Arc<World>| world.generation == session.settled();
        let text = |version: Version| version.to_string();
        let subscriptions = session.variant().subscriptions();
        let withheld = |kind| {
            let mut withheld = subscriptions.withheld();
            let (_, held) = withheld.find(|(other, _)| *other == kind)?;
            Some(held.message(kind, client))
        };
        let types = subscriptions.sent().map(|(kind, sent)| {
            let states = || sent.entries().values().map(|held| &held.state);
            let status = TypeStatus {
                sent: sent.version().map(text),
                acked: sent.acked().map(text),
                nack: sent.refusal().map(ToString::to_string),
                resources: sent.entries().len(),
                pending: states().filter(|state| **state == State::Pending).count(),
                refused: states()
                    .filter(|state| matches!(state, State::Nacked(_)))
                    .count(),
                withheld: withheld(kind),
            };
            (kind.as_str(), status)
        });
        ClientStatus {
            node: client.node_id.clone(),
            class: client.class.as_str().to_owned(),
            settled: session
                .world()
                .filter(is_settled)
                .map(|world| world.version.to_string()),
            types: types.collect(),
        }
    }

    fn resources(&self, each: &mut dyn FnMut(Seen<'_>)) {
        let session = self.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(client), Some(world)) = (session.client(), session.world()) else {
            return;
        };
        for (kind, sent) in session.variant().subscriptions().sent() {
            for (name, held) in sent.entries() {
                each(Seen {
                    client,
                    world,
                    kind,
                    name,
                    held,
                });
            }
        }
    }

    fn withheld(&self) -> Vec<Diagnostic> {
        let session = self.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = session.client() else {
            return Vec::new();
        };
        let withheld = session.variant().subscriptions().withheld();
        withheld
            .map(|(kind, held)| held.diagnose(kind, client))
            .collect()
    }

    fn unsent(&self) -> Vec<Unfinished> {
        let session = self.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = session.client() else {
            return Vec::new();
        };
        let unsent = session.variant().subscriptions().withheld();
        let unsent = unsent.map(|(kind, held)| Unfinished {
            node: client.node_id.clone(),
            class: client.class.as_str(),
            resource: kind.as_str().to_owned(),
            text: held.message(kind, client),
        });
        unsent.collect()
    }
}

impl Clients {
    /// What clients are not sent because they could not take it.
    pub fn withheld(&self) -> Vec<Diagnostic> {
        let found = self.sessions().into_iter();
        found.flat_map(|session| session.withheld()).collect()
    }

    /// The clients that are connected now.
    pub fn list(&self) -> Vec<ClientStatus> {
        self.sessions()
            .iter()
            .map(|session| session.status())
            .collect()
    }

    /// How many are connected, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }

    /// The classes of all clients that connected since the start, as they come.
    pub fn classes(&self) -> watch::Receiver<Classes> {
        self.0.classes.subscribe()
    }

    /// Every resource that a client has, for which `wants` its type, name and objects.
    pub fn resources(&self, wants: impl Fn(&str, &str, &[String]) -> bool) -> Vec<ResourceStatus> {
        let mut found = BTreeMap::<(ResourceType, String), ResourceStatus>::new();
        for session in self.sessions() {
            session.resources(&mut |seen| {
                let key = (seen.kind, seen.name.to_owned());
                let status = found.entry(key).or_insert_with(|| {
                    let objects = seen.world.objects(seen.client, seen.kind, seen.name);
                    ResourceStatus {
                        r#type: seen.kind.as_str(),
                        name: seen.name.to_owned(),
                        objects: objects.iter().map(ToString::to_string).collect(),
                        ..ResourceStatus::default()
                    }
                });
                status.add(&seen);
            });
        }
        let mut found: Vec<_> = found.into_values().collect();
        found.retain(|status| wants(status.r#type, &status.name, &status.objects));
        found
    }

    /// Which clients have accepted the trust bundle `name` with these roots.
    pub(crate) fn confirmed(&self, name: &str, roots: &[bytes::Bytes]) -> Confirmed {
        let newest = World::trust_version(roots);
        let mut found = Confirmed::default();
        for session in self.sessions() {
            let mut has = None;
            session.resources(&mut |seen| {
                if seen.kind == ResourceType::Secret && seen.name == name {
                    has = Some(seen.held.version == newest && seen.held.state == State::Acked);
                }
            });
            let nodes = match has {
                Some(true) => &mut found.yes,
                Some(false) => &mut found.not_yet,
                None => &mut found.unobserved,
            };
            nodes.insert(session.status().node);
        }
        found
    }

    /// Waits until every client has answered a version, the newest if none is given.
    pub async fn wait(&self, version: Option<Version>, deadline: Instant) -> Waited {
        let mut steps = self.0.steps.subscribe();
        loop {
            steps.mark_unchanged();
            let answer = self.progress(version);
            let is_over = matches!(answer.progress, Progress::Done | Progress::Refused);
            if is_over || timeout_at(deadline, steps.changed()).await.is_err() {
                return answer;
            }
        }
    }

    fn progress(&self, version: Option<Version>) -> Waited {
        let history = self
            .0
            .history
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let newest = history.back().copied();
        let target = match version {
            None => newest,
            Some(version) => history
                .iter()
                .rev()
                .find(|(held, _)| *held == version)
                .copied(),
        };
        drop(history);
        let held = self.lock();
        let clients = held.len();
        let Some((version, generation)) = target else {
            let version = newest
                .map(|(version, _)| version.to_string())
                .unwrap_or_default();
            return Waited::unknown(version, clients);
        };
        let late = held
            .values()
            .filter(|connected| connected.settled.load(Relaxed) < generation)
            .map(|connected| Arc::clone(&connected.session));
        let late: Vec<_> = late.collect();
        drop(held);
        let mut answer = Waited {
            progress: Progress::Waiting,
            version: version.to_string(),
            clients,
            settled: clients - late.len(),
            waiting: late
                .iter()
                .take(NAMED_MAX)
                .map(|session| pending(&**session))
                .collect(),
            refusals: Vec::new(),
        };
        if late.is_empty() {
            answer.refusals = self.refusals();
            answer.progress = match answer.refusals.is_empty() {
                true => Progress::Done,
                false => Progress::Refused,
            };
        }
        answer
    }

    fn refusals(&self) -> Vec<Unfinished> {
        let mut refusals = Vec::new();
        for session in self.sessions() {
            session.resources(&mut |seen| {
                if let State::Nacked(text) = &seen.held.state
                    && refusals.len() < NAMED_MAX
                {
                    refusals.push(seen.unfinished(text));
                }
            });
            let left = NAMED_MAX - refusals.len();
            refusals.extend(session.unsent().into_iter().take(left));
        }
        refusals
    }

    /// A world was published, where new streams find it. Those that are open are told here, and
    /// only those are woken to whom it means something.
    pub(crate) fn published(&self, world: &Arc<World>) {
        let mut history = self
            .0
            .history
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if history.len() == HISTORY_MAX {
            history.pop_front();
        }
        history.push_back((world.version, world.generation));
        drop(history);
        let now = Instant::now();
        let connected: Vec<_> = self.lock().values().cloned().collect();
        for client in connected {
            match client.session.offer(world, now) {
                Some(generation) => client.settled.store(generation, Relaxed),
                None => client.wake.notify_one(),
            }
        }
        self.step();
    }

    pub(super) fn next_number(&self) -> u64 {
        self.0.next.fetch_add(1, Relaxed)
    }

    pub(super) fn introduce(&self, number: u64, client: &Client, connected: Connected) {
        self.lock().insert(number, connected);
        self.recount();
        self.0
            .classes
            .send_if_modified(|classes| classes.insert(client.class));
    }

    pub(super) fn forget(&self, number: u64) {
        let was_there = self.lock().remove(&number).is_some();
        if was_there {
            self.recount();
            self.step();
        }
    }

    /// A client has come further.
    pub(super) fn step(&self) {
        if self.0.steps.receiver_count() > 0 {
            self.0.steps.send_modify(|steps| *steps += 1);
        }
    }

    fn sessions(&self) -> Vec<Arc<dyn Report>> {
        let held = self.lock();
        held.values()
            .map(|connected| Arc::clone(&connected.session))
            .collect()
    }

    fn recount(&self) {
        let count = self.lock().len();
        self.0.count.send_replace(count);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connected>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResourceStatus {
    fn add(&mut self, seen: &Seen<'_>) {
        let version = seen.held.version.to_string();
        *self.versions.entry(version).or_default() += 1;
        match &seen.held.state {
            State::Acked => self.acked += 1,
            State::Nacked(text) => {
                self.nacked += 1;
                if self.refusals.len() < NAMED_MAX {
                    self.refusals.push(seen.unfinished(text));
                }
            }
            State::Pending => {
                self.pending += 1;
                if self.waiting.len() < NAMED_MAX {
                    self.waiting.push(seen.unfinished(""));
                }
            }
        }
    }
}

impl Waited {
    fn unknown(version: String, clients: usize) -> Self {
        Self {
            progress: Progress::Unknown,
            version,
            clients,
            settled: 0,
            waiting: Vec::new(),
            refusals: Vec::new(),
        }
    }
}

/// What a client that is late did not answer.
fn pending(session: &dyn Report) -> Unfinished {
    let mut found = None;
    session.resources(&mut |seen| {
        if found.is_none() && seen.held.state == State::Pending {
            found = Some(seen.unfinished(""));
        }
    });
    found.unwrap_or_else(|| {
        let status = session.status();
        Unfinished {
            node: status.node,
            class: status
                .class
                .parse()
                .map_or("", crate::class::ClientClass::as_str),
            resource: String::new(),
            text: String::new(),
        }
    })
}
