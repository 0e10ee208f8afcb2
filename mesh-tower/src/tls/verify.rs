//! Verification of a peer's certificate: its chain, its trust domain, and one of a server's names.
//!
//! The host name is not compared unless the settings expect it: a mesh identity names a service
//! account, not an address (gRFC A29). It decides about the leaf only after webpki vouched for the
//! chain.

use std::{fmt, sync::Arc};

use mesh_core::config::SanMatcher;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{AltName, Leaf, PeerIdentity};

/// Verifies a chain against the roots and the names against the matchers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) subject_alt_names: Vec<SanMatcher>,
    /// That of our own certificate, inside the mesh. A bundle vouches for one trust domain, even where one root signs
    /// for several; names that are expected in so many words may be of another.
    pub(super) trust_domain: Option<String>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// The peer proved who it is, but it is of another trust domain.
#[derive(Debug)]
pub(super) struct OtherTrustDomain {
    ours: String,
    peer: String,
}

impl fmt::Display for OtherTrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, peer } = self;
        write!(f, "{peer} is not of our trust domain {ours}")
    }
}

impl std::error::Error for OtherTrustDomain {}

/// A peer with a SPIFFE ID must be of our trust domain, where we have one.
fn check_trust_domain(ours: Option<&str>, peer: &PeerIdentity) -> Result<(), Error> {
    match (ours, peer.spiffe_id()) {
        (Some(ours), Some(peer)) if peer.trust_domain() != ours => Err(other(OtherTrustDomain {
            ours: ours.to_owned(),
            peer: peer.as_str().to_owned(),
        })),
        _ => Ok(()),
    }
}

/// Roots that are not the mesh's vouch for a member of it.
#[derive(Debug)]
pub(super) struct NotOurRoots {
    peer: String,
}

impl fmt::Display for NotOurRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer } = self;
        write!(
            f,
            "{peer} is of our trust domain, for which these roots do not vouch"
        )
    }
}

impl std::error::Error for NotOurRoots {}

/// For which trust domains a server's roots vouch.
#[derive(Clone, Debug)]
pub(super) enum Vouch {
    /// This one alone.
    For(String),
    /// Every one but this.
    ForAllBut(String),
    /// Whom they sign.
    ForAll,
}

impl Vouch {
    fn check(&self, peer: &PeerIdentity) -> Result<(), Error> {
        match (self, peer.spiffe_id()) {
            (Self::For(ours), _) => check_trust_domain(Some(ours), peer),
            (Self::ForAllBut(ours), Some(peer)) if peer.trust_domain() == ours => {
                Err(other(NotOurRoots {
                    peer: peer.as_str().to_owned(),
                }))
            }
            (Self::ForAllBut(_) | Self::ForAll, _) => Ok(()),
        }
    }
}

/// Verifies a client's chain against the roots, and that they vouch for its trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) vouch: Vouch,
}

impl ClientCertVerifier for ClientVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let peer = PeerIdentity::from_leaf(end_entity).map_err(other)?;
        self.vouch.check(&peer)?;
        Ok(verified)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The peer proved its names, but none is expected.
#[derive(Debug)]
pub(super) struct NoExpectedName {
    presented: Vec<String>,
}

impl fmt::Display for NoExpectedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "none of the peer's names {:?} is expected",
            self.presented
        )
    }
}

impl std::error::Error for NoExpectedName {}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        // A malformed or second SPIFFE name makes the certificate ambiguous.
        let peer = PeerIdentity::from_leaf(end_entity).map_err(other)?;
        let is_ours = check_trust_domain(self.trust_domain.as_deref(), &peer);
        let names = Leaf::parse(end_entity).map_err(other)?.alt_names();
        let expected = |name: &AltName| {
            let mut matchers = self.subject_alt_names.iter();
            matchers.any(|matcher| matcher.is_match(name.san_type, &name.text))
        };
        if names.iter().any(expected) {
            return Ok(ServerCertVerified::assertion());
        }
        is_ours?;
        if self.subject_alt_names.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        let presented = names.into_iter().map(|name| name.text).collect();
        Err(other(NoExpectedName { presented }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

pub(super) fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
