//! Roots and certificates of this machine: the system's roots, and PEM files that a cluster names.
//!
//! For servers outside the mesh; what the mesh itself trusts is the [`Identity`](crate::identity::Identity)'s.
//! Read when a handshake first wants them, off the runtime's threads, and shared by all connections of
//! a process. Files are looked at again after [`FILE_AGE_MAX`], by path, so that links that move are
//! followed. What was read once stays when it cannot be read any more; what never could be read refuses
//! the handshake.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::secrets::SecretReader;
use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::time::Instant;

use super::{TlsError, TlsErrorKind, provider};

/// A file is looked at again by the first handshake after this time.
pub const FILE_AGE_MAX: Duration = Duration::from_secs(10);

/// The system's roots are looked at again by the first handshake after this time.
pub const SYSTEM_ROOTS_AGE_MAX: Duration = Duration::from_secs(3600);

/// Roots and certificates of this machine, as they were last read.
#[derive(Debug, Default)]
pub(crate) struct Materials {
    roots: Shelf<Option<PathBuf>, RootCertStore>,
    certificates: Shelf<(PathBuf, PathBuf), CertifiedKey>,
    secrets: SecretReader,
}

impl Materials {
    /// Beside those of this machine, what comes over SDS.
    pub(crate) fn with_secrets(secrets: SecretReader) -> Self {
        Self {
            secrets,
            ..Self::default()
        }
    }

    /// What comes over SDS.
    pub(crate) fn secrets(&self) -> &SecretReader {
        &self.secrets
    }

    /// The system's roots.
    pub(crate) async fn system_roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        self.load_roots(None, SYSTEM_ROOTS_AGE_MAX).await
    }

    /// The roots in a PEM file.
    pub(crate) async fn roots(&self, path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
        self.load_roots(Some(path.to_owned()), FILE_AGE_MAX).await
    }

    async fn load_roots(
        &self,
        path: Option<PathBuf>,
        age_max: Duration,
    ) -> Result<Arc<RootCertStore>, TlsError> {
        let read = |path: &Option<PathBuf>| match path {
            Some(path) => read_roots(path),
            None => read_system_roots(),
        };
        self.roots
            .load(path, age_max, TlsErrorKind::NoTrust, read)
            .await
    }

    /// The certificate of a chain and a key in PEM files.
    pub(crate) async fn certificate(
        &self,
        chain: &Path,
        key: &Path,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        let files = (chain.to_owned(), key.to_owned());
        self.certificates
            .load(
                files,
                FILE_AGE_MAX,
                TlsErrorKind::NoIdentity,
                |(chain, key)| read_certificate(chain, key),
            )
            .await
    }
}

/// What was read, with the bytes it was read from and when.
#[derive(Debug)]
struct Held<T> {
    value: Arc<T>,
    source: Vec<u8>,
    looked: Instant,
}

/// Values by where they come from.
#[derive(Debug)]
struct Shelf<K, T>(Mutex<HashMap<K, Held<T>>>);

impl<K, T> Default for Shelf<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// A value with the bytes it was read from, or why there is none.
type Read<T> = Result<(T, Vec<u8>), String>;

impl<K, T> Shelf<K, T>
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    /// The value of `key`, the same pointer until what it was read from changes.
    async fn load(
        &self,
        key: K,
        age_max: Duration,
        kind: TlsErrorKind,
        read: impl FnOnce(&K) -> Read<T> + Send + 'static,
    ) -> Result<Arc<T>, TlsError> {
        if let Some(value) = self.fresh(&key, age_max) {
            return Ok(value);
        }
        let wanted = key.clone();
        let read = tokio::task::spawn_blocking(move || read(&wanted)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = Instant::now();
        match (read, held.get_mut(&key)) {
            (Ok((_, source)), Some(old)) if old.source == source => {
                old.looked = looked;
                Ok(Arc::clone(&old.value))
            }
            (Ok((value, source)), _) => {
                let value = Arc::new(value);
                let new = Held {
                    value: Arc::clone(&value),
                    source,
                    looked,
                };
                held.insert(key, new);
                Ok(value)
            }
            (Err(reason), Some(old)) => {
                tracing::warn!(target: "mesh::tls", reason, "what was read before is kept");
                old.looked = looked;
                Ok(Arc::clone(&old.value))
            }
            (Err(reason), None) => Err(TlsError::new(kind, reason)),
        }
    }

    fn fresh(&self, key: &K, age_max: Duration) -> Option<Arc<T>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.get(key)?;
        (held.looked.elapsed() < age_max).then(|| Arc::clone(&held.value))
    }
}

