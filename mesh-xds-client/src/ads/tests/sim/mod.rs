//! Seeded interleavings of everything that can happen: updates, bad and missing resources, errors in
//! their place (xRFC TP3), resources with a time to live, slow types, streams that break with what was
//! on its way, servers that restart and fall back, and a process that starts again with what it has
//! stored.
//!
//! After each step: no route leads to a cluster that is not there, nothing equal is published again,
//! and the servers see only requests by the book. At the end of each run the world is healed, and
//! every client has exactly what it says.

mod invariants;
mod server;
pub(super) mod world;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use mesh_core::{
    rng::{Rng, SplitMix64},
    snapshot::{LazySnapshot, ListenerState, Snapshot, SnapshotReader, pair},
};
use tokio::sync::watch;

use self::{
    server::ServerStream,
    world::{LISTENERS, World},
};
use super::*;
use crate::{
    authority::{Authorities, Effects, Order},
    graph::{Graph, Source, WatchId, Watcher},
};

struct Connection {
    machine: Machine,
    /// The stream, while there is one.
    stream: Option<ServerStream>,
    to_server: VecDeque<Request>,
    to_client: VecDeque<Response>,
    has_response: bool,
}

struct Watched {
    id: WatchId,
    listener: &'static str,
    reader: SnapshotReader,
    published: Option<String>,
    clusters: BTreeMap<String, (watch::Receiver<std::sync::Arc<LazySnapshot>>, String)>,
}

struct Sim {
    rng: SplitMix64,
    world: World,
    graph: Graph,
    authorities: Authorities,
    connections: Vec<Connection>,
    watched: Vec<Watched>,
    next_id: WatchId,
    epoch: u64,
    now: Instant,
    nacks: usize,
    responses: usize,
    restarts: usize,
    /// Listeners that were served after a restart before any stream was made.
    ready_at_once: usize,
    /// Errors in place of resources.
    errors: usize,
    /// Resources whose time to live was over.
    ended: usize,
    /// Answers that closed streams had.
    answers: usize,
}

fn authorities() -> Authorities {
    let mut authorities = Authorities::default();
    authorities.add(None, vec![0, 1]);
    authorities
}

impl Sim {
    fn new(seed: u64, variant: Variant) -> Self {
        let mut rng = SplitMix64::new(seed);
        let connection = || Connection {
            machine: Machine::new(variant, Node::default()),
            stream: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            has_response: false,
        };
        Self {
            world: World::good(&mut rng),
            rng,
            graph: Graph::new("me".into(), "cp".into(), 1),
            authorities: authorities(),
            connections: vec![connection(), connection()],
            watched: Vec::new(),
            next_id: 0,
            epoch: 0,
            now: Instant::now(),
            nacks: 0,
            responses: 0,
            restarts: 0,
            ready_at_once: 0,
            errors: 0,
            ended: 0,
            answers: 0,
        }
    }

    fn step(&mut self) {
        let server = usize::from(self.rng.below(4) == 0);
        match self.rng.below(100) {
            0..10 => {
                let kind = self.world.mutate(&mut self.rng);
                for connection in &mut self.connections {
                    if let Some(stream) = &mut connection.stream {
                        stream.changed(kind);
                    }
                }
            }
            10..13 => self.watch(),
            13 => self.unwatch(),
            14..39 => self.deliver_to_server(server),
            39..64 => self.respond(server),
            64..94 => self.deliver_to_client(server),
            94 => self.close(server),
            95..98 => self.open(server),
            98 if self.rng.below(5) == 0 => self.restart(),
            _ => self.wait(),
        }
        self.turn();
        self.check();
    }

    /// The process starts again with what it has stored, and no stream.
    fn restart(&mut self) {
        self.restarts += 1;
        for server in 0..2 {
            self.close(server);
            let variant = self.connections[server].machine.variant();
            self.connections[server].machine = Machine::new(variant, Node::default());
        }
        let content = crate::store::encode(&self.graph.save(), "cp");
        let stored = crate::store::decode(&content, "cp").expect("it was just written");
        let revived = crate::cache::revive(stored, &DecodeContext::default());
        assert_eq!(revived.errors, [], "only what is good is stored");
        self.graph = Graph::new("me".into(), "cp".into(), 1);
        self.graph.preload(revived.usable);
        self.authorities = authorities();
        let listeners: Vec<_> = self.watched.drain(..).map(|w| w.listener).collect();
        for listener in listeners {
            self.watch_listener(listener);
        }
        self.turn();
        let is_ready = |w: &&Watched| matches!(w.reader.load(), ListenerState::Ready(_));
        self.ready_at_once += self.watched.iter().filter(is_ready).count();
    }

    fn watch(&mut self) {
        if self.watched.len() < 4 {
            let listener = LISTENERS[self.rng.below(3) as usize];
            self.watch_listener(listener);
        }
    }

