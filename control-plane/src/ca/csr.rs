//! What is taken of a certificate signing request: its public key, once the request proved that the
//! private one is there.
//!
//! Names, validity and usages in a CSR are the requester's wishes and are ignored. Two things are
//! refused instead: a request to become an authority, which no honest workload makes, and keys or
//! signatures that are too weak to carry an identity.

use rcgen::{KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use ring::digest::{SHA256, digest};
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::ParsedExtension,
    oid_registry::OID_PKCS1_SHA1WITHRSA, pem::parse_x509_pem, prelude::FromDer as _,
    public_key::PublicKey,
};

use super::CaError;

/// Longest CSR that is looked at, as PEM.
pub(super) const MAX_CSR_BYTES: usize = 16 * 1024;
/// Shortest RSA modulus (NIST SP 800-57: 112 bits of security).
const RSA_BITS_MIN: usize = 2048;
/// Longest one: verifying a longer one is work for an attacker to hand out.
const RSA_BITS_MAX: usize = 8192;
const UNSUPPORTED: &str = "unsupported key type: use ECDSA P-256, P-384, Ed25519, or RSA";

/// A public key whose private half the requester has.
#[derive(Debug)]
pub(super) struct ProvenKey {
    pub(super) key: SubjectPublicKeyInfo,
    /// SHA-256 of the SubjectPublicKeyInfo in hex, for the audit log.
    pub(super) sha256: String,
}

impl ProvenKey {
    /// A key that was made here.
    pub(super) fn made(key: &KeyPair) -> Result<Self, CaError> {
        Self::of(&key.subject_public_key_info())
    }

    fn of(der: &[u8]) -> Result<Self, CaError> {
        let key = SubjectPublicKeyInfo::from_der(der).map_err(|_| CaError::csr(UNSUPPORTED))?;
        Ok(Self {
            key,
            sha256: super::token::hex(digest(&SHA256, der).as_ref()),
        })
    }
}

/// The public key of a CSR that is signed by the matching private key.
pub(super) fn proven_key(csr_pem: &str) -> Result<ProvenKey, CaError> {
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(CaError::csr(format_args!(
            "longer than {MAX_CSR_BYTES} bytes"
        )));
    }
    let (_, pem) = parse_x509_pem(csr_pem.as_bytes()).map_err(|_| CaError::csr("not PEM"))?;
    if !matches!(
        pem.label.as_str(),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
    ) {
        return Err(CaError::csr("the PEM block is not a CERTIFICATE REQUEST"));
    }
    let (rest, csr) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| CaError::csr("not a PKCS #10 structure"))?;
    if !rest.is_empty() {
        return Err(CaError::csr("bytes after the PKCS #10 structure"));
    }
    check_strength(&csr)?;
    csr.verify_signature()
        .map_err(|_| CaError::csr("not signed by its own key"))?;
    check_wishes(&csr)?;
    ProvenKey::of(csr.certification_request_info.subject_pki.raw)
}

fn check_strength(csr: &X509CertificationRequest<'_>) -> Result<(), CaError> {
    if csr.signature_algorithm.algorithm == OID_PKCS1_SHA1WITHRSA {
        return Err(CaError::csr("signed with SHA-1: use SHA-256 or longer"));
    }
    let key = csr.certification_request_info.subject_pki.parsed();
    match key.map_err(|_| CaError::csr("its key cannot be read"))? {
        PublicKey::RSA(rsa) => {
            let bits = rsa.key_size();
            if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
                return Err(CaError::csr(format_args!(
                    "an RSA key of {bits} bits: {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken"
                )));
            }
            Ok(())
        }
        // Which curves there are is decided by what can be verified.
        PublicKey::EC(_) | PublicKey::Unknown(_) => Ok(()),
        _ => Err(CaError::csr(UNSUPPORTED)),
    }
}

fn check_wishes(csr: &X509CertificationRequest<'_>) -> Result<(), CaError> {
    let wishes = csr.requested_extensions().into_iter().flatten();
    for wish in wishes {
        match wish {
            ParsedExtension::BasicConstraints(basic) if basic.ca => {
                return Err(CaError::csr("it asks for an authority (CA:TRUE)"));
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(CaError::csr("it asks to sign certificates"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;

    fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn refusal(csr: &str) -> String {
        proven_key(csr).unwrap_err().to_string()
    }

    /// Made by `openssl req -new -newkey rsa:1024 -nodes -subj /CN=a`.
    const RSA_1024: &str = include_str!("testdata/rsa-1024.csr.pem");
    /// Made by `openssl req -new -newkey rsa:2048 -sha1 -nodes -subj /CN=a`.
    const SHA1: &str = include_str!("testdata/sha1.csr.pem");
    /// Made by `openssl req -new -newkey rsa:2048 -nodes -subj /CN=a`.
    const RSA_2048: &str = include_str!("testdata/rsa-2048.csr.pem");

    #[test]
    fn weak_keys_and_signatures_are_refused() {
        let short = refusal(RSA_1024);
        assert!(short.contains("1024 bits"), "{short}");
        assert!(refusal(SHA1).contains("SHA-1"));
        assert_eq!(proven_key(RSA_2048).unwrap().sha256.len(), 64);
    }

    #[test]
    fn a_wish_to_be_an_authority_is_refused() {
        let ca = request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(refusal(&ca).contains("CA:TRUE"));
        let signs = request(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        assert!(refusal(&signs).contains("sign certificates"));
        proven_key(&request(|_| {})).unwrap();
    }

    /// Damaged requests are refused, and none of them takes the process down.
    #[test]
    fn damaged_requests_are_refused() {
        let rounds = std::env::var("MESH_FUZZ_ROUNDS").ok();
        let rounds: u64 = rounds.and_then(|text| text.parse().ok()).unwrap_or(2_000);
        let good = request(|_| {});
        let (_, der) = parse_x509_pem(good.as_bytes()).unwrap();
        let mut rng = mesh_core::rng::SplitMix64::new(7);
        let mut random = |bound: usize| {
            use mesh_core::rng::Rng as _;
            (rng.unit() * bound as f64) as usize
        };
        for round in 0..rounds {
            let is_text = round % 2 == 0;
            let mut bytes = match is_text {
                true => good.clone().into_bytes(),
                false => der.contents.clone(),
            };
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random(256) as u8),
                }
            }
            let text = match is_text {
                true => String::from_utf8_lossy(&bytes).into_owned(),
                false => pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes.as_slice())),
            };
            // A change outside of the PEM block, or one that undoes itself, changes nothing.
            if let Ok(proven) = proven_key(&text) {
                let same = proven_key(&good).unwrap();
                assert_eq!(proven.sha256, same.sha256, "round {round}: {text}");
            }
        }
    }
}
