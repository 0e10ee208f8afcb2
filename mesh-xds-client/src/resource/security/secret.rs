//! `Secret` to [`Secret`].
//!
//! Stage 3. Trust bundles and, for those that cannot make a CSR, certificates with keys; both as
//! inline PEM (Envoy SDS). Files and variables are refused: they would be read here, not there. So are
//! checks beside roots, which belong to the cluster (`combined_validation_context`), and a key that does not
//! belong to its chain: what was good before stays.

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{Secret as SecretProto, secret::Type},
};
use mesh_core::config::{Secret, TrustBundle};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::outside;
use crate::resource::path::Sink;

/// Why what is no root is refused.
const IN_CLUSTER: &str = "is not supported in a secret, which holds roots alone";

pub(crate) fn decode(sink: &mut Sink, proto: &SecretProto) -> Option<Secret> {
    match &proto.r#type {
        Some(Type::ValidationContext(context)) => sink.field("validation_context", |sink| {
            super::tls::check_validation(sink, context);
            let names =
                context.match_typed_subject_alt_names.len() + context.match_subject_alt_names.len();
            sink.refuse(
                "match_typed_subject_alt_names",
                names > 0,
                "is not supported in a secret: name them in the cluster's \
                 combined_validation_context.default_validation_context",
            );
            let provider = context.ca_certificate_provider_instance.is_some();
            sink.refuse("ca_certificate_provider_instance", provider, IN_CLUSTER);
            let system = context.system_root_certs.is_some();
            sink.refuse("system_root_certs", system, IN_CLUSTER);
            let pem = inline(sink, "trusted_ca", context.trusted_ca.as_ref())?;
            let roots = sink.field("trusted_ca", |sink| decode_roots(sink, &pem))?;
            Some(Secret::TrustBundle(TrustBundle {
                name: proto.name.as_str().into(),
                roots,
            }))
        }),
        Some(Type::TlsCertificate(certificate)) => sink.field("tls_certificate", |sink| {
            outside::check_certificate(sink, certificate);
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
            let chain_pem = text(sink, "certificate_chain", chain?)?;
            let key_pem = text(sink, "private_key", key?)?;
            check_pair(sink, &chain_pem, &key_pem)?;
            Some(Secret::Certificate {
                name: proto.name.as_str().into(),
                chain_pem,
                key_pem,
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

/// Whether the key belongs to the first certificate of the chain.
fn check_pair(sink: &mut Sink, chain_pem: &str, key_pem: &str) -> Option<()> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = match chain {
        Ok(chain) if chain.is_empty() => {
            return sink.error_at("certificate_chain", "holds no certificate");
        }
        Ok(chain) => chain,
        Err(e) => return sink.error_at("certificate_chain", format!("is not PEM: {e}")),
    };
    // The reason never quotes what is in it.
    let Ok(key) = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()) else {
        return sink.error_at("private_key", "holds no private key in PEM");
    };
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, key, &provider) {
        Ok(_) => Some(()),
        Err(e) => sink.error_at(
            "private_key",
            format!("does not fit certificate_chain: {e}"),
        ),
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
