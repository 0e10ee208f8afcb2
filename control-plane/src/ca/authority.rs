//! Signs certificates with a root that is kept in the data directory.
//!
//! A certificate says one thing: the SPIFFE ID of the [`Identity`] the caller authenticated as. Of
//! a CSR only the public key is taken, after the CSR proved possession of the private one. Does not
//! authenticate; see [`Tokens`](super::Tokens). Follows SPIFFE X.509-SVID §4 and RFC 5280.

use std::{
    fmt,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _,
};

use super::{CaError, Identity, files, identity::validate_trust_domain};

/// Longest CSR that is looked at, as PEM.
const MAX_CSR_BYTES: usize = 16 * 1024;
/// Shortest life of a leaf.
const MIN_TTL: Duration = Duration::from_secs(5);
/// Certificates are valid from a little before now, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// Life of the root.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// RFC 5280 §4.1.2.2 allows 20 bytes; 16 random ones do not collide.
const SERIAL_BYTES: usize = 16;

/// A certificate authority: a root key and the rules of signing with it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_der: Vec<u8>,
    root_not_after: SystemTime,
    trust_domain: String,
    max_ttl: Duration,
    /// Where the root and the lock are.
    dir: PathBuf,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("max_ttl", &self.max_ttl)
            .field("root_not_after", &self.root_not_after)
            .finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Clone)]
