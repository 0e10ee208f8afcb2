//! What an application holds while it watches a resource.
//!
//! Latest value only; dropping the last clone ends the subscription. Clients' listeners are read
//! through [`mesh_core::snapshot::SnapshotReader`] instead.

use std::{fmt, sync::Arc};

use mesh_core::{
    ConfigError,
    config::{InboundListener, TrustBundle},
};
use tokio::sync::watch;

use crate::client::Subscription;

/// What is known of a server's listener.
#[derive(Clone, Debug, Default)]
pub enum InboundState {
    /// Nothing yet, and no error.
    #[default]
    Pending,
    /// In use.
    Ready(Arc<InboundListener>),
    /// There is no configuration to use: the server must not serve.
    Failed(ConfigError),
}

/// Follows a server's listener.
pub type InboundWatch = Watch<InboundState>;

/// Follows a trust bundle; `None` until the first one.
pub type TrustBundleWatch = Watch<Option<Arc<TrustBundle>>>;

/// Follows one value.
#[derive(Clone)]
pub struct Watch<T> {
    rx: watch::Receiver<T>,
    subscription: Arc<Subscription>,
}

impl<T: Clone> Watch<T> {
    pub(crate) fn new(rx: watch::Receiver<T>, subscription: Arc<Subscription>) -> Self {
        Self { rx, subscription }
    }

    /// What is current.
    pub fn load(&self) -> T {
        self.rx.borrow().clone()
    }

    /// What is current, and marks it as seen.
    pub fn load_and_mark(&mut self) -> T {
        self.rx.borrow_and_update().clone()
    }

    /// Waits for a value that this watch has not seen; `false` when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.rx.changed().await.is_ok()
    }

    /// The bare receiver. It does not keep the subscription: hold this watch beside it.
    pub fn receiver(&self) -> watch::Receiver<T> {
        self.rx.clone()
    }
}

impl<T: fmt::Debug> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("value", &*self.rx.borrow())
            .field("subscription", &self.subscription)
            .finish()
    }
}
