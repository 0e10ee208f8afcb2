//! The only task: streams, timers and commands in; requests and snapshots out.
//!
//! Stages 1 to 7 in one place, each a synchronous call: the next response is read when every watcher
//! has seen the last one, and dropped its token where it has one. It owns everything above the line and is never waited for by requests. It
//! ends, and the streams with it, when the last handle and the last watch are gone: it holds no
//! sender of its own commands.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::select_all};
use mesh_core::{
    ClusterName,
    balance::LbPolicyFactory,
    config::ClientPosition,
    rng::{Rng, SplitMix64},
    secrets::SecretWriter,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    ads::Response,
    authority::{Authorities, Effects, Order, ServerId},
    bootstrap::{Bootstrap, Server},
    cache::revive,
    connection::{Connection, ConnectionOptions, Event},
    dns::{Lookup, Resolver},
    dump::{ClientDump, Counters, Freshness},
    graph::{Graph, HostQuery, WatchId, Watcher},
    load::Load,
    metrics::{ClientMetrics, MetricsReader},
    notices::Notices,
    resource::{DecodeContext, is_glob_collection},
    store::{Store, StoredResource},
    transport::{StreamStatus, backoff::Backoff},
};

/// Commands taken in one turn before requests go out.
const COMMANDS_PER_TURN_MAX: usize = 1024;

/// From the first change to writing the state: one push is many responses.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// From one writing to the next: a fleet that changes all the time must not keep a disk busy.
const SAVE_PAUSE: Duration = Duration::from_secs(15);

/// What handles ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Watch(WatchId, Watcher),
    Unwatch(WatchId),
    /// A request of this watch names a cluster.
    NameCluster(WatchId, ClusterName),
    Dump(oneshot::Sender<ClientDump>),
}

/// How the client behaves.
#[derive(Clone, Debug)]
pub(crate) struct DriverOptions {
    pub(crate) connection: ConnectionOptions,
    pub(crate) seed: u64,
    pub(crate) state_file: Option<PathBuf>,
    pub(crate) lookup: Lookup,
    /// Policies of the application, by name.
    pub(crate) lb_policies: Vec<(String, Arc<dyn LbPolicyFactory>)>,
    /// The cluster of this process's own service.
    pub(crate) local_cluster: Option<ClusterName>,
    /// The place of this process among all clients.
    pub(crate) client_position: Option<ClientPosition>,
}

/// Where the driver reports to.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) status: watch::Sender<StreamStatus>,
    pub(crate) freshness: watch::Sender<Freshness>,
    pub(crate) metrics: MetricsReader,
}

/// Keeps one client's streams and configuration. Run it on any tokio runtime; the client does
/// nothing without it.
#[must_use = "the client does nothing until the driver runs"]
pub struct Driver {
    commands: mpsc::UnboundedReceiver<Command>,
    reports: Reports,
    node_id: String,
    context: DecodeContext,
    authorities: Authorities,
    connections: Vec<Connection>,
    graph: Graph,
    resolver: Resolver,
    load: Load,
    rng: SplitMix64,
    counters: Counters,
    notices: Notices,
    store: Option<Store>,
    save_at: Option<Instant>,
    saved_at: Option<Instant>,
    /// What to save when this ends, taken before the last watches went.
    pending: Option<Vec<StoredResource>>,
    saving: Option<JoinHandle<()>>,
}

enum Turn {
    Command(Option<Command>),
    Connection(ServerId, Event),
    Resolved(HostQuery, Result<Vec<IpAddr>, String>),
    Save,
}

