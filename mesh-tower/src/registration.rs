//! Registrations of this process, which leave before it drains.
//!
//! What a registration says, and how it is kept up, is the xDS client's.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::join_all;
use mesh_xds_client::registry::RegistrationHandle as Handle;
pub use mesh_xds_client::registry::{Registration, RegistrationStatus};
use tokio::sync::watch;

/// A registration that is kept up: renewed, and made again after the control plane restarted. When the
/// last clone is dropped, or [`Mesh::shutdown`](crate::Mesh::shutdown) is called, it leaves.
#[derive(Clone, Debug)]
#[must_use = "dropping it leaves the registry"]
pub struct RegistrationHandle(Arc<Handle>);

impl RegistrationHandle {
    /// How it is doing.
    pub fn status(&self) -> watch::Receiver<RegistrationStatus> {
        self.0.status()
    }

    /// Waits until the control plane knows the instance.
    pub async fn registered(&self) {
        self.0.registered().await;
    }

    /// Leaves, and waits for the control plane's word for at most
    /// [`LEAVE_TIMEOUT`](mesh_xds_client::registry::LEAVE_TIMEOUT).
    pub async fn leave(&self) {
        self.0.leave().await;
    }
}

/// Those of one member.
#[derive(Debug, Default)]
pub(crate) struct Registrations(Mutex<Vec<Weak<Handle>>>);

impl Registrations {
    pub(crate) fn add(&self, handle: Handle) -> RegistrationHandle {
        let handle = Arc::new(handle);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|held| held.strong_count() > 0);
        all.push(Arc::downgrade(&handle));
        RegistrationHandle(handle)
    }

    /// All leave.
    pub(crate) async fn leave(&self) {
        let all = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *held)
        };
        let all: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        join_all(all.iter().map(|handle| handle.leave())).await;
    }
}

/// What the listener knows better: ports that are 0, and the address where it has only one.
pub(crate) fn at(mut registration: Registration, listener: SocketAddr) -> Registration {
    for port in registration.ports.values_mut() {
        if *port == 0 {
            *port = listener.port();
        }
    }
    if registration.address.is_none() && !listener.ip().is_unspecified() {
        registration.address = Some(listener.ip());
    }
    registration
}
