//! Verification of a server's certificate: its chain, and one of its names.
//!
//! The host name is not compared: a mesh identity names a service account, not an address
//! (gRFC A29). It decides about the leaf only after webpki vouched for the chain.

use std::{fmt, sync::Arc};

use mesh_core::config::{StringMatcher, StringPattern};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{AltName, Leaf, PeerIdentity};

/// Verifies a chain against the roots and the names against the matchers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: RootCertStore,
    pub(super) subject_alt_names: Vec<StringMatcher>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
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
        PeerIdentity::from_leaf(end_entity).map_err(other)?;
        let names = Leaf::parse(end_entity).map_err(other)?.alt_names();
        let expected = |name| self.subject_alt_names.iter().any(|m| matches(m, name));
        if self.subject_alt_names.is_empty() || names.iter().any(expected) {
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

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
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
