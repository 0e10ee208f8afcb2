//! The live configuration of one listener: what a request loads.
//!
//! Between stages 7 and 8. A follower task binds each snapshot to the clusters' runtimes and swaps
//! one pointer; requests only load it, and wait only for the first configuration.

mod named;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use http::uri::Authority;
use mesh_core::{
    ConfigError,
    filter::{Filters, RouteSessions},
    rcu::{self, Rcu},
    rng::Rng,
    shard::Sharded,
    snapshot::{ListenerState, Snapshot, SnapshotReader},
};
use tokio::sync::watch;

pub use self::named::NAMED_CLUSTERS_WAITING_MAX;
use self::named::NamedClusters;
use crate::{
    cluster::{BoundClusters, ClusterRegistry, MakeEndpoint},
    error::{Error, ErrorKind},
    rng,
    telemetry::{CallSpan, Code, ListenerMetrics, LocalReplyReason, Telemetry},
};

/// How long a request waits for the first configuration, unless its deadline is earlier: gRFC A57
/// gives a resource 15 s to exist; the rest is for the closure of references.
pub const FIRST_CONFIG_WAIT_MAX: Duration = Duration::from_secs(20);

/// A listener in use. What each call reads is in the first cache line.
#[repr(C, align(64))]
pub(crate) struct ListenerRuntime<M: MakeEndpoint> {
    live: Rcu<Live<M>>,
    telemetry: Telemetry,
    /// The name, where it can be one.
    authority: Option<Sharded<Authority>>,
    name: Arc<str>,
    metrics: Arc<ListenerMetrics>,
    /// What hashes of the channel are made from (gRFC A42 `io.grpc.channel_id`).
    channel: u64,
    named: NamedClusters,
    /// Dropped with the runtime, which ends the follower.
    changed: watch::Sender<()>,
}

/// What a request sees.
pub(crate) enum Live<M: MakeEndpoint> {
    Pending,
    Failed(ConfigError),
    Ready(LiveSnapshot<M>),
}

/// A snapshot and the runtimes of its clusters.
pub(crate) struct LiveSnapshot<M: MakeEndpoint> {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) clusters: BoundClusters<M>,
    /// Whether a route has filters, or sessions that stick: most have none, and need not be asked.
    has_filters: bool,
}

/// How long a request waits for a cluster that it names itself and that no route names, unless its
/// deadline is earlier: as long as for the first configuration.
pub const NAMED_CLUSTER_WAIT_MAX: Duration = FIRST_CONFIG_WAIT_MAX;

impl<M: MakeEndpoint> LiveSnapshot<M> {
    /// The index of a cluster.
    pub(crate) fn find(&self, cluster: &str) -> Option<u32> {
        let clusters = &self.snapshot.clusters;
        let found = clusters.binary_search_by(|held| held.name.as_str().cmp(cluster));
        found.ok().map(|index| index as u32)
    }
}

impl<M: MakeEndpoint> Live<M> {
    /// The configuration; `None` when there is none that can be used.
    pub(crate) fn ready(&self) -> Option<&LiveSnapshot<M>> {
        match self {
            Self::Ready(live) => Some(live),
            Self::Pending | Self::Failed(_) => None,
        }
    }

    fn bind(state: ListenerState, clusters: &Arc<ClusterRegistry<M>>) -> Self {
        match state {
            ListenerState::Pending => Self::Pending,
            ListenerState::Failed(error) => Self::Failed(error),
            ListenerState::Ready(snapshot) => Self::Ready(LiveSnapshot {
                clusters: clusters.bind(&snapshot),
                has_filters: !snapshot.filters.is_empty(),
                snapshot,
            }),
        }
    }
}

impl<M: MakeEndpoint> LiveSnapshot<M> {
    /// How sessions of a route, by its number, stick to endpoints.
    #[inline]
    pub(crate) fn sessions(&self, route: u32) -> Option<&RouteSessions> {
        let filters = self.has_filters.then_some(&self.snapshot.filters)?;
        filters.sessions(route)
    }

    /// What a request meets on this route to this cluster; both by their numbers in the snapshot.
    #[inline]
    pub(crate) fn filters(&self, route: u32, cluster: u32) -> Option<&Filters> {
        let filters = self.has_filters.then_some(&self.snapshot.filters)?;
        filters.route(route)?.of(Some(cluster))
    }
}

impl<M: MakeEndpoint> ListenerRuntime<M> {
    /// Follows `reader`. Must be called inside a tokio runtime.
    pub(crate) fn new(
        name: &str,
        mut reader: SnapshotReader,
        clusters: Arc<ClusterRegistry<M>>,
        telemetry: Telemetry,
    ) -> Arc<Self> {
        let live = Live::bind(reader.load_and_mark(), &clusters);
        let (changed, _) = watch::channel(());
        let named = NamedClusters::new(reader.cluster_requests());
        let runtime = Arc::new(Self {
            named,
            name: name.into(),
            authority: authority(name),
            metrics: telemetry.metrics().listener(name),
            telemetry,
            channel: rng::fork().next_u64(),
            live: Rcu::new(Arc::new(live)),
            changed,
        });
        tokio::spawn(follow(Arc::downgrade(&runtime), reader, clusters));
        runtime
    }

