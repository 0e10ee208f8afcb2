//! TLS towards the endpoints of one cluster.
//!
//! Stage 12. It turns a connected stream into an authenticated one; the caller owns time limits
//! and everything above. The rustls configuration is kept while identity and roots stay the same,
//! so that sessions resume; a rotation makes a new one, and with it an empty session store.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::config::UpstreamTls;
use rustls::{
    ClientConfig, RootCertStore, client::danger::ServerCertVerifier, sign::SingleCertAndKey,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Alpn, TlsError, TlsErrorKind, VERSIONS, check_certificate_source, check_not_expired,
    demanded_trust, domains::ByTrustDomain, provider, root_store, unreadable, unusable,
    verify::ServerVerifier,
};
use crate::identity::{Certificate, Identity, Leaf, PeerIdentity, Trust};

/// Client side of TLS for one cluster.
#[derive(Debug)]
pub struct ClientTls {
    settings: UpstreamTls,
    identity: Identity,
    alpn: Alpn,
    cached: Mutex<Option<Cached>>,
}

/// A configuration, and what it was made from.
#[derive(Debug)]
struct Cached {
    certificate: Option<Arc<Certificate>>,
    trust: Trust,
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// TLS as `settings` declare it, with the current values of `identity` at each handshake.
    pub fn new(settings: &UpstreamTls, identity: Identity, alpn: Alpn) -> Self {
        Self {
            settings: settings.clone(),
            identity,
            alpn,
            cached: Mutex::new(None),
        }
    }

    /// Performs a handshake over `io`, which is connected to `server`.
    ///
    /// # Errors
    /// When a certificate or roots are demanded and missing, when the server cannot be trusted,
    /// or when the connection fails. There is no fall-back to plaintext.
    pub async fn connect<IO>(&self, io: IO, server: SocketAddr) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config()?;
        let name = match &self.settings.sni {
            Some(sni) => ServerName::try_from(sni.clone()).map_err(unusable)?,
            // An address sends no server name indication.
            None => ServerName::IpAddress(server.ip().into()),
        };
        let stream = TlsConnector::from(config)
            .connect(name, io)
            .await
            .map_err(TlsError::from_io)?;
        let session = stream.get_ref().1;
        if self.alpn == Alpn::Http2 && session.alpn_protocol() != Some(b"h2") {
            let message = "the server did not agree to HTTP/2";
            return Err(TlsError::new(TlsErrorKind::NoApplicationProtocol, message));
        }
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let leaf = leaf.ok_or_else(|| unreadable("missing"))?;
        check_not_expired(&Leaf::parse(leaf).map_err(unreadable)?)?;
        Ok(stream)
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let certificate = match &self.settings.identity {
            None => None,
            Some(source) => {
                check_certificate_source(source)?;
                let message = "a certificate of ours is demanded and there is none yet";
                let held = self.identity.certificate();
                Some(held.ok_or_else(|| TlsError::new(TlsErrorKind::NoIdentity, message))?)
            }
        };
        let trust = demanded_trust(&self.settings.roots, self.identity.trust())?;
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*cached
            && held.trust.is_same(&trust)
            && held.certificate.as_ref().map(Arc::as_ptr) == certificate.as_ref().map(Arc::as_ptr)
        {
            return Ok(Arc::clone(&held.config));
        }
        let config = Arc::new(self.build(certificate.as_deref(), &trust)?);
        *cached = Some(Cached {
            certificate,
            trust,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn build(
        &self,
        certificate: Option<&Certificate>,
        trust: &Trust,
    ) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let verifier = |roots: RootCertStore| ServerVerifier {
            roots,
            subject_alt_names: self.settings.subject_alt_names.clone(),
            trust_domain: certificate.map(|held| held.spiffe_id().trust_domain().to_owned()),
            algorithms: provider.signature_verification_algorithms,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Bundle(bundle) => Arc::new(verifier(root_store(bundle)?)),
            Trust::ByTrustDomain(map) => {
                let of_domain = |_: &str, roots| Ok(verifier(roots));
                Arc::new(ByTrustDomain::new(map, true, of_domain)?)
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(VERSIONS)
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(held) => builder
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(held.certified()))),
        };
        config.alpn_protocols = self.alpn.protocols();
        Ok(config)
    }
}

/// Whether the peers agreed to speak HTTP/2 inside.
pub fn is_http2<IO>(stream: &TlsStream<IO>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}

/// The names of the server, whose chain was verified in the handshake.
///
/// # Errors
/// When the certificate is missing or holds no usable names.
pub fn peer_identity<IO>(stream: &TlsStream<IO>) -> Result<PeerIdentity, TlsError> {
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| unreadable("missing"))?;
    PeerIdentity::from_leaf(leaf).map_err(unreadable)
}
