//! Who we are and who our peers are: certificates with SPIFFE names, and the roots that vouch for
//! them.
//!
//! [`Identity`] is the seam where TLS meets certificates: a chain with its key and a trust bundle,
//! each behind a `watch`, so that a rotation is a value swapped and live connections stay. It does
//! not fetch or renew certificates, and verification of a peer's chain belongs to [`crate::tls`].
//!
//! Spec: SPIFFE-ID and X.509-SVID (one URI name per certificate); names of a peer follow gRFC A41.
//! Roots are one bundle for our own trust domain, or one for each (gRFC A87).

mod leaf;
#[cfg(feature = "xds")]
mod stored;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::SystemTime};

use mesh_core::config::{SpiffeBundleMap, TrustBundle};
use mesh_core::{name::SecretName, secrets::SecretReader};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::watch;

pub(crate) use leaf::{AltName, Leaf};
#[cfg(feature = "xds")]
pub(crate) use stored::vouched_for;

/// Longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
pub const SPIFFE_ID_LENGTH_MAX: usize = 2048;

/// Our certificate and the roots we trust, as they are now. Clones share the values.
#[derive(Clone)]
pub struct Identity {
    certificate: watch::Receiver<Option<Arc<Certificate>>>,
    trust: TrustWatch,
    secrets: SecretReader,
}

#[derive(Clone)]
enum TrustWatch {
    Bundle(watch::Receiver<Option<Arc<TrustBundle>>>),
    ByTrustDomain(watch::Receiver<Option<Arc<SpiffeBundleMap>>>),
}

/// Who vouches for peers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Trust {
    /// One bundle, for our own trust domain.
    Bundle(Arc<TrustBundle>),
    /// A bundle for each trust domain, none of which vouches for another (gRFC A87).
    ByTrustDomain(Arc<SpiffeBundleMap>),
}

impl Trust {
    /// Where it is from.
    pub fn name(&self) -> &SecretName {
        match self {
            Self::Bundle(bundle) => &bundle.name,
            Self::ByTrustDomain(map) => &map.name,
        }
    }

    /// Whether it is the same value, not an equal one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bundle(a), Self::Bundle(b)) => Arc::ptr_eq(a, b),
            (Self::ByTrustDomain(a), Self::ByTrustDomain(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Identity {
    /// An identity that follows two values. The halves are independent: a change of one never
    /// waits for the other.
    pub fn new(
        certificate: watch::Receiver<Option<Arc<Certificate>>>,
        trust: watch::Receiver<Option<Arc<TrustBundle>>>,
    ) -> Self {
        Self {
            certificate,
            trust: TrustWatch::Bundle(trust),
            secrets: SecretReader::default(),
        }
    }

    /// The same, with roots by trust domain.
    pub fn with_bundle_map(
        certificate: watch::Receiver<Option<Arc<Certificate>>>,
        map: watch::Receiver<Option<Arc<SpiffeBundleMap>>>,
    ) -> Self {
        Self {
            certificate,
            trust: TrustWatch::ByTrustDomain(map),
            secrets: SecretReader::default(),
        }
    }

    /// An identity that never changes, for tests and static setups.
    pub fn fixed(certificate: Certificate, trust: TrustBundle) -> Self {
        Self::new(
            watch::channel(Some(Arc::new(certificate))).1,
            watch::channel(Some(Arc::new(trust))).1,
        )
    }

    /// Neither a certificate nor roots: every TLS connection that demands one of them fails.
    pub fn none() -> Self {
        Self::new(watch::channel(None).1, watch::channel(None).1)
    }

    /// The same, beside other certificates and roots that the configuration names (SDS). Default
    /// none.
    #[must_use]
    pub fn with_secrets(mut self, secrets: SecretReader) -> Self {
        self.secrets = secrets;
        self
    }

    /// Other certificates and roots that the configuration names.
    pub fn secrets(&self) -> &SecretReader {
        &self.secrets
    }

    /// The certificate of handshakes that begin now.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.borrow().clone()
    }

    /// The certificate, as it changes.
    pub fn certificates(&self) -> watch::Receiver<Option<Arc<Certificate>>> {
        self.certificate.clone()
    }

    /// The roots of handshakes that begin now.
    pub fn trust(&self) -> Option<Trust> {
        match &self.trust {
            TrustWatch::Bundle(bundle) => bundle.borrow().clone().map(Trust::Bundle),
            TrustWatch::ByTrustDomain(map) => map.borrow().clone().map(Trust::ByTrustDomain),
        }
    }

    /// Waits until there is a certificate and a trust bundle.
    ///
    /// # Errors
    /// When one of them is missing and nothing will provide it any more.
    pub async fn ready(&self) -> Result<(), IdentityError> {
        let mut certificate = self.certificate.clone();
        if certificate.wait_for(Option::is_some).await.is_err() {
            return Err(IdentityError::new(
                "no certificate, and its source has ended",
            ));
        }
        let is_there = match self.trust.clone() {
            TrustWatch::Bundle(mut bundle) => bundle.wait_for(Option::is_some).await.is_ok(),
            TrustWatch::ByTrustDomain(mut map) => map.wait_for(Option::is_some).await.is_ok(),
        };
        match is_there {
            true => Ok(()),
            false => Err(IdentityError::new(
                "no trust bundle, and its source has ended",
            )),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &*self.certificate.borrow())
            .field("trust", &self.trust().map(|trust| trust.name().clone()))
            .finish()
    }
}

/// A certificate chain with its key: an X.509-SVID.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    spiffe_id: SpiffeId,
    not_after: SystemTime,
    certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// A certificate from DER, leaf first.
    ///
    /// # Errors
    /// When the chain is empty, the leaf does not hold exactly one URI name that is a SPIFFE ID,
    /// or the key does not belong to it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain
            .first()
            .ok_or_else(|| IdentityError::new("the chain is empty"))?;
        let parsed = Leaf::parse(leaf)?;
        let spiffe_id = parsed
            .spiffe_id()?
            .ok_or_else(|| IdentityError::new("the certificate has no SPIFFE ID"))?;
        let not_after = parsed.not_after();
        let provider = rustls::crypto::ring::default_provider();
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider)
            .map_err(|e| IdentityError::new(format!("the key cannot be used: {e}")))?;
        Ok(Self {
            chain,
            spiffe_id,
            not_after,
            certified: Arc::new(certified),
        })
    }

    /// A certificate from PEM, leaf first, with its key in PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// As [`Certificate::new`], and when the PEM cannot be read.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| IdentityError::new(format!("the chain is not PEM: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| IdentityError::new(format!("the key is not PEM: {e}")))?;
        Self::new(chain, key)
    }

    /// The chain in DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The name, for example `spiffe://cluster.local/ns/default/sa/greeter`.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// When the leaf stops being valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Chain and key as rustls takes them.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for Certificate {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("spiffe_id", &self.spiffe_id.as_str())
            .field("not_after", &self.not_after)
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// The names of a peer whose certificate was verified. A request's extensions hold one when its
/// caller used mutual TLS. Clones are cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    inner: Arc<PeerNames>,
}

