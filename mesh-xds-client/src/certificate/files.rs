//! Certificate and roots from files that somebody else writes and replaces (gRFC A29 `file_watcher`),
//! the roots in one heap or by trust domain (gRFC A87).
//!
//! Chain and key are taken together or not at all: files caught in the middle of a rotation do not fit
//! each other, and what was read before stays. Writers should swap a symbolic link to a folder. A change
//! is seen at the next reading; equal content moves nothing.

use std::{path::Path, sync::Arc, time::SystemTime};

use mesh_core::config::{SpiffeBundleMap, TrustBundle};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::watch;

use super::{
    Certificate, CertificateWatch, bundles,
    csr::check_leaf,
    life::{Clock, LifeReport},
};
use crate::bootstrap::{FileWatcher, TRUST_BUNDLE};

/// Largest file that is read, in bytes.
const BYTES_MAX: u64 = 4 << 20;

/// Roots as they are now; `None` until the first reading.
pub type RootsWatch = watch::Receiver<Option<Arc<TrustBundle>>>;

/// Roots by trust domain as they are now; `None` until the first reading.
pub type BundleMapWatch = watch::Receiver<Option<Arc<SpiffeBundleMap>>>;

/// What a provider of files gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileIdentity {
    /// Certificate with its key; never any when the provider has none.
    pub certificate: CertificateWatch,
    /// Roots; never any when the provider has none.
    pub roots: RootsWatch,
    /// Roots by trust domain, in place of `roots`; `None` when the provider has no such file.
    pub bundles: Option<BundleMapWatch>,
}

/// Starts a task that reads the files until every receiver is dropped.
pub(crate) fn start(config: FileWatcher) -> FileIdentity {
    let (certificate_tx, certificate) = watch::channel(None);
    let (roots_tx, roots) = watch::channel(None);
    let (bundles_tx, bundles) = watch::channel(None);
    let has_bundles = config.spiffe_trust_bundle_map_file.is_some();
    tokio::spawn(run(config, certificate_tx, roots_tx, bundles_tx));
    FileIdentity {
        certificate,
        roots,
        bundles: has_bundles.then_some(bundles),
    }
}

async fn run(
    config: FileWatcher,
    certificate: watch::Sender<Option<Arc<Certificate>>>,
    roots: watch::Sender<Option<Arc<TrustBundle>>>,
    bundles: watch::Sender<Option<Arc<SpiffeBundleMap>>>,
) {
    // Whoever waits for what is not configured hears that it never comes.
    let certificate = config.identity.is_some().then_some(certificate);
    let roots = config.ca_certificate_file.is_some().then_some(roots);
    let has_bundles = config.spiffe_trust_bundle_map_file.is_some();
    let bundles = has_bundles.then_some(bundles);
    let life = LifeReport::start(Clock::system(), Some("its files were not replaced"));
    loop {
        let files = config.clone();
        let read = tokio::task::spawn_blocking(move || {
            let identity = files.identity.as_ref();
            let certificate = identity.map(|(chain, key)| read_identity(chain, key));
            let roots = files.ca_certificate_file.as_deref().map(read_roots);
            let bundles = files.spiffe_trust_bundle_map_file.as_deref();
            (certificate, roots, bundles.map(read_bundles))
        });
        match read.await {
            Ok((read_certificate, read_roots, read_bundles)) => {
                let is_equal =
                    |a: &Certificate, b: &Certificate| a.chain == b.chain && a.key == b.key;
                if let (Some(to), Some(read)) = (&certificate, read_certificate) {
                    report(&life, to.borrow().as_deref(), &read, is_equal);
                    take(Some(to), Some(read), is_equal, "certificate");
                }
                take(roots.as_ref(), read_roots, TrustBundle::eq, "roots");
                take(
                    bundles.as_ref(),
                    read_bundles,
                    SpiffeBundleMap::eq,
                    "bundle map",
                );
            }
            Err(error) => tracing::warn!(%error, "certificate files cannot be read"),
        }
        let unused = async {
            tokio::join!(
                unused(certificate.as_ref()),
                unused(roots.as_ref()),
                unused(bundles.as_ref())
            );
        };
        tokio::select! {
            () = tokio::time::sleep(config.refresh_interval) => {}
            () = unused => return,
        }
    }
}

async fn unused<T>(sender: Option<&watch::Sender<T>>) {
    if let Some(sender) = sender {
        sender.closed().await;
    }
}

/// Says how renewal stands, before what was read takes the place of what is held.
fn report(
    life: &LifeReport,
    held: Option<&Certificate>,
    read: &Result<Certificate, String>,
    is_equal: impl Fn(&Certificate, &Certificate) -> bool,
) {
    match (held, read) {
        (None, Ok(found)) => life.found(found),
        (Some(held), Ok(read)) if !is_equal(held, read) => life.renewed(read),
        (Some(_), Ok(_)) => {}
        (_, Err(reason)) => life.failed(reason),
    }
}

fn take<T>(
    to: Option<&watch::Sender<Option<Arc<T>>>>,
    read: Option<Result<T, String>>,
    is_equal: impl Fn(&T, &T) -> bool,
    what: &str,
) {
    let Some((to, read)) = to.zip(read) else {
        return;
    };
    match read {
        Ok(value) => {
            _ = to.send_if_modified(|held| {
                let is_changed = !held.as_ref().is_some_and(|held| is_equal(held, &value));
                if is_changed {
                    tracing::info!(what, "read from file");
                    *held = Some(Arc::new(value));
                }
                is_changed
            })
        }
        Err(error) => {
            let stays = to.borrow().is_some();
            tracing::warn!(what, error, stays, "cannot be taken from file");
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let in_file = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = std::fs::File::open(path).map_err(in_file)?;
    let mut content = Vec::new();
    file.take(BYTES_MAX)
        .read_to_end(&mut content)
        .map_err(in_file)?;
    Ok(content)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| format!("{}: {e}", path.display()))?;
    match found.is_empty() {
        true => Err(format!("{}: holds no certificate", path.display())),
        false => Ok(found),
    }
}

pub(super) fn read_identity(chain_file: &Path, key_file: &Path) -> Result<Certificate, String> {
    let chain = certificates(chain_file)?;
    let in_key = |e: &dyn std::fmt::Display| format!("{}: {e}", key_file.display());
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|e| in_key(&e))?;
    let provider = rustls::crypto::ring::default_provider();
    // It compares the key with the leaf.
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|e| in_key(&e))?;
    let leaf = check_leaf(&chain[0], None, SystemTime::now())
        .map_err(|e| format!("{}: {e}", chain_file.display()))?;
    Ok(Certificate {
        chain,
        key,
        spiffe_id: leaf.spiffe_id,
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        is_stored: false,
    })
}

fn read_roots(path: &Path) -> Result<TrustBundle, String> {
    let roots = certificates(path)?;
    Ok(TrustBundle {
        name: TRUST_BUNDLE.into(),
        roots: roots.into_iter().map(|der| der.to_vec().into()).collect(),
    })
}

pub(crate) fn read_bundles(path: &Path) -> Result<SpiffeBundleMap, String> {
    let place = path.display().to_string();
    bundles::parse(TRUST_BUNDLE, &read(path)?).map_err(|e| format!("{place}: {e}"))
}
