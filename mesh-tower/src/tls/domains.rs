//! Verification of peers of several trust domains, each with the roots of its own (gRFC A87).
//!
//! A root of one trust domain that signs a name of another is nobody there. A peer must have exactly
//! one URI name, a SPIFFE ID; what is not one is refused before its chain is looked at.

use std::{collections::BTreeMap, fmt, sync::Arc};

use mesh_core::config::SpiffeBundleMap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, add_roots, provider, verify::other};
use crate::identity::{IdentityError, PeerIdentity};

/// A verifier for each trust domain.
#[derive(Debug)]
pub(super) struct ByTrustDomain<V> {
    verifiers: BTreeMap<String, V>,
    is_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<V> ByTrustDomain<V> {
    /// A verifier of `make` for each trust domain that has roots.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn new(
        map: &SpiffeBundleMap,
        is_mandatory: bool,
        make: impl Fn(&str, RootCertStore) -> Result<V, TlsError>,
    ) -> Result<Self, TlsError> {
        let mut verifiers = BTreeMap::new();
        for (domain, roots) in &map.bundles {
            let store = add_roots(&map.name, roots);
            if !store.is_empty() {
                verifiers.insert(domain.clone(), make(domain, store)?);
            }
        }
        Ok(Self {
            verifiers,
            is_mandatory,
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// That of a peer's trust domain.
    fn of(&self, leaf: &CertificateDer<'_>) -> Result<&V, Error> {
        let peer = PeerIdentity::from_leaf(leaf).map_err(other)?;
        let Some(id) = peer.spiffe_id() else {
            let reason = "the peer's certificate has no SPIFFE ID, by which roots are chosen";
            return Err(other(IdentityError::new(reason)));
        };
        self.verifiers.get(id.trust_domain()).ok_or_else(|| {
            other(UnknownTrustDomain {
                peer: id.as_str().to_owned(),
                known: self.verifiers.keys().cloned().collect(),
            })
        })
    }
}

/// There are no roots for the peer's trust domain.
#[derive(Debug)]
pub(super) struct UnknownTrustDomain {
    peer: String,
    known: Vec<String>,
}

impl fmt::Display for UnknownTrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, known } = self;
        write!(
            f,
            "{peer} is of a trust domain without roots; known are {known:?}"
        )
    }
}

impl std::error::Error for UnknownTrustDomain {}

impl<V: ServerCertVerifier> ServerCertVerifier for ByTrustDomain<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.of(end_entity)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
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

impl ClientCertVerifier for ByTrustDomain<Arc<dyn ClientCertVerifier>> {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.of(end_entity)?;
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
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

fn tls12() -> Error {
    Error::General("TLS 1.2 is not offered".into())
}