#[non_exhaustive]
pub struct Issued {
    /// PEM certificates: the leaf first, the root last.
    pub chain_pem: Vec<String>,
    /// The private key as PKCS #8 PEM; empty when the caller has it and sent a CSR.
    pub key_pem: String,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// The leaf's serial number in lower-case hex.
    pub serial: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the root from `data_dir/ca`, or makes one that is valid for 10 years. `max_ttl` bounds
    /// the life of every certificate; less than 5 s counts as 5 s.
    ///
    /// # Errors
    /// When the files cannot be read or written, do not belong together, or hold an expired root;
    /// or when `trust_domain` is not a valid name.
    pub fn open(data_dir: &Path, trust_domain: &str, max_ttl: Duration) -> Result<Self, CaError> {
        validate_trust_domain(trust_domain)?;
        let dir = data_dir.join("ca");
        // Two processes that start at once must end up with one root.
        let _lock = files::lock(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(files::at(&dir))?;
        let (cert_path, key_path) = (dir.join("root-cert.pem"), dir.join("root-key.pem"));
        let corrupt = |path: &Path, reason: String| CaError::Corrupt {
            path: path.into(),
            reason,
        };
        let cert = files::read(&cert_path)?;
        let key = match files::read(&key_path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|error| corrupt(&key_path, error.to_string()))?
            }
            // A new key would silently replace the root that clients trust.
            None if cert.is_some() => {
                return Err(corrupt(
                    &key_path,
                    "the root's private key is missing".to_owned(),
                ));
            }
            None => {
                let key = KeyPair::generate().map_err(CaError::crypto)?;
                files::replace(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let root_pem = match cert {
            Some(pem) => pem,
            None => {
                let pem = self_signed(&key, trust_domain)?;
                files::replace(&cert_path, pem.as_bytes())?;
                pem
            }
        };
        fs::set_permissions(&key_path, Permissions::from_mode(0o600))
            .map_err(files::at(&key_path))?;
        let (root_der, root_not_after) =
            read_root(&root_pem, &key).map_err(|reason| corrupt(&cert_path, reason))?;
        let issuer = Issuer::from_ca_cert_der(&root_der.as_slice().into(), key)
            .map_err(|error| corrupt(&cert_path, error.to_string()))?;
        if root_not_after <= SystemTime::now() {
            return Err(CaError::RootExpired);
        }
        Ok(Self {
            issuer,
            root_pem,
            root_der,
            root_not_after,
            trust_domain: trust_domain.to_owned(),
            max_ttl: max_ttl.max(MIN_TTL),
            dir,
        })
    }

    /// Signs the public key of a PEM CSR as `identity`, for `ttl` within 5 s and the longest life,
    /// never past the root. Names and extensions in the CSR are ignored.
    ///
    /// # Errors
    /// [`CaError::InvalidCsr`] when the CSR is longer than 16 KiB, malformed, or not signed by the
    /// key in it; others when signing fails.
    pub fn sign_csr(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        self.sign(&proven_key(csr_pem)?, identity, ttl)
    }

    /// Makes a P-256 key and signs it as `identity`, with the same rules as
    /// [`sign_csr`](Self::sign_csr).
    ///
    /// # Errors
    /// When key generation or signing fails.
    pub fn issue(&self, identity: &Identity, ttl: Duration) -> Result<Issued, CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let issued = self.sign(&key, identity, ttl)?;
        Ok(Issued {
            key_pem: key.serialize_pem(),
            ..issued
        })
    }

    /// Issues a certificate and writes `key.pem`, `cert-chain.pem` and `root-cert.pem` to `folder`,
    /// under the lock of the data directory, so that two of these cannot mix their files.
    ///
    /// # Errors
    /// When issuing or writing fails.
    pub fn issue_to(
        &self,
        folder: &Path,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<(), CaError> {
        let _lock = files::lock(&self.dir)?;
        files::private_dir(folder)?;
        let issued = self.issue(identity, ttl)?;
        for (name, text) in [
            ("key.pem", &issued.key_pem),
            ("cert-chain.pem", &issued.chain_pem.concat()),
            ("root-cert.pem", &self.root_pem),
        ] {
            files::replace(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// The root certificate as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root certificate as DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// When the root ends.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// The trust domain of every identity signed here.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        identity.validate()?;
        let now = whole_seconds(SystemTime::now());
        // The addition cannot overflow: the root's end is compared first, as a duration.
        let left = self
            .root_not_after
            .duration_since(now)
            .map_err(|_| CaError::RootExpired)?;
        let not_after = now + ttl.clamp(MIN_TTL, self.max_ttl).min(left);
        if not_after <= now {
            return Err(CaError::RootExpired);
        }
        let san = identity.spiffe_id(&self.trust_domain);
        let (number, serial) = serial()?;
        let mut params = CertificateParams::default();
        // RFC 5280 §4.2.1.6: an empty subject, so that nothing but the SAN names the workload.
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = san.as_str().try_into().map_err(CaError::crypto)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(number);
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        let leaf = params
            .signed_by(key, &self.issuer)
            .map_err(CaError::crypto)?;
        tracing::info!(
            target: "audit",
            %identity,
            san,
            serial,
            not_after = unix_seconds(not_after),
            "certificate issued"
        );
        let chain_pem = vec![leaf.pem(), self.root_pem.clone()];
        Ok(Issued {
            chain_pem,
            key_pem: String::new(),
            not_after,
            serial,
        })
    }
}

/// The public key of a CSR that is signed by the matching private key.
fn proven_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, CaError> {
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
    csr.verify_signature()
        .map_err(|_| CaError::csr("not signed by its own key"))?;
    SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| CaError::csr("unsupported key type"))
}

fn self_signed(key: &KeyPair, trust_domain: &str) -> Result<String, CaError> {
    let now = whole_seconds(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, "mesh root");
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(CaError::crypto)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?.0);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_TTL).into();
    Ok(params.self_signed(key).map_err(CaError::crypto)?.pem())
}

/// The root's DER and end, when it is a CA certificate of `key`.
fn read_root(pem: &str, key: &KeyPair) -> Result<(Vec<u8>, SystemTime), String> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let cert = pem.parse_x509().map_err(|error| error.to_string())?;
    if cert.public_key().raw != key.subject_public_key_info() {
        return Err("the certificate is not of the key in root-key.pem".to_owned());
    }
    if !cert.is_ca() {
        return Err("not a CA certificate".to_owned());
    }
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default();
    let not_after = UNIX_EPOCH + Duration::from_secs(seconds);
    Ok((pem.contents.clone(), not_after))
}

/// A random serial number, also as hex.
fn serial() -> Result<(SerialNumber, String), CaError> {
    let mut bytes = [0; SERIAL_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(CaError::crypto)?;
    // Positive and never shorter than 16 bytes, so that the hex form is what other tools print.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok((SerialNumber::from_slice(&bytes), super::token::hex(&bytes)))
}

/// X.509 times have no fractions.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds(time))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