    /// The dialled name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The dialled name, where it can be an authority.
    #[inline]
    pub(crate) fn authority(&self) -> Option<&Sharded<Authority>> {
        self.authority.as_ref()
    }

    /// A number of its own, the same as long as it lives.
    pub(crate) fn channel(&self) -> u64 {
        self.channel
    }

    /// Asks for a cluster that a request names, and waits until a configuration has it.
    ///
    /// # Errors
    /// When nobody can be asked, or there is no answer within [`NAMED_CLUSTER_WAIT_MAX`].
    pub(crate) async fn ready_with(&self, cluster: &str) -> Result<(), Error> {
        let mut changed = self.changed.subscribe();
        let unknown = |why: String| {
            let name = &self.name;
            let reason =
                format!("listener {name}: cluster {cluster:?}, which a header names, {why}");
            Error::new(ErrorKind::NoRoute, reason)
        };
        let _waiting = self
            .named
            .ask(cluster)
            .map_err(|why| unknown(why.to_owned()))?;
        let known = async {
            loop {
                let live = self.live.load();
                if live
                    .ready()
                    .is_some_and(|live| live.find(cluster).is_some())
                {
                    return;
                }
                // The sender lives in `self`, so this waits.
                _ = changed.changed().await;
            }
        };
        let known = tokio::time::timeout(NAMED_CLUSTER_WAIT_MAX, known).await;
        known.map_err(|_| unknown(format!("is not known within {NAMED_CLUSTER_WAIT_MAX:?}")))
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// A call ends before a cluster has it.
    #[cold]
    pub(crate) fn end_locally(&self, span: &mut CallSpan, reason: LocalReplyReason, code: Code) {
        self.metrics.local_reply(reason, code);
        span.local_reply(reason);
        span.end(code);
    }

    /// A call fails before a cluster has it.
    #[cold]
    pub(crate) fn fail(&self, span: &mut CallSpan, error: &Error) {
        let kind = error.kind();
        self.end_locally(span, kind.into(), kind.into());
    }

    /// Looks at what is live now. A call keeps nothing of it.
    #[inline]
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Live<M>) -> R) -> R {
        rcu::read(|reading| look(self.live.get(reading)))
    }

    /// What is live now, to be kept for a while.
    pub(crate) fn load(&self) -> Arc<Live<M>> {
        self.live.load()
    }

    /// What is live; waits for the first configuration.
    ///
    /// # Errors
    /// When there is no usable configuration, or none within [`FIRST_CONFIG_WAIT_MAX`].
    pub(crate) async fn ready(&self) -> Result<Arc<Live<M>>, Error> {
        let mut changed = self.changed.subscribe();
        let first = async {
            loop {
                let live = self.live.load();
                match &*live {
                    Live::Ready(_) => return Ok(live),
                    Live::Failed(error) => return Err(no_config(&self.name, error)),
                    // The sender lives in `self`, so this waits.
                    Live::Pending => _ = changed.changed().await,
                }
            }
        };
        tokio::time::timeout(FIRST_CONFIG_WAIT_MAX, first)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::NoConfig,
                    format!(
                        "listener {}: no configuration within {FIRST_CONFIG_WAIT_MAX:?}; is the \
                         control plane reachable?",
                        self.name
                    ),
                ))
            })
    }
}

fn authority(name: &str) -> Option<Sharded<Authority>> {
    let checked: Authority = name.parse().ok()?;
    // Each from the text: clones would count their references together.
    Some(Sharded::new(|| {
        name.parse().unwrap_or_else(|_| checked.clone())
    }))
}

fn no_config(name: &str, error: &ConfigError) -> Error {
    Error::new(ErrorKind::NoConfig, format!("listener {name}: {error}"))
}

async fn follow<M: MakeEndpoint>(
    runtime: Weak<ListenerRuntime<M>>,
    mut reader: SnapshotReader,
    clusters: Arc<ClusterRegistry<M>>,
) {
    let Some(mut gone) = runtime.upgrade().map(|runtime| runtime.changed.subscribe()) else {
        return;
    };
    loop {
        // A receiver learns of the drop of the runtime; its own changes are sent below.
        tokio::select! {
            alive = gone.changed() => if alive.is_err() { return } else { continue },
            open = reader.changed() => if !open { return },
        }
        let live = Live::bind(reader.load_and_mark(), &clusters);
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let live = Arc::new(live);
        let before = runtime.live.replace(Arc::clone(&live));
        if let (Some(live), Some(before)) = (live.ready(), before.ready()) {
            live.clusters.take_over(&before.clusters);
        }
        runtime.changed.send_replace(());
    }
}