fn read_system_roots() -> Read<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let source = found.certs.iter().flat_map(|der| der.as_ref()).copied();
    let source = source.collect();
    let (usable, _) = store.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "the system has no root certificates (install ca-certificates, or set SSL_CERT_FILE or \
             SSL_CERT_DIR): {}",
            reasons.join("; ")
        ));
    }
    Ok((store, source))
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn read_roots(path: &Path) -> Read<RootCertStore> {
    let pem = read("trusted roots", path)?;
    let bad = |reason: String| format!("trusted roots {}: {reason}", path.display());
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
        let added = store.add(certificate);
        added.map_err(|error| bad(format!("not a root certificate: {error}")))?;
    }
    if store.is_empty() {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    Ok((store, pem))
}

fn read_certificate(chain: &Path, key: &Path) -> Read<CertifiedKey> {
    let chain_pem = read("client certificate", chain)?;
    let key_pem = read("private key", key)?;
    let bad =
        |path: &Path, reason: String| format!("client certificate {}: {reason}", path.display());
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(chain, format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(bad(chain, "there is no certificate in it".to_owned()));
    }
    let parsed = PrivateKeyDer::from_pem_slice(&key_pem);
    let parsed = parsed.map_err(|error| bad(key, format!("not a key in PEM: {error}")))?;
    // A half of a pair that is being replaced does not fit the other: then the old pair stays.
    let certified = CertifiedKey::from_der(certificates, parsed, &provider())
        .map_err(|error| bad(chain, format!("its key cannot be used: {error}")))?;
    // Never the key itself: its hash says whether it is another one.
    let mut source = chain_pem;
    source.extend(ring::digest::digest(&ring::digest::SHA256, &key_pem).as_ref());
    Ok((certified, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("name");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn root() -> String {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("signed").pem()
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again_and_one_that_breaks_is_kept() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("ca.pem");
        let materials = Materials::default();
        let missing = materials.roots(&path).await.expect_err("no file");
        assert_eq!(missing.kind(), TlsErrorKind::NoTrust);
        assert!(missing.to_string().contains("ca.pem"), "{missing}");

        fs::write(&path, root()).expect("write");
        let first = materials.roots(&path).await.expect("a failure is not kept");
        fs::write(&path, root()).expect("write");
        let again = materials.roots(&path).await.expect("roots");
        assert!(Arc::ptr_eq(&first, &again), "it is not due yet");
        tokio::time::advance(FILE_AGE_MAX).await;
        let second = materials.roots(&path).await.expect("roots");
        assert!(!Arc::ptr_eq(&first, &second), "it has changed");
        for broken in ["", "nonsense"] {
            fs::write(&path, broken).expect("write");
            tokio::time::advance(FILE_AGE_MAX).await;
            let kept = materials.roots(&path).await.expect("roots");
            assert!(Arc::ptr_eq(&second, &kept), "{broken:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_new_pair_does_not_replace_the_old_pair() {
        let directory = tempfile::tempdir().expect("directory");
        let chain = directory.path().join("chain.pem");
        let key = directory.path().join("key.pem");
        let (old, new) = (certificate("old"), certificate("new"));
        fs::write(&chain, &old.0).expect("write");
        fs::write(&key, &old.1).expect("write");
        let materials = Materials::default();
        let first = materials.certificate(&chain, &key).await.expect("pair");
        fs::write(&chain, &new.0).expect("write");
        tokio::time::advance(FILE_AGE_MAX).await;
        let kept = materials.certificate(&chain, &key).await.expect("pair");
        assert!(Arc::ptr_eq(&first, &kept));
        fs::write(&key, &new.1).expect("write");
        tokio::time::advance(FILE_AGE_MAX).await;
        let second = materials.certificate(&chain, &key).await.expect("pair");
        assert!(!Arc::ptr_eq(&first, &second));
        let nobody = directory.path().join("nobody.pem");
        let missing = materials
            .certificate(&nobody, &key)
            .await
            .expect_err("none");
        assert_eq!(missing.kind(), TlsErrorKind::NoIdentity);
    }
}
