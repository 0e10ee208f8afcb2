//! TLS towards the endpoints of one cluster, or to one of them.
//!
//! Stage 12. It turns a connected stream into an authenticated one; the caller owns time limits
//! and everything above. The rustls configuration is kept while identity and roots stay the same,
//! so that sessions resume; a rotation makes a new one, and with it an empty session store. It does
//! not know the endpoint's host name: that is the `sni` of its settings by now.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::config::{
    CertificateSource, SanMatcher, Secret, TlsVersion, TrustBundle, TrustSource, UpstreamTls,
};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::ServerCertVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Alpn, OWN_CERTIFICATE, TlsError, TlsErrorKind, check_not_expired, domains::ByTrustDomain,
    held_trust, is_held, material::Materials, provider, root_store, secret, unreadable, unusable,
    verify::ServerVerifier, versions,
};
use crate::identity::{Certificate, Identity, Leaf, PeerIdentity, Trust};

/// Client side of TLS for one cluster.
#[derive(Debug)]
pub struct ClientTls {
    settings: UpstreamTls,
    identity: Identity,
    alpn: Alpn,
    materials: Arc<Materials>,
    cached: Mutex<Option<Cached>>,
}

/// A configuration, and what it was made from.
#[derive(Debug)]
struct Cached {
    certificate: Option<OurCertificate>,
    roots: Roots,
    config: Arc<ClientConfig>,
}

/// A certificate of ours.
#[derive(Clone, Debug)]
enum OurCertificate {
    /// That of the process in the mesh.
    Member(Arc<Certificate>),
    /// One from files, for outside.
    Files(Arc<CertifiedKey>),
    /// One over SDS.
    Secret(Arc<Secret>),
}

impl OurCertificate {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Member(a), Self::Member(b)) => Arc::ptr_eq(a, b),
            (Self::Files(a), Self::Files(b)) => Arc::ptr_eq(a, b),
            (Self::Secret(a), Self::Secret(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        match self {
            Self::Member(held) => Ok(held.certified()),
            Self::Files(held) => Ok(Arc::clone(held)),
            Self::Secret(held) => secret::certificate(held),
        }
    }
}

/// Whom we trust.
#[derive(Clone, Debug)]
enum Roots {
    /// The mesh's own.
    Mesh(Trust),
    /// Those of the resource.
    Bundle(Arc<TrustBundle>),
    /// Those of this machine.
    Store(Arc<RootCertStore>),
    /// Others over SDS.
    Secret(Arc<Secret>),
}

