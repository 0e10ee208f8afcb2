//! Where snapshots are published and read.
//!
//! Stage 7. One writer per listener, any number of readers. Readers of the request path do not
//! read here: `mesh-tower` follows a [`SnapshotReader`] on a task of its own and swaps a pointer.

use std::{any::Any, fmt, sync::Arc};

use tokio::sync::watch;

use super::Snapshot;
use crate::{ConfigError, name::ClusterName};

/// What is known of a listener.
#[derive(Clone, Debug, Default)]
pub enum ListenerState {
    /// No complete configuration yet, and no error.
    #[default]
    Pending,
    /// In use.
    Ready(Arc<Snapshot>),
    /// There is no configuration to use: every request fails with this.
    Failed(ConfigError),
}

/// A writer and a reader of one listener's snapshots.
pub fn pair() -> (SnapshotWriter, SnapshotReader) {
    let (tx, rx) = watch::channel(ListenerState::Pending);
    (
        SnapshotWriter { tx },
        SnapshotReader {
            rx,
            subscription: None,
            requests: None,
        },
    )
}

/// Publishes the snapshots of one listener.
#[derive(Debug)]
pub struct SnapshotWriter {
    tx: watch::Sender<ListenerState>,
}

impl SnapshotWriter {
    /// Makes `snapshot` current.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.tx.send_replace(ListenerState::Ready(snapshot));
    }

    /// Reports that there is nothing to use. Does not take away a snapshot unless `drop_current`.
    pub fn fail(&self, error: ConfigError, drop_current: bool) {
        self.tx.send_if_modified(|state| {
            if matches!(state, ListenerState::Ready(_)) && !drop_current {
                return false;
            }
            *state = ListenerState::Failed(error);
            true
        });
    }

    /// Whether every reader is gone.
    pub fn is_closed(&self) -> bool {
        self.tx.is_closed()
    }

    /// Waits until every reader is gone.
    pub async fn closed(&self) {
        self.tx.closed().await;
    }

    /// One more reader.
    pub fn subscribe(&self) -> SnapshotReader {
        SnapshotReader {
            rx: self.tx.subscribe(),
            subscription: None,
            requests: None,
        }
    }
}

/// Reads the snapshots of one listener.
#[derive(Clone)]
pub struct SnapshotReader {
    rx: watch::Receiver<ListenerState>,
    subscription: Option<Arc<dyn Any + Send + Sync>>,
    requests: Option<ClusterRequests>,
}

/// Asks for clusters that no configuration names, because requests do (`cluster_header`).
pub type ClusterRequests = Arc<dyn Fn(ClusterName) + Send + Sync>;

impl SnapshotReader {
    /// Keeps `subscription` alive as long as this reader or a clone of it.
    #[must_use]
    pub fn keep_alive(mut self, subscription: Arc<dyn Any + Send + Sync>) -> Self {
        self.subscription = Some(subscription);
        self
    }

    /// Asks for clusters that requests name in this way; they become part of a snapshot to come.
    #[must_use]
    pub fn with_cluster_requests(mut self, requests: ClusterRequests) -> Self {
        self.requests = Some(requests);
        self
    }

    /// How to ask for a cluster that a request names; `None` where nobody would answer.
    pub fn cluster_requests(&self) -> Option<ClusterRequests> {
        self.requests.clone()
    }

    /// What is current.
    pub fn load(&self) -> ListenerState {
        self.rx.borrow().clone()
    }

    /// Waits for a value that this reader has not seen; `false` when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.rx.changed().await.is_ok()
    }

    /// What is current, and marks it as seen.
    pub fn load_and_mark(&mut self) -> ListenerState {
        self.rx.borrow_and_update().clone()
    }
}

impl fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("state", &*self.rx.borrow())
            .finish()
    }
}
