//! Certificates and trust, from the xDS client to TLS.

use std::sync::Arc;

use mesh_core::config::TrustBundle;
use mesh_xds_client::{TrustBundleWatch, XdsClient};
use tokio::sync::watch;

use super::SetupError;
use crate::identity::{Certificate, Identity, vouched_for};

/// The SDS name of the trust bundle when the bootstrap names no other.
const TRUST_BUNDLE: &str = "ROOTCA";

/// The certificate provider that is this process's own identity (gRFC A29 `default` by convention).
const IDENTITY_PROVIDER: &str = "default";

/// The identity that the bootstrap's certificate provider `default` describes.
pub(super) fn identity_from_bootstrap(xds: &XdsClient) -> Result<Option<Identity>, SetupError> {
    let bootstrap = xds.bootstrap();
    let Some(provider) = bootstrap.certificate_providers.get(IDENTITY_PROVIDER) else {
        return Ok(None);
    };
    let (mut certificates, trust, bundles) = if let Some(files) = xds.start_files(provider) {
        (files.certificate, files.roots, files.bundles)
    } else if let Some(workload) = xds.start_workload(provider) {
        let workload = workload.map_err(SetupError::new)?;
        let none = watch::channel(None).1;
        (workload.certificate, none, Some(workload.bundles))
    } else {
        let certificates = xds.start_certificate(provider).map_err(SetupError::new)?;
        let name = provider.trust_bundle().unwrap_or(TRUST_BUNDLE);
        (
            certificates,
            follow_trust(xds.watch_trust_bundle(name)),
            None,
        )
    };
    let (tx, certificate) = watch::channel(None);
    let mut roots = trust.clone();
    tokio::spawn(async move {
        loop {
            let current = certificates.borrow_and_update().clone();
            if let Some(held) = current {
                if held.is_stored {
                    tokio::select! {
                        () = vouched_for(&held.chain, &mut roots) => {}
                        changed = certificates.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                        () = tx.closed() => return,
                    }
                }
                match Certificate::new(held.chain.clone(), held.key.clone_key()) {
                    Ok(certificate) => {
                        tx.send_replace(Some(Arc::new(certificate)));
                    }
                    // The one that is held stays in use until its end.
                    Err(error) => tracing::error!(
                        target: "mesh::identity", %error, "the new certificate cannot be used"
                    ),
                }
            }
            tokio::select! {
                changed = certificates.changed() => if changed.is_err() { return },
                () = tx.closed() => return,
            }
        }
    });
    Ok(Some(match bundles {
        Some(bundles) => Identity::with_bundle_map(certificate, bundles),
        None => Identity::new(certificate, trust),
    }))
}

/// A trust bundle of the control plane, watched for as long as anybody reads it.
fn follow_trust(mut bundles: TrustBundleWatch) -> watch::Receiver<Option<Arc<TrustBundle>>> {
    let (tx, trust) = watch::channel(None::<Arc<TrustBundle>>);
    tokio::spawn(async move {
        loop {
            tx.send_replace(bundles.load_and_mark());
            tokio::select! {
                open = bundles.changed() => if !open { return },
                () = tx.closed() => return,
            }
        }
    });
    trust
}
