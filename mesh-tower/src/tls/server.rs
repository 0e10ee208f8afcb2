//! TLS of a server's filter chain.
//!
//! It turns an accepted stream into an authenticated one and reads the caller's names. The rustls
//! configuration is kept while identity and roots stay the same; a rotation makes a new one, so a
//! session that a distrusted root vouched for cannot be resumed. Time limits are the caller's.

use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::config::DownstreamTls;
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{StartHandshake, TlsAcceptor, server::TlsStream};

use super::{
    Alpn, TlsError, TlsErrorKind, VERSIONS, check_certificate_source, check_not_expired,
    demanded_trust, domains::ByTrustDomain, provider, root_store, unreadable, unusable,
    verify::ClientVerifier,
};
use crate::identity::{Certificate, Identity, Leaf, PeerIdentity, Trust};

/// Server side of TLS for one filter chain.
#[derive(Debug)]
pub struct ServerTls {
    settings: DownstreamTls,
    identity: Identity,
    cached: Mutex<Option<Cached>>,
}

/// A configuration, and what it was made from.
#[derive(Debug)]
struct Cached {
    certificate: Arc<Certificate>,
    trust: Option<Trust>,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS as `settings` declare it, with the current values of `identity` at each handshake.
    ///
    /// # Errors
    /// When the settings cannot be used: they require client certificates without saying whom to
    /// trust, or name a certificate that is not ours.
    pub fn new(settings: &DownstreamTls, identity: Identity) -> Result<Self, TlsError> {
        check_certificate_source(&settings.identity)?;
        if settings.require_client_certificate && settings.roots.is_none() {
            let message = "client certificates are required, but no roots are named";
            return Err(TlsError::new(TlsErrorKind::Config, message));
        }
        Ok(Self {
            settings: settings.clone(),
            identity,
            cached: Mutex::new(None),
        })
    }

    /// What it was made from.
    pub fn settings(&self) -> &DownstreamTls {
        &self.settings
    }

    /// Performs a handshake. Gives the caller's names when it came with a certificate.
    ///
    /// # Errors
    /// When our certificate or the roots are missing, when the client cannot be trusted, or when
    /// the connection fails.
    pub async fn accept<IO>(
        &self,
        io: IO,
    ) -> Result<(TlsStream<IO>, Option<PeerIdentity>), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config()?;
        let stream = TlsAcceptor::from(config).accept(io).await;
        self.accepted(stream.map_err(TlsError::from_io)?)
    }

    /// Goes on with a handshake whose hello was read, as [`accept`](Self::accept) does from the
    /// beginning.
    pub(crate) async fn accept_started<IO>(
        &self,
        started: StartHandshake<IO>,
    ) -> Result<(TlsStream<IO>, Option<PeerIdentity>), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = started.into_stream(self.config()?).await;
        self.accepted(stream.map_err(TlsError::from_io)?)
    }

    fn accepted<IO>(
        &self,
        stream: TlsStream<IO>,
    ) -> Result<(TlsStream<IO>, Option<PeerIdentity>), TlsError> {
        let peer = match stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
        {
            None if self.settings.require_client_certificate => {
                let message = "the client sent no certificate";
                return Err(TlsError::new(TlsErrorKind::NoCertificate, message));
            }
            None => None,
            Some(leaf) => {
                check_not_expired(&Leaf::parse(leaf).map_err(unreadable)?)?;
                Some(PeerIdentity::from_leaf(leaf).map_err(unreadable)?)
            }
        };
        Ok((stream, peer))
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let message = "this server has no certificate yet";
        let certificate = self
            .identity
            .certificate()
            .ok_or_else(|| TlsError::new(TlsErrorKind::NoIdentity, message))?;
        let trust = match &self.settings.roots {
            None => None,
            Some(source) => Some(demanded_trust(source, self.identity.trust())?),
        };
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*cached
            && Arc::ptr_eq(&held.certificate, &certificate)
            && is_same(held.trust.as_ref(), trust.as_ref())
        {
            return Ok(Arc::clone(&held.config));
        }
        let config = Arc::new(self.build(&certificate, trust.as_ref())?);
        *cached = Some(Cached {
            certificate,
            trust,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn build(
        &self,
        certificate: &Certificate,
        trust: Option<&Trust>,
    ) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let verifier: Arc<dyn ClientCertVerifier> = match trust {
            None => Arc::new(NoClientAuth),
            Some(Trust::Bundle(bundle)) => {
                let own = certificate.spiffe_id().trust_domain();
                self.verifier(own, root_store(bundle)?)?
            }
            Some(Trust::ByTrustDomain(map)) => {
                let is_mandatory = self.settings.require_client_certificate;
                let of_domain = |domain: &str, roots| self.verifier(domain, roots);
                Arc::new(ByTrustDomain::new(map, is_mandatory, of_domain)?)
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified())));
        config.alpn_protocols = Alpn::Either.protocols();
        Ok(config)
    }

    /// Verifies clients of one trust domain.
    fn verifier(
        &self,
        trust_domain: &str,
        roots: RootCertStore,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        // Without hints a client that still holds a certificate of an older root sends it and is
        // told why it is refused, instead of coming without any.
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .clear_root_hint_subjects();
        let builder = match self.settings.require_client_certificate {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        Ok(Arc::new(ClientVerifier {
            chain: builder.build().map_err(unusable)?,
            trust_domain: trust_domain.to_owned(),
        }))
    }
}

fn is_same(a: Option<&Trust>, b: Option<&Trust>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.is_same(b),
        _ => false,
    }
}
