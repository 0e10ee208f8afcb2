//! Certificates and roots that come over SDS by names of their own, beside the process's identity.
//!
//! They are read from what the configuration holds when a handshake begins, and parsed when they have
//! changed. A secret that is not there, is refused or is of another kind fails the handshake with its
//! name; one that nobody names any more, because its cluster has just been removed, serves those
//! who still hold the cluster as it was last.

use std::sync::Arc;

use mesh_core::{
    config::{Secret, TrustBundle},
    name::SecretName,
    secrets::SecretReader,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{TlsError, TlsErrorKind, provider};
use crate::identity::{IdentityError, Leaf, SpiffeId};

/// The secret of handshakes that begin now. `last` is the one of the handshake before.
pub(super) fn fetched(
    secrets: &SecretReader,
    name: &SecretName,
    last: Option<&Arc<Secret>>,
    kind: TlsErrorKind,
) -> Result<Arc<Secret>, TlsError> {
    match secrets.get(name) {
        Some(Ok(secret)) => Ok(secret),
        Some(Err(error)) => {
            let message = format!("secret {name} cannot be used: {error}");
            Err(TlsError::new(kind, message))
        }
        None => last
            .filter(|last| last.name() == name)
            .cloned()
            .ok_or_else(|| {
                let message = format!("secret {name} is not held: nobody fetches it over SDS");
                TlsError::new(kind, message)
            }),
    }
}

/// The roots in a secret.
pub(super) fn roots(secret: &Secret) -> Result<&TrustBundle, TlsError> {
    match secret {
        Secret::TrustBundle(bundle) => Ok(bundle),
        Secret::Certificate { name, .. } => {
            let message = format!("secret {name} is a certificate, not trusted roots");
            Err(TlsError::new(TlsErrorKind::NoTrust, message))
        }
    }
}

/// The certificate in a secret, with its key.
pub(super) fn certificate(secret: &Secret) -> Result<Arc<CertifiedKey>, TlsError> {
    let fail = |reason: String| TlsError::new(TlsErrorKind::NoIdentity, reason);
    let (name, chain_pem, key_pem) = match secret {
        Secret::TrustBundle(bundle) => {
            let name = &bundle.name;
            let reason = format!("secret {name} holds trusted roots, not a certificate");
            return Err(fail(reason));
        }
        Secret::Certificate {
            name,
            chain_pem,
            key_pem,
        } => (name, chain_pem, key_pem),
    };
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| fail(format!("secret {name}: the chain: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes());
    let key = key.map_err(|error| fail(format!("secret {name}: the key: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    certified
        .map(Arc::new)
        .map_err(|error| fail(format!("secret {name}: {error}")))
}

/// The URI names of our certificate.
pub(super) fn uris(certified: &CertifiedKey) -> Option<Vec<String>> {
    let leaf = Leaf::parse(certified.cert.first()?).ok()?;
    Some(leaf.uris().into_iter().map(str::to_owned).collect())
}

/// The SPIFFE ID of our certificate, `None` where it is none of a member.
pub(super) fn spiffe_id(certified: &CertifiedKey) -> Result<Option<SpiffeId>, IdentityError> {
    match certified.cert.first() {
        Some(leaf) => Leaf::parse(leaf)?.spiffe_id(),
        None => Ok(None),
    }
}
