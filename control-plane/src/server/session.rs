//! What one client gets, and in which order. Sans-IO: the clock comes in, responses are taken out
//! one by one, each made from the newest world at the moment when there is room for it.
//!
//! A change goes out in the order of references: secrets, clusters, endpoints; then, when the
//! client has accepted those, what refers to them: listeners and routes; last, when the client has
//! accepted those too, what is gone (make before break). Every wait is bounded, so that a client
//! that never answers gets everything all the same. The same holds for a client that comes back with
//! what it had of an earlier stream, but for an Envoy that gets everything in state of the world: what
//! it has of old cannot be said beside what is new.

use std::{
    collections::BTreeSet,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Heard, Kept, Variant, View, fit::message_max, sent::State, wire::Response};
use crate::{
    cache::{Changes, Client, Resource, ResourceType, World},
    encode::ClientClass,
};

/// Listeners and routes wait no longer than this for the clusters and endpoints of the same change.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(1);
/// What is gone stays with the client no longer than this after a change.
pub(super) const REMOVAL_MAX: Duration = Duration::from_secs(5);
/// A client that accepted everything, but still subscribes to something that is gone, gets so long
/// to end that: it may be waiting for what takes its place.
pub(super) const UNSUBSCRIBE_TIME: Duration = Duration::from_millis(500);

/// The rules and the state of one stream.
pub(crate) struct Session<V> {
    variant: V,
    client: Option<Client>,
    world: Option<Arc<World>>,
    /// The client's own certificate.
    leaf: Option<Arc<Resource>>,
    /// Types for which an answer may be due.
    dirty: BTreeSet<ResourceType>,
    hold: Option<Hold>,
    removal: Option<Removal>,
    /// The client has something from an earlier stream, of which it was not told anything yet.
    inherits: bool,
    /// The last world that the client has answered in full.
    settled: u64,
}

/// Listeners and routes wait.
struct Hold {
    until: Instant,
    /// Clusters whose endpoints Envoy will ask for before it uses them.
    clusters: BTreeSet<String>,
}

/// What is gone waits.
struct Removal {
    /// At the latest.
    by: Instant,
    /// As soon as that, if nothing happens until then.
    at: Option<Instant>,
    is_due: bool,
}

impl<V: Variant> Default for Session<V> {
    fn default() -> Self {
        Self {
            variant: V::default(),
            client: None,
            world: None,
            leaf: None,
            dirty: BTreeSet::new(),
            hold: None,
            removal: None,
            inherits: false,
            settled: 0,
        }
    }
}

fn refers(kind: ResourceType) -> bool {
    matches!(kind, ResourceType::Listener | ResourceType::Route)
}

impl<V: Variant> Session<V> {
    /// The client says who it is, once a stream.
    pub(super) fn introduce(&mut self, client: Client) {
        self.client = Some(client);
    }

    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    pub(super) fn variant(&self) -> &V {
        &self.variant
    }

    pub(super) fn world(&self) -> Option<&Arc<World>> {
        self.world.as_ref()
    }

    /// The generation of the last world that the client has answered in full.
    pub(super) fn settled(&self) -> u64 {
        self.settled
    }

    /// There is a newer world.
    pub(super) fn world_changed(&mut self, world: Arc<World>, now: Instant) {
        let before = self.world.as_ref().map(|world| world.generation);
        if before.is_some_and(|before| before >= world.generation) {
            return;
        }
        // Generations that this client did not see are unknown to the newest.
        let is_next = before.is_some_and(|before| before + 1 == world.generation);
        let changes = world.changes.as_ref().filter(|_| is_next);
        let touched = ResourceType::ALL
            .into_iter()
            .filter(|kind| changes.is_none_or(|changes| self.is_touched(*kind, changes)));
        let touched: Vec<_> = touched.collect();
        self.world = Some(world);
        let is_for_nobody = touched.is_empty();
        self.dirty.extend(touched);
        if before.is_none() || is_for_nobody {
            return;
        }
        self.begin_waits(now);
    }

    /// Something may be new, and something gone.
    fn begin_waits(&mut self, now: Instant) {
        // Bounds count from the first change that waits.
        let (until, by) = (now + HOLD_MAX, now + REMOVAL_MAX);
        self.hold.get_or_insert_with(|| Hold {
            until,
            clusters: BTreeSet::new(),
        });
        match &mut self.removal {
            // What is newly gone begins a wait of its own.
            Some(removal) if removal.is_due => {
                *removal = Removal {
                    by,
                    at: None,
                    is_due: false,
                }
            }
            Some(removal) => removal.at = None,
            none => {
                *none = Some(Removal {
                    by,
                    at: None,
                    is_due: false,
                });
            }
        }
    }

    fn is_touched(&self, kind: ResourceType, changes: &Changes) -> bool {
        let (Some(client), Some((names, is_wildcard))) =
            (&self.client, self.variant.subscriptions().subscribed(kind))
        else {
            return false;
        };
        is_wildcard && changes.touches_any(kind)
            || names.iter().any(|name| changes.touches(client, kind, name))
    }

    /// The client's certificate was made, or made anew.
    pub(super) fn leaf_changed(&mut self, leaf: Option<Arc<Resource>>) {
        self.leaf = leaf;
        self.dirty.insert(ResourceType::Secret);
    }

