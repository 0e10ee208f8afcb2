//! Verification of a peer's certificate: its chain, its trust domain, and one of a server's names.
//!
//! The host name is not compared: a mesh identity names a service account, not an address
//! (gRFC A29). It decides about the leaf only after webpki vouched for the chain.

use std::{fmt, sync::Arc};

use mesh_core::config::{StringMatcher, StringPattern};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
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
    pub(super) roots: RootCertStore,
    pub(super) subject_alt_names: Vec<StringMatcher>,
    /// That of our own certificate. A bundle vouches for one trust domain, even where one root signs
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

/// Verifies a client's chain against the roots, and that it is of our trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domain: String,
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
        check_trust_domain(Some(&self.trust_domain), &peer)?;
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
        let expected = |name| self.subject_alt_names.iter().any(|m| matches(m, name));
        if names.iter().any(expected) {
            return Ok(ServerCertVerified::assertion());
        }
        is_ours?;
        if self.subject_alt_names.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        let presented = names.into_iter().map(AltName::into_text).collect();
        Err(other(NoExpectedName { presented }))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
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

/// An exact matcher also meets a wildcard DNS name, which stands for one label; DNS names are
/// compared without ASCII case (gRFC A29).
fn matches(matcher: &StringMatcher, name: &AltName) -> bool {
    let text = match name {
        AltName::Other(text) => return matcher.is_match(text),
        AltName::Dns(text) => text,
    };
    let StringPattern::Exact(expected) = &matcher.pattern else {
        return matcher.is_match(text);
    };
    if expected.eq_ignore_ascii_case(text) {
        return true;
    }
    let Some(parent) = text.strip_prefix("*.").filter(|parent| !parent.is_empty()) else {
        return false;
    };
    expected
        .split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_table() {
        let exact = |text: &str| StringMatcher::exact(text);
        let prefix = StringMatcher::new(StringPattern::Prefix("spiffe://td/".into())).expect("set");
        let uri = |text: &str| AltName::Other(text.into());
        let dns = |text: &str| AltName::Dns(text.into());
        for (matcher, name, expected) in [
            (exact("spiffe://td/a"), uri("spiffe://td/a"), true),
            (exact("spiffe://td/a"), uri("spiffe://td/b"), false),
            (exact("spiffe://td/A"), uri("spiffe://td/a"), false),
            (prefix.clone(), uri("spiffe://td/b"), true),
            (prefix, uri("spiffe://other/b"), false),
            (exact("a.example"), dns("A.example"), true),
            (exact("a.example"), dns("*.example"), true),
            (exact("a.b.example"), dns("*.example"), false),
            (exact("example"), dns("*.example"), false),
            (exact(".example"), dns("*.example"), false),
            (exact("a.example"), uri("*.example"), false),
            (exact("a."), dns("*."), false),
        ] {
            assert_eq!(matches(&matcher, &name), expected, "{matcher:?} {name:?}");
        }
    }
}
