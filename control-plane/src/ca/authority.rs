//! Signs certificates, by rules that no caller can bend.
//!
//! A certificate says one thing: the SPIFFE ID of the [`Identity`] the caller authenticated as. Of
//! a CSR only the public key is taken, after the CSR proved possession of the private one. Does not
//! authenticate; see [`Callers`](super::Callers). Which root signs and which are trusted is
//! [`rotation`](super::rotation)'s. Follows SPIFFE X.509-SVID §4 and RFC 5280.

use std::{
    fmt,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;

use super::{
    CaError, Identity,
    csr::{ProvenKey, proven_key},
    files,
    identity::validate_trust_domain,
    ledger::Ledger,
    rotation::{Held, Rotation},
    signer::{Root, Signer},
};

/// Shortest life of a leaf, unless the operator's longest is shorter still.
pub const LEAF_TTL_MIN: Duration = Duration::from_secs(5 * 60);
/// Longest life of a leaf, whatever the operator says: nobody revokes, so short lives must do.
pub const LEAF_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The operator's longest life is at least this.
const OPERATOR_TTL_MIN: Duration = Duration::from_secs(5);
/// Certificates are valid from so long before now, for clocks that are behind: two machines that are
/// each within five minutes of the truth differ by no more.
pub(super) const BACKDATE: Duration = Duration::from_secs(10 * 60);
/// Every trusted root, in the directory of the authority.
pub(crate) const TRUST_BUNDLE: &str = "trust-bundle.pem";
/// RFC 5280 §4.1.2.2 allows 20 bytes; 16 random ones do not collide.
const SERIAL_BYTES: usize = 16;

/// A certificate authority: keys that sign, and the rules of signing with them.
pub struct Authority {
    held: RwLock<Held>,
    roots: watch::Sender<Vec<Bytes>>,
    ledger: Ledger,
    trust_domain: String,
    max_ttl: Duration,
    /// Where the roots and the lock are.
    dir: PathBuf,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("max_ttl", &self.max_ttl)
            .field("root_not_after", &self.root_not_after())
            .finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Clone)]
#[non_exhaustive]
pub struct Issued {
    /// PEM certificates: the leaf first, then intermediates, last the trusted roots in one text.
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
    /// the life of every certificate; it counts as 5 s at least and 7 days at most.
    ///
    /// # Errors
    /// When the files cannot be read or written, do not belong together, or hold an expired root;
    /// or when `trust_domain` is not a valid name.
    pub fn open(data_dir: &Path, trust_domain: &str, max_ttl: Duration) -> Result<Self, CaError> {
        Self::new(data_dir, trust_domain, max_ttl, Held::open)
    }

    /// Signs with an intermediate that is in `ca_dir`: `ca-key.pem`, `ca-cert.pem`,
    /// `cert-chain.pem` and `root-cert.pem`, as in Istio's `cacerts`. The chain goes out with each
    /// leaf, and every certificate in `root-cert.pem` is trusted.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the chain does not lead from the key to a root.
    pub fn plugged_in(
        data_dir: &Path,
        ca_dir: &Path,
        trust_domain: &str,
        max_ttl: Duration,
    ) -> Result<Self, CaError> {
        Self::new(data_dir, trust_domain, max_ttl, |dir, _| {
            Held::plugged_in(dir, ca_dir)
        })
    }

    fn new(
        data_dir: &Path,
        trust_domain: &str,
        max_ttl: Duration,
        held: impl FnOnce(&Path, &str) -> Result<Held, CaError>,
    ) -> Result<Self, CaError> {
        validate_trust_domain(trust_domain)?;
        let dir = data_dir.join("ca");
        // Two processes that start at once must end up with one root.
        let _lock = files::lock(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(files::at(&dir))?;
        let held = held(&dir, trust_domain)?;
        write_bundle(&dir, &held)?;
        let max_ttl = max_ttl.clamp(OPERATOR_TTL_MIN, LEAF_TTL_MAX);
        Ok(Self {
            roots: watch::channel(ders(&held.trusted())).0,
            ledger: Ledger::open(&dir, max_ttl)?,
            held: RwLock::new(held),
            trust_domain: trust_domain.to_owned(),
            max_ttl,
            dir,
        })
    }

    /// Signs the public key of a PEM CSR as `identity`, for `ttl` within [`LEAF_TTL_MIN`] and the
    /// longest life, never past the end of what signs it. Names and extensions in the CSR are
    /// ignored.
    ///
    /// # Errors
    /// [`CaError::InvalidCsr`] when the CSR is longer than 16 KiB, malformed, not signed by the
    /// key in it, of a weak key, or asks for an authority; others when signing fails.
    pub fn sign_csr(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        self.sign(&proven_key(csr_pem)?, identity, &[], ttl)
    }

    /// Makes a P-256 key and signs it as `identity`, with the same rules as
    /// [`sign_csr`](Self::sign_csr).
    ///
    /// # Errors
    /// When key generation or signing fails.
    pub fn issue(&self, identity: &Identity, ttl: Duration) -> Result<Issued, CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let issued = self.sign(&ProvenKey::made(&key)?, identity, &[], ttl)?;
        Ok(Issued {
            key_pem: key.serialize_pem(),
            ..issued
        })
    }

