//! A key that signs, with the chain that leads from it to a root.
//!
//! Either a root of our own, kept in the data directory, or an intermediate that somebody plugged in
//! as files, named as Istio's `cacerts` are. What does not hold together is refused when it is read,
//! not when the first workload finds its certificate useless.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pem::{EncodeConfig, LineEnding};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use x509_parser::pem::Pem;

use super::{
    CaError,
    authority::{BACKDATE, serial, system_time, whole_seconds},
    files,
};

/// Life of a root that is made here.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Longest chain of a plugged-in intermediate, roots included.
const CHAIN_MAX: usize = 10;

/// A root certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) pem: String,
    pub(super) der: Bytes,
}

/// A key that signs.
pub(super) struct Signer {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// From the signing certificate to the last one below a root, as PEM; empty for a root.
    pub(super) intermediates: Vec<String>,
    /// Who vouches for it.
    pub(super) roots: Vec<Root>,
    /// The earliest end in the chain.
    pub(super) not_after: SystemTime,
}

impl Signer {
    /// A root in `dir`, made if it is missing.
    pub(super) fn own(dir: &Path, id: &str, trust_domain: &str) -> Result<Self, CaError> {
        let (cert_path, key_path) = root_files(dir, id);
        let cert = files::read(&cert_path)?;
        let key = match files::read(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|e| corrupt(&key_path, e.to_string()))?,
            // A new key would silently replace the root that clients trust.
            None if cert.is_some() => {
                return Err(corrupt(&key_path, "the root's private key is missing"));
            }
            None => {
                let key = KeyPair::generate().map_err(CaError::crypto)?;
                files::replace(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        files::make_private(&key_path)?;
        let pem = match cert {
            Some(pem) => pem,
            None => {
                let pem = self_signed(&key, trust_domain)?;
                files::replace(&cert_path, pem.as_bytes())?;
                pem
            }
        };
        let chain = certificates(&cert_path, &pem)?;
        Self::of(key, (&cert_path, &key_path), &chain, &chain)
    }

    /// An intermediate from `ca-key.pem`, `ca-cert.pem`, `cert-chain.pem` (from the intermediate up;
    /// may be missing when `ca-cert.pem` is signed by a root) and `root-cert.pem` in `dir`.
    pub(super) fn plugged_in(dir: &Path) -> Result<Self, CaError> {
        let at = |name: &str| dir.join(name);
        let need = |name: &str| {
            files::read(&at(name))?.ok_or_else(|| corrupt(&at(name), "there is no such file"))
        };
        let key_path = at("ca-key.pem");
        let key = KeyPair::from_pem(&need("ca-key.pem")?).map_err(|error| {
            let hint = "PKCS #8 is read; convert with `openssl pkcs8 -topk8 -nocrypt`";
            corrupt(&key_path, format!("{error}; {hint}"))
        })?;
        let cert_path = at("ca-cert.pem");
        let mut chain = certificates(&cert_path, &need("ca-cert.pem")?)?;
        chain.truncate(1);
        if let Some(text) = files::read(&at("cert-chain.pem"))? {
            let more = certificates(&at("cert-chain.pem"), &text)?;
            let is_above = |pem: &Pem| pem.contents != chain[0].contents;
            let above: Vec<_> = more.into_iter().filter(is_above).collect();
            chain.extend(above);
        }
        let roots = certificates(&at("root-cert.pem"), &need("root-cert.pem")?)?;
        Self::of(key, (&cert_path, &key_path), &chain, &roots)
    }

    fn of(
        key: KeyPair,
        (cert_path, key_path): (&Path, &Path),
        chain: &[Pem],
        roots: &[Pem],
    ) -> Result<Self, CaError> {
        let bad = |reason: String| corrupt(cert_path, reason);
        let parsed = |pem: &'_ Pem| pem.parse_x509().map(drop).map_err(|e| bad(e.to_string()));
        chain.iter().chain(roots).try_for_each(parsed)?;
        let leaf = chain[0].parse_x509().map_err(|e| bad(e.to_string()))?;
        if leaf.public_key().raw != key.subject_public_key_info() {
            let key_path = key_path.display();
            return Err(bad(format!(
                "the certificate is not of the key in {key_path}"
            )));
        }
        let vouched = vouched_for(chain, roots).map_err(bad)?;
        let not_after = vouched.iter().map(|(_, end)| *end).min();
        let not_after = not_after.unwrap_or(SystemTime::UNIX_EPOCH);
        if not_after <= SystemTime::now() {
            return Err(CaError::RootExpired);
        }
        let issuer = Issuer::from_ca_cert_der(&chain[0].contents.as_slice().into(), key)
            .map_err(|e| bad(e.to_string()))?;
        let is_root = |der: &[u8]| roots.iter().any(|root| root.contents == der);
        let below_roots = vouched.iter().filter(|(pem, _)| !is_root(&pem.contents));
        Ok(Self {
            issuer,
            intermediates: below_roots.map(|(pem, _)| armour(&pem.contents)).collect(),
            roots: roots
                .iter()
                .map(|pem| Root {
                    pem: armour(&pem.contents),
                    der: Bytes::copy_from_slice(&pem.contents),
                })
                .collect(),
            not_after,
        })
    }
}

/// Where a root of our own and its key are.
pub(super) fn root_files(dir: &Path, id: &str) -> (PathBuf, PathBuf) {
    (
        dir.join(format!("{id}-cert.pem")),
        dir.join(format!("{id}-key.pem")),
    )
}

/// The chain from the signing certificate to a root, root included, with the end of each.
fn vouched_for<'p>(
    chain: &'p [Pem],
    roots: &'p [Pem],
) -> Result<Vec<(&'p Pem, SystemTime)>, String> {
    let mut found = Vec::new();
    let mut rest = chain.iter();
    let Some(mut current) = rest.next() else {
        return Err("there is no certificate".to_owned());
    };
    loop {
        let parsed = current.parse_x509().map_err(|e| e.to_string())?;
        let subject = parsed.subject().to_string();
        if !parsed.is_ca() {
            return Err(format!("{subject:?} is not a CA certificate"));
        }
        found.push((
            current,
            system_time(parsed.validity().not_after.timestamp()),
        ));
        if roots.iter().any(|root| root.contents == current.contents) {
            return Ok(found);
        }
        let signs = |above: &&Pem| {
            above.parse_x509().is_ok_and(|above| {
                above.subject() == parsed.issuer()
                    && parsed.verify_signature(Some(above.public_key())).is_ok()
            })
        };
        let above = rest.clone().chain(roots).find(signs).ok_or_else(|| {
            format!("nothing in cert-chain.pem or root-cert.pem signed {subject:?}")
        })?;
        if found.len() == CHAIN_MAX {
            return Err(format!("the chain is longer than {CHAIN_MAX}"));
        }
        while rest
            .as_slice()
            .first()
            .is_some_and(|next| next.contents != above.contents)
        {
            rest.next();
        }
        rest.next();
        current = above;
    }
}

fn certificates(path: &Path, text: &str) -> Result<Vec<Pem>, CaError> {
    let found: Result<Vec<_>, _> = Pem::iter_from_buffer(text.as_bytes()).collect();
    match found {
        Err(error) => Err(corrupt(path, error.to_string())),
        Ok(found) if found.is_empty() => Err(corrupt(path, "it holds no certificate")),
        Ok(found) if found.iter().any(|pem| pem.label != "CERTIFICATE") => {
            Err(corrupt(path, "it holds something that is no certificate"))
        }
        Ok(found) => Ok(found),
    }
}

fn armour(der: &[u8]) -> String {
    let line_ending = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), line_ending)
}

fn self_signed(key: &KeyPair, trust_domain: &str) -> Result<String, CaError> {
    let now = whole_seconds(SystemTime::now());
    let (number, hex) = serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, trust_domain);
    // Two roots of one name are told apart by trial only, and explained by nobody.
    name.push(DnType::CommonName, format!("mesh root {}", &hex[..8]));
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(CaError::crypto)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(number);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_TTL).into();
    Ok(params.self_signed(key).map_err(CaError::crypto)?.pem())
}

pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> CaError {
    CaError::Corrupt {
        path: path.into(),
        reason: reason.into(),
    }
}
