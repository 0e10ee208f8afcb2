//! One HTTPS request for a key set. Redirects are not followed: an address is what was declared.

use std::{fmt, fs, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest key set, in bytes.
const LENGTH_MAX: usize = 1 << 20;

/// Who may say what an issuer's keys are.
#[derive(Clone)]
pub(crate) struct Trust(Option<Arc<ClientConfig>>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// The roots of a PEM file; without one those of the system.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn open(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        match file {
            Some(file) => {
                for certificate in CertificateDer::pem_slice_iter(&fs::read(file)?) {
                    roots.add(certificate?)?;
                }
                anyhow::ensure!(!roots.is_empty(), "it holds no certificate");
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        if roots.is_empty() {
            return Ok(Self(None));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Some(Arc::new(config))))
    }
}

/// The key set at an address.
pub(super) async fn keys(address: &str, trust: &Trust) -> Result<String, String> {
    let uri: Uri = address.parse().map_err(|error| format!("{error}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let Some(config) = trust
        .0
        .clone()
        .filter(|_| uri.scheme_str() == Some("https"))
    else {
        return Err("it is not https, or this machine trusts no root".to_owned());
    };
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443)));
    let tcp = tcp.await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(config).connect(name, tcp).await;
    let tls = TokioIo::new(tls.map_err(|error| error.to_string())?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(tls)
        .await
        .map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, uri.authority().map_or(host, |a| a.as_str()))
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LENGTH_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let text = String::from_utf8(body.to_vec()).map_err(|error| error.to_string())?;
        let set: Result<serde_json::Value, _> = serde_json::from_str(&text);
        match set {
            Ok(set) if set["keys"].is_array() => Ok(text),
            _ => Err("the answer is not a JSON Web Key Set".to_owned()),
        }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection is driven beside; what it ends with is the answer's to say.
        _ = connection => exchange.await,
    }
}
