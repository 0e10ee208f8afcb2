//! Certificates and connections of bare rustls, the floor that the mesh's mTLS stands on.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

const NAME: &str = "localhost";

/// A certificate with its key and the root that vouches for the other side, as DER.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Material {
    root: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Material {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone().into()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone().into())?;
        Ok(roots)
    }
}

/// A server's configuration, and what its client needs.
///
/// # Errors
/// When a certificate cannot be made.
pub fn material() -> anyhow::Result<(ServerConfig, Material)> {
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let issue = || {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![NAME.into()])?.signed_by(&key, &issuer)?;
        anyhow::Ok(Material {
            root: issuer.der().to_vec(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    };
    let (server, client) = (issue()?, issue()?);
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(server.roots()?);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(server.chain(), server.key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((config, client))
}

/// A tonic channel of one connection over bare rustls.
///
/// # Errors
/// When it cannot be set up.
pub fn channel(address: SocketAddr, client: &Material) -> anyhow::Result<Channel> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(client.roots()?)
        .with_client_auth_cert(client.chain(), client.key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(NAME).context("a name")?;
            anyhow::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.connect_with_connector_lazy(connect))
}