    /// Applies a request; what it says.
    pub(super) fn hear(&mut self, request: V::Request) -> Option<Heard> {
        let heard = self.variant.hear(request)?;
        if heard.is_changed {
            self.dirty.insert(heard.kind);
        }
        self.inherits |= heard.inherits;
        // Something happened: the client may end subscriptions next.
        if let Some(removal) = &mut self.removal {
            removal.at = None;
        }
        Some(heard)
    }

    /// The generation that is answered in full, if there is nothing to do until something happens.
    pub(super) fn rest(&mut self) -> Option<u64> {
        let generation = self.world.as_ref()?.generation;
        let is_settled = self.is_settled();
        if is_settled {
            self.settled = generation;
        }
        is_settled.then_some(generation)
    }

    /// When [`next`](Self::next) must be asked again although nothing happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let hold = self.hold.as_ref().map(|hold| hold.until);
        let removal = self.removal.as_ref();
        let removal = removal.map(|removal| removal.at.unwrap_or(removal.by).min(removal.by));
        hold.into_iter().chain(removal).min()
    }

    /// The next response, if one is due now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Response> {
        let world = Arc::clone(self.world.as_ref()?);
        self.client.as_ref()?;
        if mem::take(&mut self.inherits) {
            // The client has another world than this, as if it had changed now.
            self.begin_waits(now);
        }
        loop {
            while let Some(kind) = self.next_kind() {
                match self.answer(kind, &world) {
                    Some(response) => {
                        self.sent(&response);
                        return Some(response);
                    }
                    None => drop(self.dirty.remove(&kind)),
                }
            }
            if !self.advance(now) {
                break;
            }
        }
        if self.is_settled() {
            self.settled = world.generation;
        }
        None
    }

    /// The next type to look at: what is referred to first, removals in the other direction.
    fn next_kind(&self) -> Option<ResourceType> {
        if self.removal.as_ref().is_some_and(|removal| removal.is_due) {
            return self.dirty.last().copied();
        }
        let mut kinds = self.dirty.iter().copied();
        kinds.find(|kind| self.hold.is_none() || !refers(*kind))
    }

    fn answer(&mut self, kind: ResourceType, world: &World) -> Option<Response> {
        let client = self.client.as_ref()?;
        let view = View {
            world,
            client,
            leaf: self.leaf.as_ref(),
            message_max: message_max(client.class),
        };
        let keeps_removed = self.removal.as_ref().is_some_and(|removal| !removal.is_due);
        self.variant.answer(kind, &view, keeps_removed)
    }

    /// Notes what a response means for others.
    fn sent(&mut self, response: &Response) {
        let is_envoy = self.client.as_ref().map(|client| client.class) == Some(ClientClass::Envoy);
        if response.kind != ResourceType::Cluster || !is_envoy {
            return;
        }
        let names: Vec<_> = response.resources.iter().map(|r| r.name.clone()).collect();
        self.variant.subscriptions_mut().endpoints_again(&names);
        self.dirty.insert(ResourceType::Endpoints);
        if let Some(hold) = &mut self.hold {
            hold.clusters.extend(names);
        }
    }

    /// Ends a wait that is over; whether there is more to look at now.
    fn advance(&mut self, now: Instant) -> bool {
        if let Some(hold) = &self.hold {
            if now < hold.until && self.waits_for_references(hold) {
                return false;
            }
            self.hold = None;
            return true;
        }
        let kept = self.variant.subscriptions().kept();
        let is_answered = !self.is_outstanding();
        let Some(removal) = &mut self.removal else {
            return false;
        };
        if removal.is_due || kept == Kept::Nothing {
            // All is told, or there was nothing to tell.
            self.removal = None;
            return false;
        }
        let at = match kept {
            _ if now >= removal.by => now,
            _ if !is_answered => return false,
            Kept::ByName => *removal.at.get_or_insert(now + UNSUBSCRIBE_TIME),
            Kept::ByWildcard | Kept::Nothing => now,
        };
        if now < at {
            return false;
        }
        removal.is_due = true;
        self.dirty.extend(ResourceType::ALL);
        true
    }

    /// Whether the client has still to accept what listeners and routes may refer to.
    fn waits_for_references(&self, hold: &Hold) -> bool {
        let subscriptions = self.variant.subscriptions();
        let is_outstanding = subscriptions
            .sent()
            .any(|(kind, sent)| !refers(kind) && sent.is_outstanding());
        // Envoy asks for the endpoints of a new cluster by itself, and cannot use it without.
        let endpoints = subscriptions
            .sent()
            .find(|(kind, _)| *kind == ResourceType::Endpoints);
        let is_warm = |name: &String| {
            endpoints
                .as_ref()
                .and_then(|(_, sent)| sent.get(name))
                .is_some_and(|held| held.state != State::Pending)
        };
        let clusters = subscriptions.subscribed(ResourceType::Cluster);
        let is_wildcard = clusters.is_some_and(|(_, is_wildcard)| is_wildcard);
        is_outstanding || is_wildcard && !hold.clusters.iter().all(is_warm)
    }

    fn is_outstanding(&self) -> bool {
        let mut sent = self.variant.subscriptions().sent();
        sent.any(|(_, sent)| sent.is_outstanding())
    }

    fn is_settled(&self) -> bool {
        self.dirty.is_empty()
            && self.hold.is_none()
            && self.removal.is_none()
            && !self.is_outstanding()
    }
}