impl Roots {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mesh(a), Self::Mesh(b)) => a.is_same(b),
            (Self::Bundle(a), Self::Bundle(b)) => Arc::ptr_eq(a, b),
            (Self::Store(a), Self::Store(b)) => Arc::ptr_eq(a, b),
            (Self::Secret(a), Self::Secret(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl ClientTls {
    /// TLS as `settings` declare it, with the current values of `identity` at each handshake.
    pub fn new(settings: &UpstreamTls, identity: Identity, alpn: Alpn) -> Self {
        Self::sharing(settings, identity, alpn, Arc::default())
    }

    /// The same, with what the process has read of its machine.
    pub(crate) fn sharing(
        settings: &UpstreamTls,
        identity: Identity,
        alpn: Alpn,
        materials: Arc<Materials>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            identity,
            alpn,
            materials,
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
        let config = self.config().await?;
        let name = match &self.settings.sni {
            Some(name) => ServerName::try_from(name.clone()).map_err(unusable)?,
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

    async fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let certificate = self.certificate().await?;
        let roots = self.roots().await?;
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*cached
            && held.roots.is_same(&roots)
            && match (&held.certificate, &certificate) {
                (None, None) => true,
                (Some(held), Some(now)) => held.is_same(now),
                _ => false,
            }
        {
            return Ok(Arc::clone(&held.config));
        }
        let config = Arc::new(self.build(certificate.as_ref(), &roots)?);
        *cached = Some(Cached {
            certificate,
            roots,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    /// The certificate of handshakes that begin now.
    async fn certificate(&self) -> Result<Option<OurCertificate>, TlsError> {
        match &self.settings.identity {
            None => Ok(None),
            Some(CertificateSource::Files { chain, key }) => {
                let certificate = self.materials.certificate(chain, key).await?;
                Ok(Some(OurCertificate::Files(certificate)))
            }
            Some(CertificateSource::Sds(name)) if name.as_str() != OWN_CERTIFICATE => {
                let last = self.last(|cached| match &cached.certificate {
                    Some(OurCertificate::Secret(last)) => Some(Arc::clone(last)),
                    _ => None,
                });
                let kind = TlsErrorKind::NoIdentity;
                let found = secret::fetched(self.identity.secrets(), name, last.as_ref(), kind)?;
                Ok(Some(OurCertificate::Secret(found)))
            }
            Some(CertificateSource::Sds(_) | CertificateSource::Provider { .. }) => {
                let message = "a certificate of ours is demanded and there is none yet";
                let held = self.identity.certificate();
                let held = held.ok_or_else(|| TlsError::new(TlsErrorKind::NoIdentity, message))?;
                Ok(Some(OurCertificate::Member(held)))
            }
        }
    }

    /// The roots of handshakes that begin now.
    async fn roots(&self) -> Result<Roots, TlsError> {
        Ok(match &self.settings.roots {
            TrustSource::Inline(bundle) => Roots::Bundle(Arc::clone(bundle)),
            TrustSource::System => Roots::Store(self.materials.system_roots().await?),
            TrustSource::File(path) => Roots::Store(self.materials.roots(path).await?),
            TrustSource::Sds(name) if !is_held(name, self.identity.trust().as_ref()) => {
                let last = self.last(|cached| match &cached.roots {
                    Roots::Secret(last) => Some(Arc::clone(last)),
                    _ => None,
                });
                let kind = TlsErrorKind::NoTrust;
                let found = secret::fetched(self.identity.secrets(), name, last.as_ref(), kind)?;
                Roots::Secret(found)
            }
            TrustSource::Sds(_) | TrustSource::Provider { .. } => {
                Roots::Mesh(held_trust(self.identity.trust())?)
            }
        })
    }

    /// Something of what the last handshake used.
    fn last<T>(&self, of: impl FnOnce(&Cached) -> Option<T>) -> Option<T> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().and_then(of)
    }

    /// The names that the server must have one of; empty where any will do.
    fn expected_names(&self) -> Result<Vec<SanMatcher>, TlsError> {
        let settings = &self.settings;
        if !settings.auto_sni_san_validation {
            return Ok(settings.subject_alt_names.clone());
        }
        match &self.settings.sni {
            Some(name) => Ok(vec![SanMatcher::exact(as_in_certificates(name))]),
            None if settings.subject_alt_names.is_empty() => {
                let message = "auto_sni_san_validation needs a name: sni, or a host name of the \
                               endpoint with auto_host_sni";
                Err(TlsError::new(TlsErrorKind::Config, message))
            }
            None => Ok(settings.subject_alt_names.clone()),
        }
    }

    fn build(
        &self,
        certificate: Option<&OurCertificate>,
        roots: &Roots,
    ) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let trust_domain = match certificate {
            Some(OurCertificate::Member(held)) if matches!(roots, Roots::Mesh(_)) => {
                Some(held.spiffe_id().trust_domain().to_owned())
            }
            _ => None,
        };
        let names = self.expected_names()?;
        let verifier = |roots: Arc<RootCertStore>| ServerVerifier {
            roots,
            subject_alt_names: names.clone(),
            trust_domain: trust_domain.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match roots {
            Roots::Mesh(Trust::Bundle(bundle)) | Roots::Bundle(bundle) => {
                Arc::new(verifier(Arc::new(root_store(bundle)?)))
            }
            Roots::Mesh(Trust::ByTrustDomain(map)) => {
                let of_domain = |_: &str, roots| Ok(verifier(Arc::new(roots)));
                Arc::new(ByTrustDomain::new(map, true, of_domain)?)
            }
            Roots::Store(store) => Arc::new(verifier(Arc::clone(store))),
            Roots::Secret(held) => Arc::new(verifier(Arc::new(root_store(secret::roots(held)?)?))),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(self.min_version()))
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(held) => builder
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(held.certified()?))),
        };
        config.alpn_protocols = self.alpn.protocols();
        Ok(config)
    }

    /// Members of the mesh never speak less than the newest, whatever is declared.
    fn min_version(&self) -> TlsVersion {
        let settings = &self.settings;
        settings
            .min_version
            .max(TlsVersion::oldest(&settings.roots))
    }
}

/// An address in the form that it has as a name of a certificate.
fn as_in_certificates(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_owned(), |ip| ip.to_string())
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
