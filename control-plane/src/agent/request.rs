//! One key, one signing request, and the check of what comes back.
//!
//! The key is made here and goes nowhere but into its file. An answer is taken when it is about our
//! key, names one SPIFFE ID, has not ended, and brings roots.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail, ensure};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::time::timeout;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Endpoint,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    ca::proto::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    dial::{OwnCertificate, Server},
};

/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A certificate with its key, as text for files.
pub(super) struct Signed {
    pub(super) chain: String,
    pub(super) key: String,
    pub(super) roots: String,
    pub(super) leaf: Leaf,
}

/// What is read of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) spiffe_id: String,
    pub(super) not_after: SystemTime,
}

/// How a caller proves who it is.
pub(super) enum Proof {
    /// The certificate that it has.
    Certificate(OwnCertificate),
    /// A token.
    Token(MetadataValue<Ascii>),
    /// Nothing.
    None,
}

/// Asks for a certificate that lives for `ttl`.
pub(super) async fn certificate(
    server: &Server,
    proof: Proof,
    ttl: Duration,
) -> anyhow::Result<Signed> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let mut request = Request::new(IstioCertificateRequest {
        csr: params.serialize_request(&key)?.pem()?,
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    let own = match proof {
        Proof::Certificate(own) => Some(own),
        Proof::Token(token) => {
            request.metadata_mut().insert("authorization", token);
            None
        }
        Proof::None => None,
    };
    let exchange = async {
        let connection = server.connect(b"h2", own).await?;
        let mut connection = Some(connection);
        let connector = tower::service_fn(move |_| {
            let connection = connection.take();
            // It is asked for one; the channel lives no longer than the request.
            std::future::ready(connection.ok_or_else(|| anyhow!("the connection has ended")))
        });
        let endpoint = Endpoint::from_shared(format!("http://{}", server.authority()))?;
        let channel = endpoint.connect_with_connector(connector).await?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = client
            .create_certificate(request)
            .await
            .map_err(|status| refused(&status))?;
        Ok::<_, anyhow::Error>(answer.into_inner().cert_chain)
    };
    let answer = timeout(REQUEST_TIMEOUT, exchange).await;
    let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {REQUEST_TIMEOUT:?}")));
    let answer = answer.with_context(|| server.authority())?;
    accept(&key, &answer, SystemTime::now()).context("the answer is refused")
}

fn refused(status: &Status) -> anyhow::Error {
    anyhow!("{:?}: {}", status.code(), status.message())
}

/// Puts an answer, leaf first and roots last, together with its key.
fn accept(key: &KeyPair, answer: &[String], now: SystemTime) -> anyhow::Result<Signed> {
    let [chain @ .., roots] = answer else {
        bail!("it is empty");
    };
    let leaf = chain.first().context("it brings no roots")?;
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).context("its leaf")?;
    let leaf = read_leaf(&leaf, Some(&key.subject_public_key_info()), now)?;
    for text in answer {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        ensure!(!found?.is_empty(), "a part of it holds no certificate");
    }
    Ok(Signed {
        chain: chain.concat(),
        key: key.serialize_pem(),
        roots: roots.clone(),
        leaf,
    })
}

/// What is held already, if it can still be used.
pub(super) fn held(
    chain: &[u8],
    key: &[u8],
    now: SystemTime,
) -> anyhow::Result<(Leaf, OwnCertificate)> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain?;
    let pair = KeyPair::from_pem(std::str::from_utf8(key)?)?;
    let leaf = chain.first().context("there is no certificate")?;
    let leaf = read_leaf(leaf, Some(&pair.subject_public_key_info()), now)?;
    Ok((leaf, (chain, PrivateKeyDer::from_pem_slice(key)?)))
}

fn read_leaf(
    der: &CertificateDer<'_>,
    public_key: Option<&[u8]>,
    now: SystemTime,
) -> anyhow::Result<Leaf> {
    let (_, leaf) = X509Certificate::from_der(der).context("the leaf is not X.509")?;
    if public_key.is_some_and(|key| key != leaf.public_key().raw) {
        bail!("the leaf is for another key");
    }
    let end = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or_default();
    let not_after = UNIX_EPOCH + Duration::from_secs(end);
    ensure!(
        now < not_after,
        "the leaf has expired; is this machine's clock right?"
    );
    let names = leaf
        .subject_alternative_name()?
        .context("the leaf has no names")?;
    let uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match uris.collect::<Vec<_>>()[..] {
        [uri] if uri.starts_with("spiffe://") => Ok(Leaf {
            spiffe_id: uri.to_owned(),
            not_after,
        }),
        _ => bail!("the leaf must have one URI name, a SPIFFE ID"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, Identity};

    #[test]
    fn an_answer_is_taken_only_for_our_key_with_roots_and_before_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let authority = Authority::open(dir.path(), "t", hour).unwrap();
        let issued = authority
            .issue(&Identity::new("a", "b").unwrap(), hour)
            .unwrap();
        let key = KeyPair::from_pem(&issued.key_pem).unwrap();
        let chain = &issued.chain_pem;
        let now = SystemTime::now();
        let taken = accept(&key, chain, now).unwrap();
        assert_eq!(taken.leaf.spiffe_id, "spiffe://t/ns/a/sa/b");
        assert_eq!(taken.roots, authority.root_pem());
        assert_eq!(taken.chain, chain[0], "roots are no part of the chain");
        let other = KeyPair::generate().unwrap();
        let damaged = [chain[0].clone(), "no PEM".into()];
        for (key, answer, now, expected) in [
            (&other, &chain[..], now, "another key"),
            (&key, &chain[..1], now, "no roots"),
            (&key, &[], now, "empty"),
            (&key, &damaged[..], now, "no certificate"),
            (&key, &chain[..], now + 2 * hour, "clock"),
        ] {
            let error = accept(key, answer, now).err().expect(expected);
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
