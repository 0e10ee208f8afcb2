//! TLS and trust, as declared (gRFC A29; Envoy SDS).

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

use super::StringMatcher;
use crate::name::SecretName;

/// TLS towards a cluster's endpoints (`UpstreamTlsContext`). What cannot be applied fails the
/// connection; it never falls back to plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Our certificate; `None` sends none.
    pub identity: Option<CertificateSource>,
    /// Whom to trust.
    pub roots: TrustSource,
    /// One of the peer's subject alternative names must match one of these; empty accepts every
    /// certificate that chains to the roots.
    pub subject_alt_names: Vec<StringMatcher>,
    /// Server name indication; `None` sends none.
    pub sni: Option<String>,
}

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

/// Where a certificate with its key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// A provider named in the bootstrap (gRFC A29), or the process's own identity.
    Provider {
        /// Name in the bootstrap, `default` by convention.
        instance: String,
    },
    /// A secret over SDS.
    Sds(SecretName),
}

/// Where trusted roots come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustSource {
    /// A provider named in the bootstrap (gRFC A29).
    Provider {
        /// Name in the bootstrap.
        instance: String,
    },
    /// A trust bundle over SDS.
    Sds(SecretName),
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
