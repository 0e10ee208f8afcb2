//! TLS of health checks.
//!
//! The control plane shows its own certificate, so that servers that take mTLS alone can be checked. It
//! believes a certificate of the mesh for an identity of the instance's namespace, and any other one if
//! the system's roots vouch for it and it has the name that was asked for, as Consul's agents do.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use anyhow::Context as _;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::instance::CheckTls;
use crate::ca::{Identity, OwnCertificate};

/// Makes the connections of checks that go over TLS. Clones share the certificate.
#[derive(Clone, Debug)]
pub(crate) struct ProbeTls(Arc<Inner>);

struct Inner {
    own: OwnCertificate,
    provider: Arc<CryptoProvider>,
    /// Who vouches for certificates from outside; `None` where the system has no roots.
    public: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.own.fmt(f)
    }
}

impl ProbeTls {
    /// Checks that show this certificate.
    pub(crate) fn new(own: OwnCertificate) -> Self {
        Self(Arc::new(Inner {
            own,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            public: OnceLock::new(),
        }))
    }

    /// Performs a handshake with an instance of a namespace.
    ///
    /// # Errors
    /// When the other side is not believed, or does not believe the control plane.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        (host, namespace): (&str, &str),
        tls: &CheckTls,
        alpn: &[u8],
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = match tls.server_name.as_str() {
            "" => host.trim_start_matches('[').trim_end_matches(']'),
            name => name,
        };
        let server = ServerName::try_from(name.to_owned()).context("TLSServerName")?;
        let config = self.config(namespace, tls.skip_verify, alpn)?;
        let connected = TlsConnector::from(config).connect(server, stream).await;
        connected.context("TLS")
    }

    fn config(
        &self,
        namespace: &str,
        skip_verify: bool,
        alpn: &[u8],
    ) -> anyhow::Result<Arc<ClientConfig>> {
        let inner = &*self.0;
        let leaf = inner.own.current(SystemTime::now())?;
        let mut roots = RootCertStore::empty();
        for root in &leaf.roots {
            roots.add(CertificateDer::from(root.as_ref()))?;
        }
        let public = inner.public.get_or_init(|| public(&inner.provider));
        let verifier = Verifier {
            roots,
            trust_domain: inner.own.trust_domain().to_owned(),
            namespace: namespace.to_owned(),
            public: public.clone(),
            skip_verify,
            provider: Arc::clone(&inner.provider),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&inner.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        // A session that is resumed proves nothing new.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// A verifier by the system's roots.
fn public(provider: &Arc<CryptoProvider>) -> Option<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return None;
    }
    let builder =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    builder.build().ok()
}

/// Who is believed to be an instance.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    trust_domain: String,
    namespace: String,
    public: Option<Arc<WebPkiServerVerifier>>,
    skip_verify: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Whether a certificate that the mesh vouches for is one of the instance's namespace.
    fn is_of_namespace(&self, leaf: &CertificateDer<'_>) -> Result<(), String> {
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let names = leaf.subject_alternative_name();
        let names = names.map_err(|error| error.to_string())?;
        let mut names = names
            .into_iter()
            .flat_map(|names| &names.value.general_names);
        let identity = names.find_map(|name| match name {
            GeneralName::URI(uri) => Identity::of_spiffe_id(uri, &self.trust_domain),
            _ => None,
        });
        match identity {
            Some(identity) if identity.namespace == self.namespace => Ok(()),
            Some(identity) => Err(format!(
                "it is {}/{}, not of namespace {}",
                identity.namespace, identity.service_account, self.namespace
            )),
            None => Err(format!("it has no identity of {}", self.trust_domain)),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.skip_verify {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let of_mesh = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        );
        match (of_mesh, &self.public) {
            (Ok(()), _) => match self.is_of_namespace(leaf) {
                Ok(()) => Ok(ServerCertVerified::assertion()),
                Err(message) => {
                    let error = OtherError(Arc::new(std::io::Error::other(message)));
                    Err(CertificateError::Other(error).into())
                }
            },
            (Err(error), None) => Err(error),
            (Err(_), Some(public)) => {
                public.verify_server_cert(leaf, intermediates, name, ocsp, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
