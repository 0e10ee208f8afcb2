//! TLS of the control plane's own addresses.
//!
//! The certificate comes from the mesh's own authority, names what clients dial, and is made again at
//! half of its life and when roots change. A client may come without a certificate, as it must to get
//! its first one; what it comes with is verified, and says who it is. A peer of another trust domain
//! or with no usable name is refused, instead of served as nobody.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{RootCertStore, ServerConfig, crypto::CryptoProvider, server::WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::ca::{Authority, Identity, OwnCertificate, OwnLeaf};

/// Longest time from accepting a connection to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS of one control plane. Clones share the certificate.
#[derive(Clone)]
pub struct ServerTls(Arc<Inner>);

struct Inner {
    own: OwnCertificate,
    held: Mutex<Option<Held>>,
}

/// A configuration, and the certificate that it is made of.
struct Held {
    config: Arc<ServerConfig>,
    leaf: Arc<OwnLeaf>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("own", &self.0.own)
            .finish_non_exhaustive()
    }
}

impl ServerTls {
    /// TLS with certificates of `authority` for the names and addresses in `dialled`.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn new(authority: Arc<Authority>, dialled: Vec<String>) -> anyhow::Result<Self> {
        let tls = Self(Arc::new(Inner {
            own: OwnCertificate::new(authority, dialled)?,
            held: Mutex::default(),
        }));
        tls.config(SystemTime::now())?;
        Ok(tls)
    }

    /// Performs a handshake; who the client is, if it says so.
    ///
    /// # Errors
    /// The reason for the log.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Identity>), String> {
        let config = self
            .config(SystemTime::now())
            .map_err(|e| format!("{e:#}"))?;
        let stream = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(socket)).await;
        let stream = stream
            .map_err(|_| format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))?
            .map_err(|error| error.to_string())?;
        let leaf = stream.get_ref().1.peer_certificates();
        let identity = match leaf.and_then(<[_]>::first) {
            None => None,
            Some(leaf) => Some(self.identity_of(leaf, SystemTime::now())?),
        };
        Ok((stream, identity))
    }

    /// The identity in a verified certificate.
    fn identity_of(&self, leaf: &CertificateDer<'_>, now: SystemTime) -> Result<Identity, String> {
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
        // A resumed session does not verify the certificate again.
        let end = leaf.validity().not_after.timestamp();
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if u64::try_from(end).unwrap_or_default() <= now.as_secs() {
            return Err("the client's certificate has expired".to_owned());
        }
        let names = leaf.subject_alternative_name().map_err(|e| e.to_string())?;
        let names = names
            .into_iter()
            .flat_map(|names| &names.value.general_names);
        let uris: Vec<&str> = names
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let domain = self.0.own.trust_domain();
        match uris[..] {
            [uri] => Identity::of_spiffe_id(uri, domain)
                .ok_or_else(|| format!("{uri} is no identity of trust domain {domain}")),
            _ => Err(format!(
                "the client's certificate has {} URI names, it must have one",
                uris.len()
            )),
        }
    }

    fn config(&self, now: SystemTime) -> anyhow::Result<Arc<ServerConfig>> {
        let leaf = self.0.own.current(now)?;
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*held
            && Arc::ptr_eq(&held.leaf, &leaf)
        {
            return Ok(Arc::clone(&held.config));
        }
        let config = Arc::new(config(&leaf)?);
        *held = Some(Held {
            config: Arc::clone(&config),
            leaf,
        });
        Ok(config)
    }
}

fn config(leaf: &OwnLeaf) -> anyhow::Result<ServerConfig> {
    let mut store = RootCertStore::empty();
    for root in &leaf.roots {
        store.add(CertificateDer::from(root.as_ref()))?;
    }
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    // Without hints a client that holds a certificate of an older root is told why it is refused.
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .clear_root_hint_subjects()
            .allow_unauthenticated()
            .build()?;
    // gRPC's C-core speaks TLS 1.2 to control planes in some builds.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether an address can be reached from this machine alone.
pub fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
