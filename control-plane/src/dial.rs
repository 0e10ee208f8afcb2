//! Connections of commands to a control plane: plain on this machine, over TLS elsewhere.
//!
//! Files are read for every connection, so that whoever replaces them need not tell anybody.

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail, ensure};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Both halves of a connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever is below it.
pub(crate) type Connection = TokioIo<Box<dyn Io>>;

/// What a client shows: a chain with its key.
pub(crate) type OwnCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Where to connect to and whom to believe there.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    host: String,
    port: u16,
    is_tls: bool,
    roots: Vec<PathBuf>,
}

impl Server {
    /// `http://HOST:PORT` or `https://HOST:PORT`; the port may be left out. PEM files with `roots`
    /// vouch for the server, of which only the first must be there; none at all stands for the
    /// system's.
    ///
    /// # Errors
    /// When the address is of another form.
    pub(crate) fn new(uri: &Uri, port: u16, roots: Vec<PathBuf>) -> anyhow::Result<Self> {
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("{uri}: write http://HOST:PORT or https://HOST:PORT"),
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        ensure!(!host.is_empty(), "{uri} has no host");
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(port),
            is_tls,
            roots,
        })
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Whether nobody else can hear or answer: by TLS, or because it is this machine.
    pub(crate) fn is_private(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.is_tls || self.host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
    }

    /// Connects, to speak `protocol` (ALPN).
    ///
    /// # Errors
    /// When it does not answer, or cannot be trusted.
    pub(crate) async fn connect(
        &self,
        protocol: &[u8],
        own: Option<OwnCertificate>,
    ) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        if !self.is_tls {
            return Ok(TokioIo::new(Box::new(tcp)));
        }
        let name = ServerName::try_from(self.host.clone())?;
        let mut config = config(&self.roots, own)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let tls = connector.connect(name, tcp).await.context("TLS")?;
        Ok(TokioIo::new(Box::new(tls)))
    }
}

fn config(roots: &[PathBuf], own: Option<OwnCertificate>) -> anyhow::Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    for (i, file) in roots.iter().enumerate() {
        if i > 0 && !file.exists() {
            continue;
        }
        let in_file = || file.display().to_string();
        for certificate in certificates(file).with_context(in_file)? {
            store.add(certificate).with_context(in_file)?;
        }
    }
    if roots.is_empty() {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    ensure!(
        !store.is_empty(),
        "no root is trusted: name a file with --ca"
    );
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store);
    Ok(match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
    })
}

/// The certificates in a PEM file, of which there is one at least.
pub(crate) fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&fs::read(file)?).collect();
    let found = found?;
    ensure!(!found.is_empty(), "it holds no certificate");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_is_encrypted_or_does_not_leave_the_machine() {
        for (uri, authority, is_private) in [
            ("http://127.0.0.1:1", "127.0.0.1:1", true),
            ("http://[::1]:1", "[::1]:1", true),
            ("http://localhost", "localhost:18000", true),
            (
                "http://127.0.0.1.example.com",
                "127.0.0.1.example.com:18000",
                false,
            ),
            ("http://10.0.0.1:1", "10.0.0.1:1", false),
            ("https://10.0.0.1:1", "10.0.0.1:1", true),
        ] {
            let server = Server::new(&uri.parse().unwrap(), 18_000, Vec::new()).unwrap();
            assert_eq!(
                (server.authority().as_str(), server.is_private()),
                (authority, is_private),
                "{uri}"
            );
        }
        for bad in ["cp:1", "ftp://cp:1", "/cp"] {
            let error = Server::new(&bad.parse().unwrap(), 1, Vec::new()).unwrap_err();
            assert!(
                error.to_string().contains("write http://"),
                "{bad}: {error}"
            );
        }
    }
}