    fn watch_listener(&mut self, listener: &'static str) {
        let (writer, reader) = pair();
        self.next_id += 1;
        let watcher = Watcher::Client {
            listener: listener.into(),
            authority: "a".into(),
            writer,
        };
        self.graph.add(self.next_id, watcher);
        self.watched.push(Watched {
            id: self.next_id,
            listener,
            reader,
            published: None,
            clusters: BTreeMap::new(),
        });
    }

    fn unwatch(&mut self) {
        if !self.watched.is_empty() {
            let i = self.rng.below(self.watched.len() as u64) as usize;
            let gone = self.watched.remove(i);
            self.graph.remove(gone.id);
        }
    }

    fn deliver_to_server(&mut self, server: usize) {
        let connection = &mut self.connections[server];
        if let Some(stream) = &mut connection.stream
            && let Some(request) = connection.to_server.pop_front()
        {
            stream.receive(&request);
        }
    }

    fn respond(&mut self, server: usize) {
        let mut kinds = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route];
        // Types go their own pace.
        kinds.rotate_left(self.rng.below(4) as usize);
        let connection = &mut self.connections[server];
        let variant = connection.machine.variant();
        if let Some(stream) = &mut connection.stream {
            let mut kinds = kinds.into_iter();
            let response = kinds.find_map(|kind| stream.respond(variant, kind, &self.world));
            connection.to_client.extend(response);
        }
    }

    fn deliver_to_client(&mut self, server: usize) {
        let connection = &mut self.connections[server];
        let Some(response) = connection.to_client.pop_front() else {
            return;
        };
        connection.has_response = true;
        self.responses += 1;
        let context = DecodeContext::default();
        let update = connection
            .machine
            .receive(response, &context, self.graph.cache(), self.now);
        let (orders, reached) = self.authorities.responded(server);
        for authority in reached {
            self.graph.connected(authority.as_deref());
        }
        if let Some(mut update) = update {
            let authorities = &self.authorities;
            let is_asked = |name: &str| authorities.is_asked(server, name);
            update.accepted.retain(|accepted| is_asked(&accepted.name));
            update.rejected.retain(|(name, _)| is_asked(name));
            update.removed.retain(|name| is_asked(name));
            update.errors.retain(|error| is_asked(&error.name));
            self.errors += update.errors.len();
            let source = Source::default();
            self.graph.apply(update, &source, SystemTime::UNIX_EPOCH);
        }
        self.obey(orders);
    }

    fn open(&mut self, server: usize) {
        let connection = &mut self.connections[server];
        if connection.stream.is_none() && connection.machine.has_names() {
            self.epoch += self.rng.below(2);
            connection.stream = Some(ServerStream::new(self.epoch));
            connection.has_response = false;
            connection.machine.stream_opened();
        }
    }

    /// The stream breaks, or the attempt to make one fails.
    fn close(&mut self, server: usize) {
        let connection = &mut self.connections[server];
        if let Some(stream) = connection.stream.take() {
            self.nacks += stream.nacks;
            self.answers += stream.answers;
            connection.machine.stream_closed();
            connection.to_server.clear();
            connection.to_client.clear();
            if connection.has_response {
                return;
            }
        }
        let graph = &self.graph;
        let effects = self
            .authorities
            .failed(server, |kind, name| graph.is_known(kind, name));
        self.take_effects(effects);
    }

    fn wait(&mut self) {
        self.now += Duration::from_secs(self.rng.below(20));
        for server in 0..2 {
            let mut expired = self.connections[server].machine.expire(self.now);
            let authorities = &self.authorities;
            expired
                .missing
                .retain(|(_, name)| authorities.is_asked(server, name));
            expired
                .ended
                .retain(|(_, name)| authorities.is_asked(server, name));
            self.ended += expired.ended.len();
            let source = Source::default();
            self.graph.expire(expired, &source, SystemTime::UNIX_EPOCH);
        }
    }

    fn turn(&mut self) {
        self.graph.collect();
        for change in self.graph.take_changes() {
            match change.is_wanted {
                true => {
                    let effects = self.authorities.subscribe(change.kind, change.name);
                    self.take_effects(effects.expect("a known authority"));
                }
                false => {
                    let orders = self.authorities.unsubscribe(change.kind, change.name);
                    self.obey(orders);
                }
            }
        }
        for connection in &mut self.connections {
            if connection.stream.is_none() {
                continue;
            }
            // The socket has room for a few only.
            while connection.to_server.len() < 3 {
                match connection.machine.poll_request(self.now) {
                    Some(request) => connection.to_server.push_back(request),
                    None => break,
                }
            }
        }
    }

    fn take_effects(&mut self, effects: Effects) {
        self.obey(effects.orders);
        for authority in effects.outages {
            let authority = authority.as_deref();
            self.graph.disconnected(authority, "cp", "it is down");
        }
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Subscribe(server, kind, name) => {
                    self.connections[server].machine.subscribe(kind, name);
                }
                Order::Unsubscribe(server, kind, name) => {
                    self.connections[server].machine.unsubscribe(kind, &name);
                }
            }
        }
    }

    /// Answers that servers have had.
    fn answers(&self) -> usize {
        let open = self.connections.iter().filter_map(|c| c.stream.as_ref());
        self.answers + open.map(|stream| stream.answers).sum::<usize>()
    }

    fn check(&mut self) {
        for watched in &mut self.watched {
            match watched.reader.load() {
                ListenerState::Ready(snapshot) => watched.check(&snapshot),
                ListenerState::Failed(_) | ListenerState::Pending => {
                    watched.published = None;
                    watched.clusters.clear();
                }
            }
        }
    }

    /// Heals the world and lets everything go its way.
    fn settle(&mut self) {
        self.world.heal(&mut self.rng);
        let kinds = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route];
        for connection in &mut self.connections {
            let stream = connection.stream.iter_mut();
            stream.for_each(|stream| kinds.into_iter().for_each(|kind| stream.changed(kind)));
        }
        if self.rng.below(2) == 0 {
            self.close(0);
        }
        self.open(0);
        self.turn();
        for _ in 0..40 {
            for connection in &mut self.connections {
                for kind in kinds {
                    if let Some(stream) = &mut connection.stream {
                        let variant = connection.machine.variant();
                        let response = stream.respond(variant, kind, &self.world);
                        connection.to_client.extend(response);
                    }
                }
            }
            for server in 0..2 {
                while !self.connections[server].to_client.is_empty() {
                    self.deliver_to_client(server);
                    self.turn();
                    self.check();
                }
                while !self.connections[server].to_server.is_empty() {
                    self.deliver_to_server(server);
                    self.turn();
                }
            }
        }
    }

    fn assert_converged(&self, seed: u64) {
        for watched in &self.watched {
            let ListenerState::Ready(snapshot) = watched.reader.load() else {
                panic!("seed {seed}: {} is {:?}", watched.listener, watched.reader);
            };
            let ports: BTreeMap<_, _> = snapshot
                .clusters
                .iter()
                .map(|handle| {
                    let cluster = handle.current.borrow().clone();
                    assert!(cluster.config.is_ok(), "seed {seed}: {:?}", cluster.config);
                    let port = cluster.endpoints[0].address.port();
                    (handle.name.to_string(), port)
                })
                .collect();
            let expected = self.world.expected(watched.listener);
            assert_eq!(ports, expected, "seed {seed}: {}", watched.listener);
        }
    }
}

