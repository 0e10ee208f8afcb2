//! An identity from SPIFFE's Workload API, as SPIRE's agent serves it on a Unix socket.
//!
//! One stream, on which the agent sends everything anew whenever a part of it changes: certificates
//! with their keys, the roots of our own trust domain, and those of domains that it is federated with.
//! The first certificate is taken, which is the agent's default. A message that cannot be used as a
//! whole is not used in part; what was there before stays, also while the agent is away.
//!
//! Spec: SPIFFE Workload API §5 (X.509-SVID profile). Deviations: revocation lists are not read; the
//! endpoint may not be a TCP address.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::{config::SpiffeBundleMap, name::SecretName, rng::SplitMix64};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tonic::{Request, metadata::MetadataValue};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Certificate, CertificateWatch,
    bundles::check_trust_domain,
    csr::check_leaf,
    files::BundleMapWatch,
    life::{Clock, LifeReport},
};
use crate::{
    bootstrap::{Server, ServerUri},
    transport::{self, KeepAlive, backoff::Backoff, own::OwnCertificate},
};

pub(super) mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::pedantic,
        clippy::use_self,
        reason = "generated code"
    )]
    tonic::include_proto!("_");
}

/// What each call carries, so that no proxy of another protocol answers it (SPIFFE Workload API §5.1).
pub(super) const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// First and longest pause between two streams.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the agent gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkloadIdentity {
    /// Certificate with its key.
    pub certificate: CertificateWatch,
    /// Roots of our own trust domain and of those that it is federated with.
    pub bundles: BundleMapWatch,
}

pub(super) type Sent = (Certificate, SpiffeBundleMap);

/// Starts a task that follows the agent until every receiver is dropped. `name` is what the bundles
/// are called.
pub(crate) fn start(socket: PathBuf, name: SecretName) -> WorkloadIdentity {
    let (certificate_tx, certificate) = watch::channel(None);
    let (bundles_tx, bundles) = watch::channel(None);
    let follower = Follower {
        socket,
        name,
        certificate: certificate_tx,
        bundles: bundles_tx,
        life: LifeReport::start(
            Clock::system(),
            Some("the Workload API sent no other certificate"),
        ),
    };
    tokio::spawn(follower.run());
    WorkloadIdentity {
        certificate,
        bundles,
    }
}

struct Follower {
    socket: PathBuf,
    name: SecretName,
    certificate: watch::Sender<Option<Arc<Certificate>>>,
    bundles: watch::Sender<Option<Arc<SpiffeBundleMap>>>,
    life: LifeReport,
}

impl Follower {
    async fn run(self) {
        let unused = async {
            tokio::join!(self.certificate.closed(), self.bundles.closed());
        };
        tokio::select! {
            () = unused => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut random = SplitMix64::new(crate::client::seed());
        let (base, cap) = PAUSES;
        let mut backoff = Backoff::new(base, cap);
        loop {
            let mut has_worked = false;
            let ended = self.stream(|| has_worked = true).await;
            let reason = ended
                .err()
                .unwrap_or_else(|| "the stream has ended".to_owned());
            let pause = match has_worked {
                true => backoff.after_success(&mut random),
                false => backoff.after_failure(&mut random),
            };
            let stays = self.certificate.borrow().is_some();
            let socket = self.socket.display();
            let retry_in_ms = pause.as_millis() as u64;
            tracing::warn!(%socket, reason, stays, retry_in_ms, "no stream of the Workload API");
            self.life.failed(&reason);
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream, until it ends. `got` is called with each message that is good.
    async fn stream(&self, mut got: impl FnMut()) -> Result<(), String> {
        let server = Server::new(ServerUri::parse(&format!(
            "unix:{}",
            self.socket.display()
        ))?);
        let own = OwnCertificate::default();
        let connected = transport::connect(Arc::new(server), KeepAlive::default(), own).await?;
        let mut client =
            proto::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(connected.channel);
        let mut request = Request::new(proto::X509svidRequest {});
        let (name, value) = HEADER;
        let value = MetadataValue::from_static(value);
        request.metadata_mut().insert(name, value);
        let refused = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let answer = client.fetch_x509svid(request).await.map_err(refused)?;
        let mut messages = answer.into_inner();
        while let Some(message) = messages.message().await.map_err(refused)? {
            match read(&self.name, &message, &Clock::system()) {
                Ok(sent) => {
                    self.take(sent);
                    got();
                }
                Err(reason) => {
                    let reason = format!("a message of the Workload API is refused: {reason}");
                    tracing::warn!(reason);
                    self.life.failed(&reason);
                }
            }
        }
        Ok(())
    }

    fn take(&self, (certificate, bundles): Sent) {
        let domains = bundles.bundles.keys().map(String::as_str);
        let domains = domains.collect::<Vec<_>>().join(",");
        // Roots first: peers may show a certificate of the new root at once.
        self.bundles.send_if_modified(|held| {
            let is_changed = held.as_deref() != Some(&bundles);
            if is_changed {
                *held = Some(Arc::new(bundles));
            }
            is_changed
        });
        let is_held = self
            .certificate
            .borrow()
            .as_ref()
            .is_some_and(|held| held.chain == certificate.chain && held.key == certificate.key);
        if !is_held {
            let spiffe_id = &certificate.spiffe_id;
            tracing::info!(spiffe_id, domains, "the Workload API sent a certificate");
            self.life.renewed(&certificate);
            self.certificate.send_replace(Some(Arc::new(certificate)));
        }
    }
}

/// Reads a message, all of it or none.
pub(super) fn read(
    name: &SecretName,
    message: &proto::X509svidResponse,
    clock: &Clock,
) -> Result<Sent, String> {
    let svid = message.svids.first().ok_or("it holds no certificate")?;
    let chain = certificates(&svid.x509_svid).map_err(|e| format!("x509_svid: {e}"))?;
    let leaf = chain.first().ok_or("x509_svid: it is empty")?;
    let leaf = check_leaf(leaf, None, clock.now())?;
    if leaf.spiffe_id != svid.spiffe_id {
        let (told, written) = (&svid.spiffe_id, &leaf.spiffe_id);
        return Err(format!(
            "the certificate of {told:?} is that of {written:?}"
        ));
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()));
    let provider = rustls::crypto::ring::default_provider();
    // It compares the key with the leaf.
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
        .map_err(|e| format!("x509_svid_key: {e}"))?;
    let federated = message.federated_bundles.iter();
    // Our own bundle is what the certificate came with, whatever is federated.
    let all = federated.chain(std::iter::once((&svid.spiffe_id, &svid.bundle)));
    let mut bundles = BTreeMap::new();
    for (id, roots) in all {
        let place = |reason: String| format!("bundle of {id:?}: {reason}");
        let domain = trust_domain(id).map_err(place)?;
        let roots = certificates(roots).map_err(place)?;
        let roots = roots.into_iter().map(|root| Bytes::from(root.to_vec()));
        bundles.insert(domain.to_owned(), roots.collect());
    }
    let certificate = Certificate {
        chain,
        key,
        spiffe_id: leaf.spiffe_id,
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        is_stored: false,
    };
    let name = name.clone();
    Ok((certificate, SpiffeBundleMap { name, bundles }))
}

fn trust_domain(id: &str) -> Result<&str, String> {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    let domain = rest.split_once('/').map_or(rest, |(domain, _)| domain);
    check_trust_domain(domain).map_err(str::to_owned)?;
    Ok(domain)
}

/// Certificates one behind the other.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|e| format!("not X.509: {e}"))?;
        let one = &der[..der.len() - rest.len()];
        found.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(found)
}
