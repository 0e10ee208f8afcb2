//! TLS for both directions, with reasons when it fails: mutual inside the mesh, and to servers outside.
//!
//! Stage 12 for the client, before the application for the server. Handshakes read the current
//! [`Identity`](crate::identity::Identity); a rotation never touches live connections. What is
//! demanded and missing fails the handshake: there is no way to plaintext from here. TLS 1.3 only,
//! but for servers that other roots than the mesh's vouch for: from 1.2 on. The crypto provider is
//! given to rustls by value, never through the process default.
//!
//! Spec: gRFC A29 (sources of certificates, subject names instead of host names). Deviation: a
//! process has one identity, so every certificate provider name means that one.

pub mod client;
mod domains;
pub mod material;
mod secret;
pub mod server;
mod verify;

use std::{error, fmt, io, sync::Arc, time::SystemTime};

use bytes::Bytes;
use mesh_core::{
    config::{OWN_TRUST_BUNDLE, TlsVersion, TrustBundle},
    name::SecretName,
};
use rustls::{
    AlertDescription, CertificateError, InvalidMessage, PeerIncompatible, RootCertStore,
    SupportedProtocolVersion, crypto::CryptoProvider,
};
use rustls_pki_types::CertificateDer;

use crate::identity::{Leaf, Trust};

pub use mesh_core::config::OWN_CERTIFICATE;

static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
static VERSIONS_OUTSIDE: &[&SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match oldest {
        TlsVersion::V1_2 => VERSIONS_OUTSIDE,
        TlsVersion::V1_3 => VERSIONS,
    }
}

/// What is spoken inside a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/2; a peer that does not agree to it fails the handshake.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 if the peer can, else HTTP/1.1.
    Either,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let (h2, h1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        match self {
            Self::Http2 => vec![h2],
            Self::Http1 => vec![h1],
            Self::Either => vec![h2, h1],
        }
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsErrorKind {
    /// The settings cannot be used.
    Config,
    /// A certificate of ours is demanded and there is none.
    NoIdentity,
    /// There are no roots to verify the peer with.
    NoTrust,
    /// A certificate has expired.
    Expired,
    /// A certificate is not valid yet.
    NotYetValid,
    /// A certificate does not chain to the roots.
    UnknownIssuer,
    /// No subject alternative name of the peer is one we expect.
    SubjectAltName,
    /// The peer is of another trust domain than we are.
    TrustDomain,
    /// There are no roots for the peer's trust domain.
    UnknownTrustDomain,
    /// A client came without a certificate where one is required.
    NoCertificate,
    /// A certificate is bad for another reason.
    BadCertificate,
    /// No common protocol inside TLS.
    NoApplicationProtocol,
    /// The peer does not speak TLS 1.3 (1.2 outside the mesh), or somebody in between made it say so.
    Version,
    /// The peer answers in something else than TLS.
    Plaintext,
    /// The peer breaks the rules of TLS.
    Protocol,
    /// The connection ended.
    Io,
}

impl TlsErrorKind {
    /// A short word for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::NoIdentity => "no_identity",
            Self::NoTrust => "no_trust",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::SubjectAltName => "subject_alt_name",
            Self::TrustDomain => "trust_domain",
            Self::UnknownTrustDomain => "unknown_trust_domain",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::NoApplicationProtocol => "no_application_protocol",
            Self::Version => "tls_version",
            Self::Plaintext => "plaintext",
            Self::Protocol => "protocol",
            Self::Io => "io",
        }
    }
}

/// A failed handshake.
#[derive(Debug)]
pub struct TlsError {
    kind: TlsErrorKind,
    by_peer: bool,
    message: String,
    source: Option<io::Error>,
}

impl TlsError {
    pub(crate) fn new(kind: TlsErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            by_peer: false,
            message: message.into(),
            source: None,
        }
    }

    /// Classifies an error of a TLS stream. In TLS 1.3 a client learns that its certificate was
    /// refused only when it reads, so this is also for errors after [`client::ClientTls::connect`].
    pub fn from_io(error: io::Error) -> Self {
        let (kind, by_peer) = reason(&error).unwrap_or((TlsErrorKind::Io, false));
        let whose = if by_peer {
            "the peer refused us"
        } else {
            "TLS handshake failed"
        };
        let message = format!("{whose} ({})", kind.as_str());
        Self {
            kind,
            by_peer,
            message,
            source: Some(error),
        }
    }

    /// The refusal that ended a connection, which in TLS 1.3 a client reads after its handshake.
    pub(crate) fn in_chain(error: &(dyn error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next.filter(|error| !error.is::<Self>()) {
            let of_h2 = error.downcast_ref::<h2::Error>();
            let io = of_h2.and_then(h2::Error::get_io);
            let io = io.or_else(|| error.downcast_ref::<io::Error>());
            let inner = io.and_then(io::Error::get_ref);
            if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return Some(Self::from_io(io::Error::other(refused.clone())));
            }
            next = error.source();
        }
        None
    }

    /// The reason.
    pub fn kind(&self) -> TlsErrorKind {
        self.kind
    }

    /// Whether it was the peer who refused us: then it is our certificate that is meant.
    pub fn is_refused_by_peer(&self) -> bool {
        self.by_peer
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl error::Error for TlsError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|e| e as &(dyn error::Error + 'static))
    }
}