impl Watched {
    fn check(&mut self, snapshot: &Snapshot) {
        let text = snapshot.routes.to_string();
        let names: Vec<_> = snapshot.clusters.iter().map(|c| c.name.as_str()).collect();
        for part in text
            .split_whitespace()
            .filter(|part| part.starts_with("/c"))
        {
            let cluster = part.trim_start_matches('/').trim_end_matches('*');
            assert!(names.contains(&cluster), "{text} leads beyond {names:?}");
        }
        let published = format!("{} {text}", snapshot.generation);
        if self.published.as_ref() != Some(&published) {
            let before = self.published.replace(published);
            let before = before.as_deref().and_then(|before| before.split_once(' '));
            let is_repeated = before.is_some_and(|(_, before)| before == text);
            assert!(!is_repeated, "published again: {text}");
        }
        let mut clusters = BTreeMap::new();
        for handle in &snapshot.clusters {
            let cluster = handle.current.borrow().clone();
            let addresses: Vec<_> = cluster.endpoints.iter().map(|e| e.address).collect();
            let note = &cluster.resolution_note;
            let text = format!("{:?} {addresses:?} {note:?}", cluster.config);
            let name = handle.name.to_string();
            if let Some((mut before, old)) = self.clusters.remove(&name)
                && before.same_channel(&handle.current)
                && before.has_changed().is_ok_and(|has_changed| has_changed)
            {
                before.mark_unchanged();
                assert_ne!(text, old, "{name} is swapped for its equal");
            }
            let mut seen = handle.current.clone();
            seen.mark_unchanged();
            clusters.insert(name, (seen, text));
        }
        self.clusters = clusters;
    }
}

#[test]
fn the_same_seed_gives_the_same_end() {
    let run = || {
        let mut sim = Sim::new(7, Variant::Incremental);
        for _ in 0..2000 {
            sim.step();
        }
        let last: Vec<_> = sim.watched.iter().map(|w| w.published.clone()).collect();
        (last, sim.nacks, sim.epoch)
    };
    assert_eq!(run(), run());
}
