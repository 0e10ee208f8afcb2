//! The process's own certificate: a key made here, signed by the control plane, renewed in time.
//!
//! [`CertificateClient`] speaks Istio's `IstioCertificateService`. The key never leaves the process
//! and is never printed. It does not serve TLS and does not know the trust bundle, which comes
//! over the ADS stream. On request the certificate is kept on disk, with its key. Renewal falls at a
//! random point between half and 70 % of the remaining life, so that processes started together do not
//! renew together. Other sources are files of somebody else and SPIFFE's Workload API.

mod bundles;
mod csr;
pub(crate) mod files;
mod keep;
mod life;
#[cfg(test)]
mod tests;
pub(crate) mod workload;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::rng::{Rng, SplitMix64};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tonic::{Request, metadata::MetadataValue};

pub(crate) use files::read_bundles;
pub use files::{BundleMapWatch, FileIdentity, RootsWatch};
use keep::Keep;
use life::{Clock, LifeReport};
pub use workload::WorkloadIdentity;

use crate::{
    bootstrap::{ChannelCredentials, Server, ServerUri},
    transport::{self, KeepAlive, backoff::Backoff, own::OwnCertificate},
};

mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::pedantic,
        clippy::use_self,
        reason = "generated code"
    )]
    tonic::include_proto!("istio.v1.auth");
}

/// Life asked for unless the configuration says otherwise.
pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest wait for one answer of the signer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Earliest and latest renewal, as a share of the remaining life.
const RENEWAL: (f64, f64) = (0.5, 0.7);

/// The certificate as it is now; `None` until the first one.
pub type CertificateWatch = watch::Receiver<Option<Arc<Certificate>>>;

/// A certificate with its key.
pub struct Certificate {
    /// Leaf first; self-signed roots are left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key: PKCS#8, or as a file of somebody else holds it.
    pub key: PrivateKeyDer<'static>,
    /// The only URI name of the leaf, for example `spiffe://cluster.local/ns/a/sa/b`.
    pub spiffe_id: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Whether it is from an earlier run of the process ([`CertificateConfig::file`]).
    pub is_stored: bool,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("is_stored", &self.is_stored)
            .finish_non_exhaustive()
    }
}

/// How to get a certificate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CertificateConfig {
    /// The signer.
    pub server: ServerUri,
    /// How the connection to it is secured. Default plaintext.
    pub channel: ChannelCredentials,
    /// File with the bearer token, read for every request; `None` sends none.
    pub token_file: Option<PathBuf>,
    /// Life to ask for, in whole seconds. Default [`VALIDITY`]; the signer may give less.
    pub validity: Duration,
    /// First pause after a failure. Default 1 s.
    pub backoff_base: Duration,
    /// Longest pause. Default 60 s.
    pub backoff_cap: Duration,
    /// Keeps the certificate **with its key** in this file, so that a process that starts while the
    /// signer is down has its identity until the certificate's end. The file is readable by its owner
    /// only, and its folder must exist. Default none: the key is in memory alone.
    pub file: Option<PathBuf>,
    /// Whose identity `file` holds, for example the node's id: that of another is not used.
    pub owner: String,
}

impl CertificateConfig {
    /// Defaults for `server`, without a token.
    pub fn new(server: ServerUri) -> Self {
        Self {
            server,
            channel: ChannelCredentials::Insecure,
            token_file: None,
            validity: VALIDITY,
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
            file: None,
            owner: String::new(),
        }
    }
}

/// Gets and renews the certificate.
#[derive(Debug)]
pub struct CertificateClient {
    config: Arc<CertificateConfig>,
    tx: watch::Sender<Option<Arc<Certificate>>>,
    rng: SplitMix64,
    clock: Clock,
    life: LifeReport,
}