impl Driver {
    pub(crate) fn new(
        bootstrap: &Bootstrap,
        commands: mpsc::UnboundedReceiver<Command>,
        reports: Reports,
        secrets: SecretWriter,
        options: DriverOptions,
    ) -> Self {
        let mut rng = SplitMix64::new(options.seed);
        let mut servers: Vec<Server> = Vec::new();
        let mut authorities = Authorities::default();
        for (name, list) in bootstrap.authority_servers() {
            let mut ids = Vec::new();
            for server in list {
                let known = servers.iter().position(|known| known == server);
                let id = known.unwrap_or_else(|| {
                    servers.push(server.clone());
                    servers.len() - 1
                });
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            authorities.add(name.map(str::to_owned), ids);
            let on_reachability = name
                .and_then(|name| bootstrap.authorities.get(name))
                .is_some_and(|authority| authority.fallback_on_reachability_only);
            if on_reachability {
                authorities.fall_back_on_reachability(name);
            }
        }
        let first = bootstrap
            .servers
            .first()
            .map(|server| server.uri.to_string());
        let fingerprint: Vec<_> = servers.iter().map(|s| s.uri.to_string()).collect();
        let connect = |server: Server| Connection::start(bootstrap, server, &options.connection);
        let mut graph = Graph::new(
            bootstrap.node.id.clone(),
            first.unwrap_or_default(),
            rng.next_u64(),
        )
        .with_policies(options.lb_policies)
        .with_secrets(secrets);
        if let Some(position) = options.client_position {
            graph = graph.with_client_position(position);
        }
        if let Some(cluster) = options.local_cluster {
            graph = graph.with_local_cluster(cluster, bootstrap.node.locality.clone());
        }
        Self {
            commands,
            reports,
            node_id: bootstrap.node.id.clone(),
            context: DecodeContext::new(&bootstrap.certificate_providers)
                .with_servers(servers.iter()),
            authorities,
            connections: servers.into_iter().map(connect).collect(),
            graph,
            load: Load::new(bootstrap, options.connection.clone(), &mut rng),
            resolver: Resolver::new(
                options.lookup,
                Backoff::new(
                    options.connection.backoff_base,
                    options.connection.backoff_cap,
                ),
            ),
            rng,
            counters: Counters::default(),
            notices: Notices::default(),
            store: options
                .state_file
                .map(|path| Store::new(path, fingerprint.join(","))),
            save_at: None,
            saved_at: None,
            pending: None,
            saving: None,
        }
    }

    /// Runs until the last handle and the last watch are dropped.
    pub async fn run(mut self) {
        self.load().await;
        loop {
            self.turn();
            match self.next_turn().await {
                Turn::Command(None) => {
                    tracing::debug!("nobody uses the xDS client any more");
                    return self.finish().await;
                }
                Turn::Command(Some(command)) => self.take_commands(command),
                Turn::Connection(server, event) => self.take_event(server, event),
                Turn::Resolved(host, answer) => self.graph.resolved(&host, answer),
                Turn::Save => self.save(),
            }
        }
    }

    /// Tells the servers what changed: names first, then as many requests as it takes.
    pub(crate) fn turn(&mut self) {
        // Whoever shuts down drops its watches first: that is no reason to forget on disk.
        if self.save_at.is_some() && self.pending.is_none() && self.graph.has_orphans() {
            self.pending = Some(self.graph.save());
        }
        self.graph.collect();
        let now = SystemTime::now();
        for change in self.graph.take_changes() {
            if !change.is_wanted {
                let orders = self.authorities.unsubscribe(change.kind, change.name);
                self.obey(orders);
                continue;
            }
            if is_glob_collection(&change.name) {
                let reason = "glob collections are not supported; name each resource";
                self.graph
                    .refuse_name(change.kind, &change.name, reason, now);
                continue;
            }
            match self
                .authorities
                .subscribe(change.kind, Arc::clone(&change.name))
            {
                Some(effects) => self.take_effects(effects, ""),
                None => {
                    let reason = "its authority is not among authorities of the bootstrap";
                    self.graph
                        .refuse_name(change.kind, &change.name, reason, now);
                }
            }
        }
        for (host, is_wanted) in self.graph.take_host_changes() {
            match is_wanted {
                true => self.resolver.want(&host),
                false => self.resolver.unwant(&host),
            }
        }
        if let Some(sources) = self.graph.take_load_sources() {
            self.load.update(sources);
        }
        for connection in &mut self.connections {
            connection.flush();
        }
        // The first server stays connected; the others only while they stand in.
        for connection in self.connections.iter_mut().skip(1) {
            connection.close_if_idle();
        }
        if self.store.is_some() && self.graph.take_dirty() && self.save_at.is_none() {
            let pause = self.saved_at.map(|saved| saved + SAVE_PAUSE);
            let soon = Instant::now() + SAVE_AFTER;
            self.save_at = Some(pause.map_or(soon, |pause| pause.max(soon)));
        }
        self.report();
    }

    fn report(&self) {
        self.reports.metrics.store(ClientMetrics {
            servers: self.connections.iter().map(|c| c.metrics.clone()).collect(),
            resources: self.graph.counts(),
            counters: self.counters,
        });
        let mut statuses = self.connections.iter().map(Connection::status);
        let connected = statuses.clone().find(|s| **s == StreamStatus::Connected);
        let is_down = |s: &&StreamStatus| matches!(s, StreamStatus::Disconnected { .. });
        let status = connected.or_else(|| statuses.find(is_down));
        let status = status.unwrap_or(&StreamStatus::Connecting);
        self.reports.status.send_if_modified(|known| {
            let is_changed = known != status;
            known.clone_from(status);
            is_changed
        });
        let freshness = Freshness {
            stored_in_use: self.graph.stored_in_use(),
        };
        self.reports.freshness.send_if_modified(|known| {
            let is_changed = *known != freshness;
            *known = freshness;
            is_changed
        });
    }

    async fn next_turn(&mut self) -> Turn {
        let save_at = self.save_at;
        let save = async {
            match save_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let connections = self.connections.iter_mut().map(|c| c.next().boxed());
        tokio::select! {
            command = self.commands.recv() => Turn::Command(command),
            (event, server, _) = select_all(connections) => Turn::Connection(server, event),
            (host, answer) = self.resolver.next(&mut self.rng) => Turn::Resolved(host, answer),
            () = save => Turn::Save,
        }
    }

    fn take_commands(&mut self, first: Command) {
        self.take_command(first);
        for _ in 1..COMMANDS_PER_TURN_MAX {
            match self.commands.try_recv() {
                Ok(command) => self.take_command(command),
                Err(_) => return,
            }
        }
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Watch(id, watcher) => self.graph.add(id, watcher),
            Command::Unwatch(id) => self.graph.remove(id),
            Command::NameCluster(id, cluster) => self.graph.name_cluster(id, cluster),
            // Whoever asked may have gone.
            Command::Dump(to) => _ = to.send(self.dump()),
        }
    }

    fn take_event(&mut self, server: ServerId, event: Event) {
        let connection = &mut self.connections[server];
        match event {
            Event::Due => connection.connect(),
            Event::Connected(Ok(connected)) => connection.opened(&connected),
            Event::Connected(Err(error)) => self.closed(server, &error),
            Event::Response(response) => self.received(server, response),
            Event::Ended(status) => {
                let error = connection.ended(status.as_ref());
                self.closed(server, &error);
            }
            Event::Hangs => self.closed(server, "no response within 60 s of opening the stream"),
            Event::Writable | Event::Gate => {}
            Event::Expired => {
                let mut expired = connection.machine.expire(Instant::now().into_std());
                let authorities = &self.authorities;
                let is_asked = |name: &str| authorities.is_asked(server, name);
                expired.missing.retain(|(_, name)| is_asked(name));
                expired.ended.retain(|(_, name)| is_asked(name));
                let source = &self.connections[server].source;
                self.graph.expire(expired, source, SystemTime::now());
            }
        }
    }

    pub(crate) fn received(&mut self, server: ServerId, response: Response) {
        let now = Instant::now().into_std();
        let connection = &mut self.connections[server];
        connection.responded();
        let update = connection
            .machine
            .receive(response, &self.context, self.graph.cache(), now);
        let (orders, reached) = self.authorities.responded(server);
        for authority in reached {
            self.graph.connected(authority.as_deref());
        }
        let Some(mut update) = update else {
            return self.obey(orders);
        };
        for accepted in &update.accepted {
            let fields = &accepted.ignored;
            self.counters.ignored_fields += fields.len() as u64;
            self.notices.tell(update.kind, &accepted.name, fields);
        }
        let updates = &mut self.connections[server].metrics.updates;
        let updates = updates.entry(update.kind.type_url()).or_default();
        updates.valid += update.accepted.len() as u64;
        updates.invalid += update.rejected.len() as u64;
        self.counters.updates_valid += update.accepted.len() as u64;
        self.counters.updates_invalid += update.rejected.len() as u64;
        if update.nack.is_some() {
            self.counters.nacks += 1;
            self.connections[server].last_nack.clone_from(&update.nack);
        }
        let authorities = &self.authorities;
        let is_asked = |name: &str| authorities.is_asked(server, name);
        update.accepted.retain(|accepted| is_asked(&accepted.name));
        update.rejected.retain(|(name, _)| is_asked(name));
        update.errors.retain(|error| is_asked(&error.name));
        update.removed.retain(|name| is_asked(name));
        let source = &self.connections[server].source;
        self.graph.apply(update, source, SystemTime::now());
        self.obey(orders);
    }

    /// Puts the caller in the place of the first server.
    #[cfg(feature = "test-util")]
    pub(crate) fn open_loopback(&mut self) -> mpsc::Receiver<crate::ads::Request> {
        self.connections[0].open_loopback()
    }

    /// Takes the commands that wait.
    #[cfg(feature = "test-util")]
    pub(crate) fn take_waiting(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.take_command(command);
        }
    }