    /// A certificate by which clients know this control plane: its identity, and the names and
    /// addresses that they dial. Nobody else's certificate has those.
    ///
    /// # Errors
    /// When a name is not a DNS name, or signing fails.
    pub(crate) fn issue_serving(
        &self,
        identity: &Identity,
        dialled: &[String],
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate().map_err(CaError::crypto)?;
        let names: Result<Vec<_>, _> = dialled
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName),
            })
            .collect();
        let names = names.map_err(CaError::crypto)?;
        let issued = self.sign(&ProvenKey::made(&key)?, identity, &names, ttl)?;
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
        let issued = self.issue(identity, ttl)?;
        let _lock = files::lock(&self.dir)?;
        files::private_dir(folder)?;
        for (name, text) in [
            ("key.pem", &issued.key_pem),
            ("cert-chain.pem", &issued.chain_pem.concat()),
            ("root-cert.pem", &self.root_pem()),
        ] {
            files::replace(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// The trusted root certificates as PEM, that which signs first.
    pub fn root_pem(&self) -> String {
        let trusted = self.held().trusted();
        trusted.into_iter().map(|root| root.pem).collect()
    }

    /// The trusted root certificates as DER, as they change.
    pub fn roots(&self) -> watch::Receiver<Vec<Bytes>> {
        self.roots.subscribe()
    }

    /// The earliest end in the chain that signs.
    pub fn root_not_after(&self) -> SystemTime {
        self.held().issuing.not_after
    }

    /// The trust domain of every identity signed here.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// How far a change of roots has come; `None` when none is going on.
    pub fn rotation(&self) -> Option<Rotation> {
        self.held().rotation.clone()
    }

    /// Makes a new root and trusts it beside the old one, which still signs.
    ///
    /// # Errors
    /// When a change is going on already, when the authority is plugged in, or when files cannot be
    /// written.
    pub fn begin_rotation(&self) -> Result<(), CaError> {
        self.change(|held| held.begin(&self.dir, &self.trust_domain))
    }

    /// Takes the next step of the change that is going on. Whether it is safe is the caller's
    /// question.
    ///
    /// # Errors
    /// When there is no change, or files cannot be written.
    pub fn advance_rotation(&self) -> Result<(), CaError> {
        self.change(|held| held.advance(&self.dir, self.ledger.latest_end()))
    }

    /// Goes back to the old root: at once while nothing was signed with the new one, else by the
    /// same steps in the other direction.
    ///
    /// # Errors
    /// When there is no change, the old root has left already, or files cannot be written.
    pub fn abort_rotation(&self) -> Result<(), CaError> {
        self.change(|held| held.abort(&self.dir, self.ledger.latest_end()))
    }

    fn change(&self, change: impl FnOnce(&mut Held) -> Result<(), CaError>) -> Result<(), CaError> {
        // Waits for signatures that are being made, so that the last of them is in the ledger.
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let _lock = files::lock(&self.dir)?;
        change(&mut held)?;
        write_bundle(&self.dir, &held)?;
        self.roots.send_replace(ders(&held.trusted()));
        Ok(())
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs a key; the last step of every way to a certificate.
    pub(super) fn sign(
        &self,
        proven: &ProvenKey,
        identity: &Identity,
        dialled: &[SanType],
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        identity.validate()?;
        let held = self.held();
        let (signer, trusted) = (&held.issuing, held.trusted());
        let now = whole_seconds(SystemTime::now());
        let not_after = self.end(now, ttl, signer)?;
        // A change of roots waits for the last leaf, so that it must be known before it exists.
        self.ledger.will_end(not_after)?;
        let san = identity.spiffe_id(&self.trust_domain);
        let (number, serial) = serial()?;
        let mut params = leaf(&san)?;
        params.subject_alt_names.extend_from_slice(dialled);
        params.serial_number = Some(number);
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        let leaf = params
            .signed_by(&proven.key, &signer.issuer)
            .map_err(CaError::crypto)?;
        tracing::info!(
            target: "audit",
            %identity,
            san,
            serial,
            not_after = unix_seconds(not_after),
            key_sha256 = proven.sha256,
            "certificate issued"
        );
        let mut chain_pem = vec![leaf.pem()];
        chain_pem.extend(signer.intermediates.iter().cloned());
        chain_pem.push(trusted.into_iter().map(|root| root.pem).collect());
        Ok(Issued {
            chain_pem,
            key_pem: String::new(),
            not_after,
            serial,
        })
    }

    /// When a leaf ends that begins now.
    fn end(&self, now: SystemTime, ttl: Duration, signer: &Signer) -> Result<SystemTime, CaError> {
        let left = signer.not_after.duration_since(now);
        // The addition below cannot overflow: the issuer's end bounds it.
        let left = left.map_err(|_| CaError::RootExpired)?;
        let shortest = LEAF_TTL_MIN.min(self.max_ttl);
        let not_after = now + ttl.clamp(shortest, self.max_ttl).min(left);
        if not_after <= now {
            return Err(CaError::RootExpired);
        }
        Ok(not_after)
    }
}

/// A leaf that names `san` alone.
fn leaf(san: &str) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    // RFC 5280 §4.2.1.6: an empty subject, so that nothing but the SAN names the workload.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let uri = san.try_into().map_err(CaError::crypto)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What clients verify the control plane with, for those who have to be given it as a file.
fn write_bundle(dir: &Path, held: &Held) -> Result<(), CaError> {
    let text: String = held.trusted().into_iter().map(|root| root.pem).collect();
    files::replace(&dir.join(TRUST_BUNDLE), text.as_bytes())
}

fn ders(roots: &[Root]) -> Vec<Bytes> {
    roots.iter().map(|root| root.der.clone()).collect()
}

/// A random serial number, also as hex.
pub(super) fn serial() -> Result<(SerialNumber, String), CaError> {
    let mut bytes = [0; SERIAL_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(CaError::crypto)?;
    // Positive and never shorter than 16 bytes, so that the hex form is what other tools print.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok((SerialNumber::from_slice(&bytes), super::token::hex(&bytes)))
}

/// X.509 times have no fractions.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds(time))
}

pub(super) fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