impl CertificateClient {
    /// Starts a task that takes over what an earlier run stored, if that is asked for, gets a certificate
    /// and renews it until every receiver is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: CertificateConfig) -> CertificateWatch {
        let is_plain = config.channel == ChannelCredentials::Insecure;
        if config.token_file.is_some() && is_plain && !config.server.is_local() {
            tracing::warn!(
                server = %config.server,
                "the token for the certificate service travels unencrypted"
            );
        }
        let (client, rx) = Self::new(config, Clock::system());
        tokio::spawn(client.run());
        rx
    }

    fn new(config: CertificateConfig, clock: Clock) -> (Self, CertificateWatch) {
        let (tx, rx) = watch::channel(None);
        let client = Self {
            config: Arc::new(config),
            tx,
            rng: SplitMix64::new(crate::client::seed()),
            life: LifeReport::start(clock.clone(), None),
            clock,
        };
        (client, rx)
    }

    async fn run(self) {
        let (config, clock, tx) = (
            Arc::clone(&self.config),
            self.clock.clone(),
            self.tx.clone(),
        );
        let ask = move || request(Arc::clone(&config), tx.borrow().clone(), clock.clone());
        self.renew_with(ask).await;
    }

    /// Renews with what `ask` gives, until nobody needs a certificate any more.
    async fn renew_with<F>(mut self, ask: impl Fn() -> F)
    where
        F: Future<Output = Result<Certificate, String>>,
    {
        let tx = self.tx.clone();
        tokio::select! {
            () = tx.closed() => tracing::debug!("nobody needs the certificate any more"),
            () = self.renew_forever(ask) => {}
        }
    }

    fn keep(&self) -> Option<Keep> {
        let path = self.config.file.clone()?;
        Some(Keep {
            path,
            signer: self.config.server.to_string(),
            node: self.config.owner.clone(),
        })
    }

    /// Takes over what an earlier run had, until the signer answers.
    async fn load(&self) {
        let Some(keep) = self.keep() else {
            return;
        };
        let file = keep.path.display().to_string();
        let now = self.clock.now();
        let loaded = tokio::task::spawn_blocking(move || keep.load(now)).await;
        match loaded.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(Some(certificate)) => {
                let left_s = self.clock.until(certificate.not_after).as_secs();
                let spiffe_id = &certificate.spiffe_id;
                tracing::info!(file, spiffe_id, left_s, "the certificate of an earlier run");
                self.life.found(&certificate);
                self.tx.send_replace(Some(Arc::new(certificate)));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(file, error, "the stored certificate is not used"),
        }
    }

    async fn save(&self, certificate: Arc<Certificate>) {
        let Some(keep) = self.keep() else {
            return;
        };
        let file = keep.path.display().to_string();
        let saved = tokio::task::spawn_blocking(move || keep.save(&certificate)).await;
        if let Err(error) = saved.unwrap_or_else(|e| Err(e.to_string())) {
            tracing::warn!(file, error, "the certificate cannot be stored");
        }
    }

    async fn renew_forever<F>(&mut self, ask: impl Fn() -> F)
    where
        F: Future<Output = Result<Certificate, String>>,
    {
        self.load().await;
        let mut backoff = Backoff::new(self.config.backoff_base, self.config.backoff_cap);
        loop {
            let pause = match ask().await {
                Ok(certificate) => {
                    backoff.after_success(&mut self.rng);
                    let pause = self.renewal_pause(&certificate);
                    tracing::info!(
                        spiffe_id = certificate.spiffe_id,
                        renewal_in_s = pause.as_secs(),
                        "got a certificate"
                    );
                    self.life.renewed(&certificate);
                    let certificate = Arc::new(certificate);
                    self.tx.send_replace(Some(Arc::clone(&certificate)));
                    self.save(certificate).await;
                    pause
                }
                Err(error) => {
                    let pause = backoff.after_failure(&mut self.rng);
                    self.life.failed(&error);
                    self.report(&error, pause);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// A random point between half and 70 % of what is left of the certificate's life.
    fn renewal_pause(&mut self, certificate: &Certificate) -> Duration {
        let left = self.clock.until(certificate.not_after);
        let (earliest, latest) = RENEWAL;
        let share = earliest + (latest - earliest) * self.rng.unit();
        left.mul_f64(share).max(self.config.backoff_base)
    }

    fn report(&self, error: &str, pause: Duration) {
        let retry_in_ms = pause.as_millis() as u64;
        let server = &self.config.server;
        if self.tx.borrow().is_some() {
            tracing::info!(%server, error, retry_in_ms, "the certificate cannot be renewed yet");
        } else {
            tracing::warn!(%server, error, retry_in_ms, "no certificate yet");
        }
    }
}

/// One key, one CSR, one answer.
async fn request(
    config: Arc<CertificateConfig>,
    held: Option<Arc<Certificate>>,
    clock: Clock,
) -> Result<Certificate, String> {
    let signing = csr::SigningRequest::new()?;
    let mut request = Request::new(proto::IstioCertificateRequest {
        csr: signing.pem.clone(),
        validity_duration: i64::try_from(config.validity.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    if let Some(path) = &config.token_file {
        // Tokens are rotated by whoever writes the file.
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|e| format!("token file {}: {e}", path.display()))?;
        let mut value: MetadataValue<_> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| format!("token file {}: not a token", path.display()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let mut server = Server::new(config.server.clone());
    server.channel = config.channel.clone();
    let answer = async {
        // What we are proves who asks for what we will be.
        let own = OwnCertificate::of(held);
        let connected = transport::connect(Arc::new(server), KeepAlive::default(), own);
        let channel = connected.await?.channel;
        let mut client =
            proto::istio_certificate_service_client::IstioCertificateServiceClient::new(channel);
        client
            .create_certificate(request)
            .await
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    };
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer)
        .await
        .map_err(|_| format!("no answer within {REQUEST_TIMEOUT:?}"))??;
    signing
        .accept(&answer.into_inner().cert_chain, clock.now())
        .map_err(|reason| format!("the signer's answer is refused: {reason}"))
}