    /// The attempt has failed or the stream has ended.
    fn closed(&mut self, server: ServerId, error: &str) {
        if self.connections[server].closed(error, &mut self.rng) {
            return;
        }
        self.counters.server_failures += 1;
        let graph = &self.graph;
        let effects = self
            .authorities
            .failed(server, |kind, name| graph.is_known(kind, name));
        self.take_effects(effects, error);
    }

    fn take_effects(&mut self, effects: Effects, error: &str) {
        self.obey(effects.orders);
        for authority in effects.outages {
            let servers: Vec<_> = self
                .authorities
                .servers(authority.as_deref())
                .iter()
                .map(|server| self.connections[*server].server.uri.to_string())
                .collect();
            let servers = servers.join(", ");
            self.graph
                .disconnected(authority.as_deref(), &servers, error);
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

    fn dump(&self) -> ClientDump {
        ClientDump {
            node_id: self.node_id.clone(),
            servers: self.connections.iter().map(Connection::dump).collect(),
            resources: self.graph.dump(),
            counters: self.counters,
        }
    }

    /// Takes over what an earlier run knew.
    async fn load(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let place = store.path().display().to_string();
        let loaded = tokio::task::spawn_blocking(move || store.load()).await;
        let resources = match loaded {
            Ok(Ok(Some(resources))) => resources,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::warn!(file = place, error, "the stored state is not used");
                return;
            }
            Err(error) => {
                tracing::warn!(file = place, %error, "the stored state is not used");
                return;
            }
        };
        let total = resources.len();
        let revived = revive(resources, &self.context);
        for error in &revived.errors {
            tracing::warn!(file = place, %error, "a stored resource is not used");
        }
        let usable = revived.usable.len();
        tracing::info!(
            file = place,
            total,
            usable,
            "state of an earlier run is at hand"
        );
        self.graph.preload(revived.usable);
    }

    /// Writes the state on a thread that may wait; one at a time.
    fn save(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        if self.saving.as_ref().is_some_and(|task| !task.is_finished()) {
            self.save_at = Some(Instant::now() + SAVE_AFTER);
            return;
        }
        self.save_at = None;
        self.saved_at = Some(Instant::now());
        self.pending = None;
        let resources = self.graph.save();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            write_state(&store, &resources);
        }));
    }

    async fn finish(mut self) {
        self.load.finish().await;
        if let Some(task) = self.saving.take() {
            // Its error is in the log.
            _ = task.await;
        }
        if let (Some(store), Some(_)) = (self.store.clone(), self.save_at) {
            let resources = self.pending.take().unwrap_or_else(|| self.graph.save());
            let write = move || write_state(&store, &resources);
            _ = tokio::task::spawn_blocking(write).await;
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("node", &self.node_id)
            .finish_non_exhaustive()
    }
}

fn write_state(store: &Store, resources: &[StoredResource]) {
    let file = store.path().display();
    match store.save(resources) {
        Ok(()) => tracing::debug!(%file, resources = resources.len(), "state saved"),
        Err(error) => tracing::warn!(%file, error, "the state cannot be saved"),
    }
}
