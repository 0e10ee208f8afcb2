//! The certificate of the control plane itself, made again at half of its life and when roots change.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use bytes::Bytes;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::sync::watch;

use super::{Authority, Identity};

/// Life of the certificate; less when the authority gives less.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Who the control plane is.
const NAMESPACE: &str = "mesh-system";
const ACCOUNT: &str = "control-plane";

/// Who the control plane is to others, as server and as client.
pub(crate) struct OwnCertificate {
    authority: Arc<Authority>,
    roots: watch::Receiver<Vec<Bytes>>,
    identity: Identity,
    /// Names and addresses that it is dialled by.
    dialled: Vec<String>,
    held: Mutex<Option<Arc<OwnLeaf>>>,
}

/// A certificate, and the roots that were trusted when it was made.
pub(crate) struct OwnLeaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: Vec<Bytes>,
    renew_at: SystemTime,
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate")
            .field("identity", &self.identity)
            .field("dialled", &self.dialled)
            .finish_non_exhaustive()
    }
}

impl OwnCertificate {
    /// A certificate of `authority` for the names and addresses in `dialled`.
    ///
    /// # Errors
    /// When none can be made.
    pub(crate) fn new(authority: Arc<Authority>, dialled: Vec<String>) -> anyhow::Result<Self> {
        let own = Self {
            roots: authority.roots(),
            authority,
            identity: Identity::new(NAMESPACE, ACCOUNT)?,
            dialled,
            held: Mutex::default(),
        };
        own.current(SystemTime::now())?;
        Ok(own)
    }

    /// The trust domain that it is in.
    pub(crate) fn trust_domain(&self) -> &str {
        self.authority.trust_domain()
    }

    /// The certificate to use now.
    ///
    /// # Errors
    /// When a new one is due and cannot be made.
    pub(crate) fn current(&self, now: SystemTime) -> anyhow::Result<Arc<OwnLeaf>> {
        let roots = self.roots.borrow().clone();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*held
            && held.roots == roots
            && now < held.renew_at
        {
            return Ok(Arc::clone(held));
        }
        let issued = self
            .authority
            .issue_serving(&self.identity, &self.dialled, TTL)
            .context("a certificate for the control plane itself")?;
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        let text = issued.chain_pem[..issued.chain_pem.len() - 1].concat();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let leaf = Arc::new(OwnLeaf {
            chain: chain?,
            key: PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?,
            roots,
            renew_at: now + left / 2,
        });
        *held = Some(Arc::clone(&leaf));
        Ok(leaf)
    }
}
