//! Verification of a control plane with roots by trust domain (gRFC A87 for the channel of gRFC A65).
//!
//! The server's certificate has exactly one URI name, a SPIFFE ID; the roots of its trust domain decide,
//! and no others. It must prove the name that is dialled too, as without a map: otherwise any member of any
//! trust domain in the map could pose as the control plane.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::SpiffeBundleMap;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Verifies a server with the roots of its trust domain.
#[derive(Debug)]
pub(super) struct BundleVerifier {
    verifiers: BTreeMap<String, Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl BundleVerifier {
    /// # Errors
    /// When a root of the map cannot be used.
    pub(super) fn new(
        map: &SpiffeBundleMap,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut verifiers = BTreeMap::new();
        for (domain, ders) in &map.bundles {
            let mut roots = RootCertStore::empty();
            for der in ders {
                let added = roots.add(CertificateDer::from(der.as_ref()));
                added.map_err(|e| format!("trust_domains[{domain:?}]: {e}"))?;
            }
            // A trust domain without any root trusts nobody.
            if !roots.is_empty() {
                let provider = Arc::clone(provider);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier = verifier.map_err(|e| format!("trust_domains[{domain:?}]: {e}"))?;
                verifiers.insert(domain.clone(), verifier);
            }
        }
        Ok(Self {
            verifiers,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for BundleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let domain = trust_domain(end_entity).map_err(refused)?;
        let verifier = self.verifiers.get(&domain).ok_or_else(|| {
            let known: Vec<_> = self.verifiers.keys().collect();
            refused(format!(
                "the control plane is of trust domain {domain:?}, for which \
                 spiffe_trust_bundle_map_file has no roots; it has those of {known:?}"
            ))
        })?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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

/// The trust domain that a certificate names; its chain is not verified here.
fn trust_domain(leaf: &CertificateDer<'_>) -> Result<String, String> {
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|e| format!("the control plane's certificate cannot be read: {e}"))?;
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names
        .into_iter()
        .flat_map(|names| &names.value.general_names);
    let uris: Vec<_> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        let count = uris.len();
        return Err(format!(
            "the control plane's certificate has {count} URI names, not one SPIFFE ID, by which \
             spiffe_trust_bundle_map_file chooses roots; use ca_certificate_file for it"
        ));
    };
    let domain = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split('/').next())
        .filter(|domain| !domain.is_empty());
    let bad = || format!("the control plane's URI name {uri:?} is no SPIFFE ID");
    domain.map(str::to_owned).ok_or_else(bad)
}

fn refused(reason: String) -> Error {
    let reason: Box<dyn std::error::Error + Send + Sync> = reason.into();
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::from(reason))))
}
