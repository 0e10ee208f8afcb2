//! `Secret` to [`Secret`].
//!
//! Stage 3. Trust bundles and, for those that cannot make a CSR, certificates with keys; both as
//! inline PEM (Envoy SDS). Files and variables are refused: they would be read here, not there.

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{Secret as SecretProto, secret::Type},
};
use mesh_core::config::{Secret, TrustBundle};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::resource::path::Sink;

pub(crate) fn decode(sink: &mut Sink, proto: &SecretProto) -> Option<Secret> {
    match &proto.r#type {
        Some(Type::ValidationContext(context)) => sink.field("validation_context", |sink| {
            sink.refuse("crl", context.crl.is_some(), "is not supported");
            let pem = inline(sink, "trusted_ca", context.trusted_ca.as_ref())?;
            let roots = sink.field("trusted_ca", |sink| decode_roots(sink, &pem))?;
            Some(Secret::TrustBundle(TrustBundle {
                name: proto.name.as_str().into(),
                roots,
            }))
        }),
        Some(Type::TlsCertificate(certificate)) => sink.field("tls_certificate", |sink| {
            let chain = inline(
                sink,
                "certificate_chain",
                certificate.certificate_chain.as_ref(),
            );
            let key = inline(sink, "private_key", certificate.private_key.as_ref());
            let text = |sink: &mut Sink, name: &str, bytes: Vec<u8>| match String::from_utf8(bytes)
            {
                Ok(text) => Some(text),
                Err(_) => sink.error_at(name, "is not PEM"),
            };
            Some(Secret::Certificate {
                name: proto.name.as_str().into(),
                chain_pem: text(sink, "certificate_chain", chain?)?,
                key_pem: text(sink, "private_key", key?)?,
            })
        }),
        Some(Type::SessionTicketKeys(_)) => {
            sink.error_at("session_ticket_keys", "is not supported")
        }
        Some(Type::GenericSecret(_)) => sink.error_at("generic_secret", "is not supported"),
        None => sink.error("holds no secret"),
    }
}

fn inline(sink: &mut Sink, name: &str, source: Option<&DataSource>) -> Option<Vec<u8>> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineString(text)) => Some(text.clone().into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.clone()),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            sink.error_at(name, "must be inline_string or inline_bytes")
        }
        None => sink.error_at(name, "is missing"),
    }
}

/// Certificates in PEM, at least one.
pub(super) fn decode_roots(sink: &mut Sink, pem: &[u8]) -> Option<Vec<Bytes>> {
    let mut roots = Vec::new();
    for (i, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let certificate = match certificate {
            Ok(certificate) => certificate,
            Err(e) => return sink.error(format!("certificate {i} is not PEM: {e}")),
        };
        if let Err(e) = X509Certificate::from_der(&certificate) {
            return sink.error(format!("certificate {i} is not X.509: {e}"));
        }
        roots.push(Bytes::copy_from_slice(&certificate));
    }
    if roots.is_empty() {
        return sink.error("holds no certificate");
    }
    Some(roots)
}
