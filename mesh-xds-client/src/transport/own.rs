//! The process's own certificate, as connections to control planes show it.
//!
//! A process that gets its certificate from a control plane proves with it who it is from then on: the
//! token that it began with may be good only once. Which certificate that is, is known after the
//! client was made, hence the slot.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::certificate::{Certificate, CertificateWatch};

/// A connection waits so long for the first certificate before it goes without one: the certificate
/// may be on its way.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// Where the certificate will be. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnCertificate(Arc<OnceLock<CertificateWatch>>);

impl OwnCertificate {
    /// A slot with what is there now.
    pub(crate) fn of(certificate: Option<Arc<Certificate>>) -> Self {
        let slot = Self::default();
        slot.set(tokio::sync::watch::channel(certificate).1);
        slot
    }

    /// Connections show this certificate from now on; the first one that is set stays.
    pub(crate) fn set(&self, certificate: CertificateWatch) {
        _ = self.0.set(certificate);
    }

    /// The certificate, if there is one in time.
    pub(super) async fn get(&self) -> Option<Arc<Certificate>> {
        let mut certificate = self.0.get()?.clone();
        let first = certificate.wait_for(Option::is_some);
        match tokio::time::timeout(FIRST_WAIT, first).await {
            Ok(Ok(held)) => held.clone(),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}
