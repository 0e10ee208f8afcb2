//! TLS to a control plane, and the token that goes with calls (gRFC A65, A97).
//!
//! Stage 1. Files are read for every connection, so rotation needs no watcher and no restart, and touches
//! no stream that lives; a file that cannot be used fails the attempt, never the security. Roots by trust
//! domain: gRFC A87.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_core::config::SpiffeBundleMap;
use rustls::{CertificateError, ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::{bundle::BundleVerifier, chain, own::OwnCertificate};
use crate::{
    bootstrap::{CallCredentials, ServerUri, TlsFiles},
    certificate::read_bundles,
};

/// Connects over TLS. The server must prove the name it is dialled by.
pub(super) async fn connect(
    endpoint: &Endpoint,
    uri: &ServerUri,
    files: &TlsFiles,
    own: &OwnCertificate,
) -> Result<Channel, String> {
    let Some((authority, host)) = uri.host() else {
        return Err(format!("{uri}: TLS over a Unix socket is not supported"));
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("{host:?}: {e}"))?;
    let config = Arc::new(config(files, own).await?);
    let authority = authority.to_owned();
    let connector = tower::service_fn(move |_| {
        let (authority, name) = (authority.clone(), name.clone());
        let connector = TlsConnector::from(Arc::clone(&config));
        async move {
            let tcp = TcpStream::connect(authority).await?;
            tcp.set_nodelay(true)?;
            let tls = connector.connect(name, tcp).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
        }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|e| reason(&e, files))
}

async fn config(files: &TlsFiles, own: &OwnCertificate) -> Result<ClientConfig, String> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match &files.spiffe_trust_bundle_map_file {
        Some(file) => {
            let map = bundles(file).await?;
            let verifier = BundleVerifier::new(&map, &provider).map_err(|e| in_file(file, &e))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        None => builder.with_root_certificates(roots(files).await?),
    };
    let mut config = match (&files.certificate_file, &files.private_key_file) {
        (Some(certificate), Some(key)) => {
            let pem = read(key).await?;
            let pem = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| in_file(key, &e))?;
            let chain = certificates(certificate).await?;
            builder
                .with_client_auth_cert(chain, pem)
                .map_err(|e| in_file(certificate, &e))?
        }
        (None, None) => match own.get().await {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
                .map_err(|e| format!("our own certificate: {e}"))?,
        },
        _ => return Err("certificate_file and private_key_file go together".into()),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn roots(files: &TlsFiles) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &files.ca_certificate_file {
        Some(file) => {
            for certificate in certificates(file).await? {
                roots.add(certificate).map_err(|e| in_file(file, &e))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    match roots.is_empty() {
        true => Err("there is no trusted root: set ca_certificate_file".into()),
        false => Ok(roots),
    }
}

async fn bundles(file: &Path) -> Result<SpiffeBundleMap, String> {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || read_bundles(&file)).await;
    read.unwrap_or_else(|e| Err(e.to_string()))
}

/// Why a connection failed, in one line, with where the roots are from when they do not vouch for the
/// server.
fn reason(error: &(dyn std::error::Error + 'static), files: &TlsFiles) -> String {
    let text = said(error).unwrap_or_else(|| chain(error));
    let is_unknown = ["UnknownIssuer", "BadSignature"]
        .iter()
        .any(|word| text.contains(word));
    if !is_unknown {
        return text;
    }
    let bundles = files.spiffe_trust_bundle_map_file.as_ref();
    let roots = match bundles.or(files.ca_certificate_file.as_ref()) {
        Some(file) => format!("the roots in {}", file.display()),
        None => "the system's roots (ca_certificate_file is not set)".to_owned(),
    };
    format!("{text}: {roots} do not vouch for the control plane")
}

/// What our own verification said, which rustls wraps and would quote.
fn said(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        let inner = io.and_then(std::io::Error::get_ref);
        let of_tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) = of_tls {
            return Some(other.0.to_string());
        }
        next = error.source();
    }
    None
}

async fn read(file: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(file).await.map_err(|e| in_file(file, &e))
}

async fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file).await?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(in_file(file, &"holds no certificate")),
        Ok(found) => Ok(found),
        Err(e) => Err(in_file(file, &e)),
    }
}

fn in_file(file: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", file.display())
}

/// The `authorization` header of a stream, if there is to be one.
pub(super) async fn token(
    calls: &[CallCredentials],
) -> Result<Option<MetadataValue<Ascii>>, String> {
    let Some(CallCredentials::JwtTokenFile(file)) = calls.first() else {
        return Ok(None);
    };
    let text = read(file).await?;
    let text = String::from_utf8(text).map_err(|e| in_file(file, &e))?;
    let token = text.trim();
    check_token(token, SystemTime::now()).map_err(|reason| in_file(file, &reason))?;
    let mut value: MetadataValue<_> = format!("Bearer {token}")
        .parse()
        .map_err(|_| in_file(file, &"is not a token"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Looks at form and time only; the signature is the server's business.
fn check_token(token: &str, now: SystemTime) -> Result<(), &'static str> {
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("is not a JSON web token");
    };
    let claims = base64_url(claims).ok_or("its claims are not base64")?;
    let claims: serde_json::Value =
        serde_json::from_slice(&claims).map_err(|_| "its claims are not JSON")?;
    let expires = claims.get("exp").and_then(serde_json::Value::as_u64);
    let expires = expires.ok_or("says not when it expires")?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if expires <= now.as_secs() {
        return Err("has expired; whoever writes it must renew it");
    }
    Ok(())
}

fn base64_url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `{"exp":1700000000}` between two dots.
    const TOKEN: &str = "e30.eyJleHAiOjE3MDAwMDAwMDB9.c2ln";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_must_have_its_form_and_not_have_expired() {
        assert_eq!(check_token(TOKEN, at(1_699_999_999)), Ok(()));
        let expired = check_token(TOKEN, at(1_700_000_000)).unwrap_err();
        assert!(expired.contains("has expired"), "{expired}");
        for bad in ["", "a.b", "a.b.c.d", "e30.!.c", "e30.e30.c", "e30.W10.c"] {
            assert!(check_token(bad, at(0)).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_token_is_read_anew_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let calls = [CallCredentials::JwtTokenFile(file.clone())];
        let missing = token(&calls).await.unwrap_err();
        assert!(missing.contains("token: "), "{missing}");
        // {"exp":99999999999}
        std::fs::write(&file, "e30.eyJleHAiOjk5OTk5OTk5OTk5fQ.c2ln\n").unwrap();
        let value = token(&calls).await.unwrap().unwrap();
        assert!(value.is_sensitive());
        assert!(!format!("{value:?}").contains("e30"));
        assert_eq!(token(&[]).await, Ok(None));
    }
}
