//! TLS of a server's filter chain.
//!
//! It turns an accepted stream into an authenticated one and reads the caller's names. The rustls
//! configuration is kept while identity and roots stay the same; a rotation makes a new one, so a
//! session that a distrusted root vouched for cannot be resumed. Time limits are the caller's.

use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::config::{CertificateSource, DownstreamTls, Secret, TrustSource};
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{StartHandshake, TlsAcceptor, server::TlsStream};

use super::{
    Alpn, TlsError, TlsErrorKind, VERSIONS, check_not_expired,
    domains::ByTrustDomain,
    held_trust, is_held, provider, root_store, secret, unreadable, unusable,
    verify::{ClientVerifier, Vouch},
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
    certificate: OurCertificate,
    roots: Option<Roots>,
    config: Arc<ServerConfig>,
}

/// A certificate of ours.
#[derive(Clone, Debug)]
enum OurCertificate {
    /// That of the process in the mesh.
    Member(Arc<Certificate>),
    /// One over SDS.
    Secret(Arc<Secret>),
}

impl OurCertificate {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Member(a), Self::Member(b)) => Arc::ptr_eq(a, b),
            (Self::Secret(a), Self::Secret(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        match self {
            Self::Member(held) => Ok(held.certified()),
            Self::Secret(held) => secret::certificate(held),
        }
    }
}

/// Whom we trust.
#[derive(Clone, Debug)]
enum Roots {
    /// The mesh's own.
    Mesh(Trust),
    /// Others over SDS.
    Secret(Arc<Secret>),
}

impl Roots {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mesh(a), Self::Mesh(b)) => a.is_same(b),
            (Self::Secret(a), Self::Secret(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl ServerTls {
    /// TLS as `settings` declare it, with the current values of `identity` at each handshake.
    ///
    /// # Errors
    /// When the settings cannot be used: they require client certificates without saying whom to
    /// trust, or name files or roots that are for clients alone.
    pub fn new(settings: &DownstreamTls, identity: Identity) -> Result<Self, TlsError> {
        check_sources(settings)?;
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

    /// URI names of the certificate that was shown last.
    pub(crate) fn shown_uris(&self) -> Vec<String> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match cached.as_ref().map(|cached| &cached.certificate) {
            Some(OurCertificate::Member(held)) => vec![held.spiffe_id().to_string()],
            Some(OurCertificate::Secret(held)) => secret::certificate(held)
                .ok()
                .and_then(|certified| secret::uris(&certified))
                .unwrap_or_default(),
            None => Vec::new(),
        }
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
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = self.certificate(cached.as_ref())?;
        let roots = match &self.settings.roots {
            None => None,
            Some(source) => Some(self.roots(source, cached.as_ref())?),
        };
        if let Some(held) = &*cached
            && held.certificate.is_same(&certificate)
            && match (&held.roots, &roots) {
                (None, None) => true,
                (Some(held), Some(now)) => held.is_same(now),
                _ => false,
            }
        {
            return Ok(Arc::clone(&held.config));
        }
        let config = Arc::new(self.build(&certificate, roots.as_ref())?);
        *cached = Some(Cached {
            certificate,
            roots,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    /// The certificate of handshakes that begin now.
    fn certificate(&self, last: Option<&Cached>) -> Result<OurCertificate, TlsError> {
        if let Some(name) = self.settings.identity.secret() {
            let last = last.and_then(|last| match &last.certificate {
                OurCertificate::Secret(last) => Some(last),
                OurCertificate::Member(_) => None,
            });
            let kind = TlsErrorKind::NoIdentity;
            let found = secret::fetched(self.identity.secrets(), name, last, kind)?;
            return Ok(OurCertificate::Secret(found));
        }
        let message = "this server has no certificate yet";
        let held = self.identity.certificate();
        let held = held.ok_or_else(|| TlsError::new(TlsErrorKind::NoIdentity, message))?;
        Ok(OurCertificate::Member(held))
    }

    /// The roots of handshakes that begin now.
    fn roots(&self, source: &TrustSource, last: Option<&Cached>) -> Result<Roots, TlsError> {
        let held = self.identity.trust();
        match source {
            TrustSource::Sds(name) if !is_held(name, held.as_ref()) => {
                let last = last.and_then(|last| match &last.roots {
                    Some(Roots::Secret(last)) => Some(last),
                    Some(Roots::Mesh(_)) | None => None,
                });
                let kind = TlsErrorKind::NoTrust;
                let found = secret::fetched(self.identity.secrets(), name, last, kind)?;
                Ok(Roots::Secret(found))
            }
            _ => held_trust(held).map(Roots::Mesh),
        }
    }

    fn build(
        &self,
        certificate: &OurCertificate,
        roots: Option<&Roots>,
    ) -> Result<ServerConfig, TlsError> {
        let certified = certificate.certified()?;
        let verifier: Arc<dyn ClientCertVerifier> = match roots {
            None => Arc::new(NoClientAuth),
            Some(Roots::Mesh(Trust::Bundle(bundle))) => {
                let own = Vouch::For(self.trust_domain(&certified)?);
                self.verifier(own, root_store(bundle)?)?
            }
            Some(Roots::Mesh(Trust::ByTrustDomain(map))) => {
                let is_mandatory = self.settings.require_client_certificate;
                let of_domain =
                    |domain: &str, roots| self.verifier(Vouch::For(domain.to_owned()), roots);
                Arc::new(ByTrustDomain::new(map, is_mandatory, of_domain)?)
            }
            Some(Roots::Secret(held)) => {
                let own = self.identity.certificate();
                let own = own.map(|own| own.spiffe_id().trust_domain().to_owned());
                let vouch = own.map_or(Vouch::ForAll, Vouch::ForAllBut);
                self.verifier(vouch, root_store(secret::roots(held)?)?)?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = Alpn::Either.protocols();
        Ok(config)
    }

    /// The trust domain for which the mesh's roots vouch: that of our identity, or of the certificate
    /// that is shown where it is the only one.
    fn trust_domain(&self, shown: &CertifiedKey) -> Result<String, TlsError> {
        if let Some(own) = self.identity.certificate() {
            return Ok(own.spiffe_id().trust_domain().to_owned());
        }
        let shown = secret::spiffe_id(shown).map_err(unusable)?;
        let shown = shown.map(|id| id.trust_domain().to_owned());
        shown.ok_or_else(|| {
            let message = "the mesh's roots vouch for our trust domain alone, and we have none: this \
                           server has no SPIFFE ID";
            TlsError::new(TlsErrorKind::NoIdentity, message)
        })
    }

    /// Verifies clients of the trust domains that `roots` vouch for.
    fn verifier(
        &self,
        vouch: Vouch,
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
            vouch,
        }))
    }
}

/// What is for clients alone, towards servers outside the mesh.
fn check_sources(settings: &DownstreamTls) -> Result<(), TlsError> {
    let config = |message| Err(TlsError::new(TlsErrorKind::Config, message));
    if matches!(settings.identity, CertificateSource::Files { .. }) {
        return config("a certificate from files of the configuration is for clients alone");
    }
    match settings.roots {
        None | Some(TrustSource::Sds(_) | TrustSource::Provider { .. }) => Ok(()),
        Some(TrustSource::System | TrustSource::Inline(_) | TrustSource::File(_)) => {
            config("roots of the system, of the resource or in files are for clients alone")
        }
    }
}
