//! One key, its signing request, and the check of what comes back.
//!
//! Owns the rules for an acceptable answer: it is about our key, names exactly one SPIFFE ID, and
//! is valid now. Whether the chain leads to a trusted root is the peer's question.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Certificate;

pub(super) struct SigningRequest {
    key: KeyPair,
    /// The request, PEM.
    pub(super) pem: String,
}

impl SigningRequest {
    /// A fresh P-256 key and a request for it. Names in the request are for the signer to set.
    pub(super) fn new() -> Result<Self, String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| format!("no key could be made: {e}"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(|e| format!("no CSR could be made: {e}"))?;
        Ok(Self { key, pem })
    }

    #[cfg(test)]
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Checks `answer`, PEM, leaf first, and puts it together with the key.
    pub(super) fn accept(self, answer: &[String], now: SystemTime) -> Result<Certificate, String> {
        let mut chain = Vec::new();
        for text in answer {
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                chain.push(certificate.map_err(|e| format!("it is not PEM: {e}"))?);
            }
        }
        let leaf = chain.first().ok_or("it holds no certificate")?;
        let leaf = check_leaf(leaf, Some(&self.key.subject_public_key_info()), now)?;
        let mut kept = vec![chain[0].clone()];
        for (i, certificate) in chain.iter().enumerate().skip(1) {
            let (_, parsed) = X509Certificate::from_der(certificate)
                .map_err(|e| format!("certificate {i} is not X.509: {e}"))?;
            // Peers have the roots already; sending them only costs bytes.
            if parsed.issuer() != parsed.subject() {
                kept.push(certificate.clone());
            }
        }
        Ok(Certificate {
            chain: kept,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())),
            spiffe_id: leaf.spiffe_id,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            is_stored: false,
        })
    }
}

/// What is known of a leaf that can be used.
pub(super) struct UsableLeaf {
    pub(super) spiffe_id: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Checks that a leaf is for our key, where that is not known already, names exactly one SPIFFE ID, and has not expired.
pub(super) fn check_leaf(
    leaf: &CertificateDer<'_>,
    public_key: Option<&[u8]>,
    now: SystemTime,
) -> Result<UsableLeaf, String> {
    let (_, leaf) =
        X509Certificate::from_der(leaf).map_err(|e| format!("the leaf is not X.509: {e}"))?;
    if public_key.is_some_and(|key| key != leaf.public_key().raw) {
        return Err("the leaf is for another key".into());
    }
    let not_after = time(leaf.validity().not_after.timestamp());
    if now >= not_after {
        return Err("the leaf has expired; is this machine's clock right?".into());
    }
    Ok(UsableLeaf {
        spiffe_id: spiffe_id(&leaf)?,
        not_before: time(leaf.validity().not_before.timestamp()),
        not_after,
    })
}

/// The leaf's SPIFFE ID; exactly one URI name is allowed (X.509-SVID).
fn spiffe_id(leaf: &X509Certificate<'_>) -> Result<String, String> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|e| format!("the leaf's names cannot be read: {e}"))?
        .ok_or("the leaf has no subject alternative name")?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] if uri.starts_with("spiffe://") => Ok((*uri).to_owned()),
        [uri] => Err(format!("the leaf's URI name {uri:?} is not a SPIFFE ID")),
        uris => Err(format!(
            "the leaf has {} URI names, it must have one",
            uris.len()
        )),
    }
}

fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 {
        UNIX_EPOCH + distance
    } else {
        UNIX_EPOCH - distance
    }
}
