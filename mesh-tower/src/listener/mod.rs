//! The live configuration of one listener: what a request loads.
//!
//! Between stages 7 and 8. A follower task binds each snapshot to the clusters' runtimes and swaps
//! one pointer; requests only load it, and wait only for the first configuration.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::{
    ConfigError,
    shard::Sharded,
    snapshot::{ListenerState, Snapshot, SnapshotReader},
};
use tokio::sync::watch;

use crate::{
    cluster::{ClusterRegistry, ClusterRuntime, MakeEndpoint},
    error::{Error, ErrorKind},
    telemetry::Telemetry,
};

/// How long a request waits for the first configuration, unless its deadline is earlier: gRFC A57
/// gives a resource 15 s to exist; the rest is for the closure of references.
pub const FIRST_CONFIG_WAIT_MAX: Duration = Duration::from_secs(20);

/// A listener in use.
pub(crate) struct ListenerRuntime<M: MakeEndpoint> {
    name: Arc<str>,
    telemetry: Telemetry,
    /// The same for all, but a call's reference count is its thread's own.
    shards: Sharded<ArcSwap<Local<M>>>,
    /// Dropped with the runtime, which ends the follower.
    changed: watch::Sender<()>,
}

/// What a call loads and keeps until it ends.
#[repr(align(64))]
pub(crate) struct Local<M: MakeEndpoint> {
    /// The dialled name.
    pub(crate) name: Arc<str>,
    pub(crate) telemetry: Telemetry,
    live: Arc<Live<M>>,
}

impl<M: MakeEndpoint> Local<M> {
    /// The configuration; `None` when there is none that can be used.
    pub(crate) fn ready(&self) -> Option<&LiveSnapshot<M>> {
        match &*self.live {
            Live::Ready(live) => Some(live),
            Live::Pending | Live::Failed(_) => None,
        }
    }
}

/// What a request sees.
enum Live<M: MakeEndpoint> {
    Pending,
    Failed(ConfigError),
    Ready(LiveSnapshot<M>),
}

/// A snapshot and the runtimes of its clusters, index by index.
pub(crate) struct LiveSnapshot<M: MakeEndpoint> {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) clusters: Box<[Arc<ClusterRuntime<M>>]>,
}

impl<M: MakeEndpoint> Live<M> {
    fn bind(state: ListenerState, clusters: &ClusterRegistry<M>) -> Self {
        match state {
            ListenerState::Pending => Self::Pending,
            ListenerState::Failed(error) => Self::Failed(error),
            ListenerState::Ready(snapshot) => Self::Ready(LiveSnapshot {
                clusters: snapshot
                    .clusters
                    .iter()
                    .map(|handle| clusters.bind(handle))
                    .collect(),
                snapshot,
            }),
        }
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
        let name = Arc::<str>::from(name);
        let live = Arc::new(Live::bind(reader.load_and_mark(), &clusters));
        let shards = Sharded::new(|| {
            ArcSwap::from_pointee(Local {
                name: Arc::clone(&name),
                telemetry: telemetry.clone(),
                live: Arc::clone(&live),
            })
        });
        let (changed, _) = watch::channel(());
        let runtime = Arc::new(Self {
            name,
            telemetry,
            shards,
            changed,
        });
        tokio::spawn(follow(Arc::downgrade(&runtime), reader, clusters));
        runtime
    }

    /// The dialled name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// What is live now.
    pub(crate) fn load(&self) -> Arc<Local<M>> {
        self.shards.local().load_full()
    }

    fn store(&self, live: Live<M>) {
        let live = Arc::new(live);
        for shard in self.shards.iter() {
            shard.store(Arc::new(Local {
                name: Arc::clone(&self.name),
                telemetry: self.telemetry.clone(),
                live: Arc::clone(&live),
            }));
        }
        self.changed.send_replace(());
    }

    /// What is live; waits for the first configuration.
    ///
    /// # Errors
    /// When there is no usable configuration, or none within [`FIRST_CONFIG_WAIT_MAX`].
    pub(crate) async fn ready(&self) -> Result<Arc<Local<M>>, Error> {
        let mut changed = self.changed.subscribe();
        let first = async {
            loop {
                let local = self.load();
                match &*local.live {
                    Live::Ready(_) => return Ok(local),
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
        runtime.store(live);
    }
}
