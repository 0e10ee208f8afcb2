//! Single resources, for applications that want more of xDS than a mesh.
//!
//! Beside stage 5. [`XdsClient::watch`](crate::XdsClient::watch) gives a [`ResourceWatcher`]: a stream
//! of what becomes of one resource, in the error model of gRFC A88. Its resource is subscribed to with
//! the first watcher of its name, served from memory to later ones, and unsubscribed with the last.
//!
//! # Flow control
//! The next response of a control plane is read when every event of the last one has been dropped,
//! with its [`Done`]. So a slow application is sent no more than it can take, and a control plane that
//! waits for ACKs is slowed down instead of being cut off. Meanwhile requests go on: ACKs,
//! subscriptions and their ends are sent at once, and does-not-exist timers stand still, as the answer
//! may be waiting unread. **To wait for another watcher's event while holding a token of the same
//! control plane is to wait for oneself**; starting and dropping watches is always possible. A token
//! that is held longer than [`PROCESSING_WARN_AFTER`] is told in the log.

mod gate;
mod slot;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use mesh_core::ConfigError;

use crate::client::Subscription;
pub(crate) use gate::{Gate, Token};
pub(crate) use slot::{Slot, Teller, slot};

/// From when on a watcher that has not finished with an event is told in the log.
pub const PROCESSING_WARN_AFTER: Duration = Duration::from_secs(10);

/// Follows one resource. Ends when the client's driver has ended; dropping it ends the subscription.
#[must_use = "streams do nothing unless polled"]
pub struct ResourceWatcher<T> {
    slot: Slot<T>,
    subscription: Arc<Subscription>,
}

/// What has become of a resource.
#[derive(Debug)]
#[non_exhaustive]
pub struct ResourceEvent<T> {
    /// What is new.
    pub news: News<T>,
    /// To be dropped when the application has finished with it.
    pub done: Done,
}

/// What is new about a resource. Never what was told before.
#[derive(Debug)]
pub enum News<T> {
    /// To be used from now on, in place of all told before. An error: there is nothing to use, and
    /// what was used must not be used any longer.
    Changed(Result<Arc<T>, ConfigError>),
    /// Something is wrong beside the value, which stays in use; `None` when it is not any more. A
    /// later [`Changed`](Self::Changed) clears it too.
    AmbientError(Option<ConfigError>),
}

/// Says by being dropped that an event has been dealt with. See [flow control](self#flow-control).
#[must_use = "the next response is read when this is dropped"]
#[derive(Clone, Default)]
pub struct Done {
    _token: Option<Token>,
}

impl Done {
    /// `gate` is that of the stream the news came by, if they did.
    pub(crate) fn new(gate: Option<&Gate>) -> Self {
        Self {
            _token: gate.map(Gate::token),
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").finish_non_exhaustive()
    }
}

/// Both ends of a watch; `subscribe` is given the driver's.
pub(crate) fn watcher<T>(
    subscribe: impl FnOnce(Teller<T>) -> Arc<Subscription>,
) -> ResourceWatcher<T> {
    let (teller, slot) = slot();
    ResourceWatcher {
        slot,
        subscription: subscribe(teller),
    }
}

impl<T> Stream for ResourceWatcher<T> {
    type Item = ResourceEvent<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.slot.poll(cx)
    }
}

impl<T> fmt::Debug for ResourceWatcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceWatcher")
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}
