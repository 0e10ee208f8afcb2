//! TLS and trust, as declared (gRFC A29; Envoy SDS).

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::name::SecretName;

/// Name over SDS of a process's own certificate, which it gets otherwise where it can (by a CSR, from
/// files).
pub const OWN_CERTIFICATE: &str = "default";

/// Name over SDS of the mesh's own roots.
pub const OWN_TRUST_BUNDLE: &str = "ROOTCA";

/// TLS of a server (`DownstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Our certificate.
    pub identity: CertificateSource,
    /// Whom to trust; `None` asks for no client certificate.
    pub roots: Option<TrustSource>,
    /// Refuse clients without a certificate.
    pub require_client_certificate: bool,
}

impl DownstreamTls {
    /// Names of the secrets that are to be fetched for it.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let roots = self.roots.as_ref().and_then(TrustSource::secret);
        self.identity.secret().into_iter().chain(roots)
    }
}

/// Where a certificate with its key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// A provider named in the bootstrap (gRFC A29), or the process's own identity.
    Provider {
        /// Name in the bootstrap, `default` by convention.
        instance: String,
    },
    /// A secret over SDS; [`OWN_CERTIFICATE`] is the process's own identity.
    Sds(SecretName),
    /// PEM files of this process's machine, for servers outside the mesh.
    Files {
        /// The chain, leaf first.
        chain: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

impl CertificateSource {
    /// Whether it is the process's own identity in the mesh.
    pub fn is_own(&self) -> bool {
        match self {
            Self::Provider { .. } => true,
            Self::Sds(name) => name.as_str() == OWN_CERTIFICATE,
            Self::Files { .. } => false,
        }
    }

    /// The secret that is to be fetched for it.
    pub fn secret(&self) -> Option<&SecretName> {
        match self {
            Self::Sds(name) if !self.is_own() => Some(name),
            Self::Sds(_) | Self::Provider { .. } | Self::Files { .. } => None,
        }
    }
}

/// Where trusted roots come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustSource {
    /// A provider named in the bootstrap (gRFC A29).
    Provider {
        /// Name in the bootstrap.
        instance: String,
    },
    /// A trust bundle over SDS; [`OWN_TRUST_BUNDLE`] is the mesh's.
    Sds(SecretName),
    /// The roots of the system that the process runs on (gRFC A82 `system_root_certs`).
    System,
    /// Roots that are written into the resource (`trusted_ca`).
    Inline(Arc<TrustBundle>),
    /// A PEM file of this process's machine (`trusted_ca.filename`).
    File(PathBuf),
}

impl TrustSource {
    /// Whether these are the mesh's own roots, which vouch for its members alone.
    pub fn is_of_mesh(&self) -> bool {
        match self {
            Self::Provider { .. } => true,
            Self::Sds(name) => name.as_str() == OWN_TRUST_BUNDLE,
            Self::System | Self::Inline(_) | Self::File(_) => false,
        }
    }

    /// The secret that is to be fetched for them.
    pub fn secret(&self) -> Option<&SecretName> {
        match self {
            Self::Sds(name) if !self.is_of_mesh() => Some(name),
            Self::Sds(_)
            | Self::Provider { .. }
            | Self::System
            | Self::Inline(_)
            | Self::File(_) => None,
        }
    }
}

/// A secret resource (xDS SDS).
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Trusted roots.
    TrustBundle(TrustBundle),
    /// A certificate with its key; served only to clients that cannot make a CSR.
    Certificate {
        /// Resource name.
        name: SecretName,
        /// PEM, leaf first.
        chain_pem: String,
        /// PEM; never printed.
        key_pem: String,
    },
}

impl Secret {
    /// Resource name.
    pub fn name(&self) -> &SecretName {
        match self {
            Self::TrustBundle(bundle) => &bundle.name,
            Self::Certificate { name, .. } => name,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name())
    }
}

/// Trusted root certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Resource name, `ROOTCA` by convention.
    pub name: SecretName,
    /// DER certificates.
    pub roots: Vec<Bytes>,
}

/// Roots by trust domain; each vouches for its own alone (gRFC A87).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeBundleMap {
    /// Where it is from.
    pub name: SecretName,
    /// DER certificates by trust domain. A trust domain without any trusts nobody.
    pub bundles: BTreeMap<String, Vec<Bytes>>,
}
