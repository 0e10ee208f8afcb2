//! Whether a certificate of an earlier run may be used.
//!
//! Only when our own trust bundle vouches for it now: roots may have been taken away since it was
//! stored. What cannot be vouched for is not thrown away, as the bundle may change.

use std::sync::Arc;

use mesh_core::config::TrustBundle;
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::IdentityError;

/// Waits until a trust bundle vouches for `chain`; for ever when none does.
pub(crate) async fn vouched_for(
    chain: &[CertificateDer<'static>],
    trust: &mut watch::Receiver<Option<Arc<TrustBundle>>>,
) {
    loop {
        let bundle = trust.borrow_and_update().clone();
        if let Some(bundle) = bundle {
            match check_chain(chain, &bundle, UnixTime::now()) {
                Ok(()) => return,
                Err(error) => tracing::warn!(
                    target: "mesh::identity", %error, "the stored certificate is not used"
                ),
            }
        }
        if trust.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Checks that a chain, leaf first, leads to one of the roots and is valid at a time.
fn check_chain(
    chain: &[CertificateDer<'static>],
    trust: &TrustBundle,
    now: UnixTime,
) -> Result<(), IdentityError> {
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| IdentityError::new("the chain is empty"))?;
    let refused = |e: &dyn std::fmt::Display| {
        let name = &trust.name;
        IdentityError::new(format!("trust bundle {name} does not vouch for it: {e}"))
    };
    let mut roots = RootCertStore::empty();
    let ders = trust.roots.iter();
    roots.add_parsable_certificates(ders.map(|der| CertificateDer::from(der.as_ref())));
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(leaf).map_err(|e| refused(&e))?;
    let as_server =
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms);
    if as_server.is_ok() {
        return Ok(());
    }
    // It may be made for calling alone.
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|e| refused(&e))?
        .verify_client_cert(leaf, intermediates, now)
        .map(|_| ())
        .map_err(|e| refused(&e))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    use super::*;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        root: CertificateDer<'static>,
    }

    fn ca(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = (rcgen::DnType::CommonName, name);
        params.distinguished_name.push(name.0, name.1);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Ca { issuer, root }
    }

    fn leaf(ca: &Ca, usages: Vec<ExtendedKeyUsagePurpose>) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = usages;
        vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()]
    }

    fn bundle(of: &[&Ca]) -> Arc<TrustBundle> {
        Arc::new(TrustBundle {
            name: "ROOTCA".into(),
            roots: of.iter().map(|ca| ca.root.to_vec().into()).collect(),
        })
    }

    #[test]
    fn a_chain_of_a_trusted_root_is_vouched_for_and_no_other() {
        let (ours, other) = (ca("ours"), ca("other"));
        let both = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = UnixTime::now();
        for usages in [both, vec![ExtendedKeyUsagePurpose::ClientAuth], vec![]] {
            let chain = leaf(&ours, usages);
            check_chain(&chain, &bundle(&[&other, &ours]), now).unwrap();
            let error = check_chain(&chain, &bundle(&[&other]), now).unwrap_err();
            assert!(error.to_string().contains("does not vouch"), "{error}");
            check_chain(&chain, &bundle(&[]), now).unwrap_err();
        }
        check_chain(&[], &bundle(&[&ours]), now).unwrap_err();
    }

    #[test]
    fn a_chain_is_not_vouched_for_after_its_end() {
        let ours = ca("ours");
        let chain = leaf(&ours, vec![]);
        let far = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
        check_chain(&chain, &bundle(&[&ours]), far).unwrap_err();
    }

    #[tokio::test]
    async fn a_certificate_is_used_once_a_bundle_vouches_for_it() {
        use futures_util::FutureExt as _;
        let (ours, other) = (ca("ours"), ca("other"));
        let chain = leaf(&ours, vec![]);
        let (tx, mut trust) = watch::channel(None);
        assert!(vouched_for(&chain, &mut trust).now_or_never().is_none());
        tx.send_replace(Some(bundle(&[&other])));
        assert!(vouched_for(&chain, &mut trust).now_or_never().is_none());
        tx.send_replace(Some(bundle(&[&ours])));
        vouched_for(&chain, &mut trust).await;
    }
}