#[derive(Debug, PartialEq, Eq)]
struct PeerNames {
    names: Vec<String>,
    spiffe_id: Option<SpiffeId>,
}

impl PeerIdentity {
    /// Reads the names of a leaf certificate. It does not verify the chain.
    ///
    /// # Errors
    /// When the certificate cannot be read, or holds a SPIFFE ID that is not valid or not its
    /// only URI name.
    pub fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let leaf = Leaf::parse(leaf)?;
        let spiffe_id = leaf.spiffe_id()?;
        Ok(Self {
            inner: Arc::new(PeerNames {
                names: leaf.principal_names(),
                spiffe_id,
            }),
        })
    }

    /// The names that authorisation compares: the URI subject alternative names; without any the
    /// DNS names; without any the subject (RFC 2253). Empty when there is none at all.
    pub fn names(&self) -> &[String] {
        &self.inner.names
    }

    /// The SPIFFE ID, when the certificate is an SVID.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.inner.spiffe_id.as_ref()
    }

    /// One name for logs: the first.
    pub fn principal(&self) -> &str {
        self.inner.names.first().map_or("", String::as_str)
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({:?})", self.inner.names)
    }
}

/// A SPIFFE ID: `spiffe://TRUST_DOMAIN/PATH`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    trust_domain_end: usize,
}

impl SpiffeId {
    const SCHEME: &'static str = "spiffe://";

    /// Reads and validates an ID (SPIFFE-ID §2).
    ///
    /// # Errors
    /// When `text` is not a SPIFFE ID; the error says why.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let fail = |reason: &str| IdentityError::new(format!("SPIFFE ID {text:?}: {reason}"));
        if text.len() > SPIFFE_ID_LENGTH_MAX {
            return Err(IdentityError::new("SPIFFE ID: longer than 2048 bytes"));
        }
        let rest = text
            .strip_prefix(Self::SCHEME)
            .ok_or_else(|| fail("the scheme is not spiffe://"))?;
        let (domain, path) = rest
            .find('/')
            .map_or((rest, ""), |slash| rest.split_at(slash));
        let domain_char = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(domain_char) {
            return Err(fail(
                "the trust domain is not lower-case letters, digits, '.', '-', '_'",
            ));
        }
        let path_char = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        for segment in path.split('/').skip(1) {
            if matches!(segment, "" | "." | "..") || !segment.bytes().all(path_char) {
                return Err(fail("the path has an empty, relative or malformed segment"));
            }
        }
        Ok(Self {
            text: text.to_owned(),
            trust_domain_end: Self::SCHEME.len() + domain.len(),
        })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, for example `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.text[Self::SCHEME.len()..self.trust_domain_end]
    }

    /// The path with its first slash; empty when there is none.
    pub fn path(&self) -> &str {
        &self.text[self.trust_domain_end..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Why a certificate cannot be used as an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityError {
    reason: String,
}

impl IdentityError {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for IdentityError {}