/// The reason in an error of a TLS stream, and whether the peer gave it; `None` when it is not of TLS.
pub(crate) fn reason(error: &io::Error) -> Option<(TlsErrorKind, bool)> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(classify(inner))
}

/// The reason, and whether the peer gave it.
fn classify(error: &rustls::Error) -> (TlsErrorKind, bool) {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(bad) => (classify_certificate(bad), false),
        E::NoCertificatesPresented => (TlsErrorKind::NoCertificate, false),
        E::NoApplicationProtocol => (TlsErrorKind::NoApplicationProtocol, false),
        E::AlertReceived(alert) => (classify_alert(*alert), true),
        E::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => (TlsErrorKind::Version, false),
        E::InvalidMessage(InvalidMessage::InvalidContentType) => (TlsErrorKind::Plaintext, false),
        _ => (TlsErrorKind::Protocol, false),
    }
}

fn classify_certificate(error: &CertificateError) -> TlsErrorKind {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => TlsErrorKind::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => TlsErrorKind::NotYetValid,
        // A root of the same name with another key, as after a change of roots.
        E::UnknownIssuer | E::BadSignature => TlsErrorKind::UnknownIssuer,
        E::Other(other)
            if other.0.is::<verify::OtherTrustDomain>() || other.0.is::<verify::NotOurRoots>() =>
        {
            TlsErrorKind::TrustDomain
        }
        E::Other(other) if other.0.is::<domains::UnknownTrustDomain>() => {
            TlsErrorKind::UnknownTrustDomain
        }
        E::Other(other) if other.0.is::<verify::NoExpectedName>() => TlsErrorKind::SubjectAltName,
        _ => TlsErrorKind::BadCertificate,
    }
}

fn classify_alert(alert: AlertDescription) -> TlsErrorKind {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => TlsErrorKind::NoCertificate,
        A::CertificateExpired => TlsErrorKind::Expired,
        A::UnknownCA => TlsErrorKind::UnknownIssuer,
        A::NoApplicationProtocol => TlsErrorKind::NoApplicationProtocol,
        A::ProtocolVersion => TlsErrorKind::Version,
        // rustls sends `decrypt_error` for a certificate with another key's signature.
        A::DecryptError
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateUnknown
        | A::AccessDenied => TlsErrorKind::BadCertificate,
        _ => TlsErrorKind::Protocol,
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Roots for verification. A root that cannot be read is left out; none at all is an error.
fn root_store(trust: &TrustBundle) -> Result<RootCertStore, TlsError> {
    let store = add_roots(&trust.name, &trust.roots);
    if store.is_empty() {
        let message = format!("trust bundle {} has no usable root", trust.name);
        return Err(TlsError::new(TlsErrorKind::NoTrust, message));
    }
    Ok(store)
}

fn add_roots(name: &SecretName, roots: &[Bytes]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    let roots = roots.iter().map(|der| CertificateDer::from(der.as_ref()));
    let (_, unreadable) = store.add_parsable_certificates(roots);
    if unreadable > 0 {
        tracing::warn!(target: "mesh::tls", bundle = %name, unreadable, "roots left out");
    }
    store
}

/// Whether a name over SDS is that of the mesh's roots, which this process follows anyway.
fn is_held(name: &SecretName, held: Option<&Trust>) -> bool {
    match held {
        Some(held) => held.name() == name,
        // They are on their way.
        None => name.as_str() == OWN_TRUST_BUNDLE,
    }
}

/// The mesh's roots.
fn held_trust(held: Option<Trust>) -> Result<Trust, TlsError> {
    held.ok_or_else(|| {
        TlsError::new(
            TlsErrorKind::NoTrust,
            "there is no trust bundle to verify the peer with",
        )
    })
}

/// A resumed session does not verify the certificate again, so its end is checked here.
fn check_not_expired(leaf: &Leaf<'_>) -> Result<(), TlsError> {
    if leaf.not_after() < SystemTime::now() {
        let message = "the certificate of the resumed session has expired";
        return Err(TlsError::new(TlsErrorKind::Expired, message));
    }
    Ok(())
}

fn unreadable(error: impl fmt::Display) -> TlsError {
    TlsError::new(
        TlsErrorKind::BadCertificate,
        format!("the peer's certificate: {error}"),
    )
}

fn unusable(error: impl fmt::Display) -> TlsError {
    TlsError::new(
        TlsErrorKind::Config,
        format!("TLS settings cannot be used: {error}"),
    )
}
