//! TLS contexts and secrets, which differ most between the classes.

use std::path::Path;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{DataSource, TransportSocket, data_source::Specifier, transport_socket},
        extensions::transport_sockets::{
            raw_buffer::v3::RawBuffer,
            tls::v3::{
                CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
                DownstreamTlsContext, SdsSecretConfig, Secret as ProtoSecret,
                SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext,
                certificate_validation_context::SystemRootCerts, common_tls_context, secret,
                subject_alt_name_matcher::SanType as ProtoSanType, tls_parameters::TlsProtocol,
            },
        },
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{
    CertificateSource, DownstreamTls, SanMatcher, SanType, Secret, TlsVersion, TrustSource,
    UpstreamTls,
};

use super::{ClientClass, ads, any, matcher};

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";
/// The system's roots where Envoy runs, which has no word for them: as its own image has them.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// SDS name of a process's own certificate.
const OWN_CERTIFICATE: &str = "default";
/// Certificate name of the roots in a provider instance, by Istio's convention.
const ROOTS: &str = "ROOTCA";

pub(super) fn upstream(tls: &UpstreamTls, class: ClientClass) -> TransportSocket {
    let mut common = common(
        tls.identity.as_ref(),
        Some(&tls.roots),
        &tls.subject_alt_names,
        class,
    );
    if tls.min_version < TlsVersion::V1_3
        && let Some(params) = &mut common.tls_params
    {
        params.tls_minimum_protocol_version = TlsProtocol::TlSv12 as i32;
    }
    let context = UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: tls.sni.clone().unwrap_or_default(),
        auto_host_sni: tls.auto_host_sni,
        auto_sni_san_validation: tls.auto_sni_san_validation,
        ..UpstreamTlsContext::default()
    };
    socket(&context)
}

/// Said in so many words, where the lack of a socket would mean something else.
pub(super) fn plaintext() -> TransportSocket {
    TransportSocket {
        name: RAW_SOCKET.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(
            &RawBuffer::default(),
        ))),
    }
}

pub(super) fn downstream(tls: &DownstreamTls, class: ClientClass) -> TransportSocket {
    let mut common = common(Some(&tls.identity), tls.roots.as_ref(), &[], class);
    if class == ClientClass::Envoy {
        // Upstream, Envoy offers what the connection will speak, if this list is empty.
        common.alpn_protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
    }
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(BoolValue {
            value: tls.require_client_certificate,
        }),
        ..DownstreamTlsContext::default()
    };
    socket(&context)
}

fn socket<M: prost::Message + prost::Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: TLS_SOCKET.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(context))),
    }
}

fn common(
    identity: Option<&CertificateSource>,
    roots: Option<&TrustSource>,
    names: &[SanMatcher],
    class: ClientClass,
) -> CommonTlsContext {
    let mut context = CommonTlsContext::default();
    if class == ClientClass::Envoy {
        // Envoy as a client stops at TLS 1.2 unless told otherwise; the mesh speaks 1.3 alone.
        context.tls_params = Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..TlsParameters::default()
        });
    }
    match (identity, class) {
        (None, _) => {}
        (Some(CertificateSource::Files { chain, key }), _) => {
            context.tls_certificates = vec![TlsCertificate {
                certificate_chain: Some(file(chain)),
                private_key: Some(file(key)),
                ..TlsCertificate::default()
            }];
        }
        (Some(_), ClientClass::Envoy) => {
            context.tls_certificate_sds_secret_configs = vec![sds(OWN_CERTIFICATE)];
        }
        (Some(source), _) => {
            let instance = match source {
                CertificateSource::Provider { instance } => instance.clone(),
                CertificateSource::Sds(_) | CertificateSource::Files { .. } => {
                    OWN_CERTIFICATE.to_owned()
                }
            };
            context.tls_certificate_provider_instance = Some(provider(instance, OWN_CERTIFICATE));
        }
    }
    let Some(roots) = roots else { return context };
    let mut validation = CertificateValidationContext::default();
    if class == ClientClass::Envoy || !roots.is_of_mesh() {
        validation.match_typed_subject_alt_names = names.iter().map(typed_name).collect();
    } else {
        #[expect(deprecated, reason = "gRPC in Go reads the untyped list alone")]
        let names_field = &mut validation.match_subject_alt_names;
        *names_field = names
            .iter()
            .map(|name| matcher::string(&name.matcher))
            .collect();
    }
    match (roots, class) {
        (TrustSource::System, ClientClass::Envoy) => {
            validation.trusted_ca = Some(file(Path::new(SYSTEM_ROOTS)));
        }
        (TrustSource::System, _) => validation.system_root_certs = Some(SystemRootCerts {}),
        (TrustSource::File(path), _) => validation.trusted_ca = Some(file(path)),
        (TrustSource::Inline(bundle), _) => {
            let pem: String = bundle.roots.iter().map(|der| pem_block(der)).collect();
            validation.trusted_ca = Some(inline(pem));
        }
        (TrustSource::Provider { .. } | TrustSource::Sds(_), _) => {}
    }
    let bundle = match (roots, class) {
        (TrustSource::Sds(name), ClientClass::Rust | ClientClass::Envoy) => Some(name.as_str()),
        (TrustSource::Provider { .. }, ClientClass::Envoy) => Some(ROOTS),
        _ => None,
    };
    use common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    context.validation_context_type = Some(match bundle {
        Some(name) => {
            ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(sds(name)),
                ..CombinedCertificateValidationContext::default()
            })
        }
        None => {
            let instance = match roots {
                TrustSource::Provider { instance } => Some(instance.clone()),
                TrustSource::Sds(_) => Some(OWN_CERTIFICATE.to_owned()),
                TrustSource::System | TrustSource::Inline(_) | TrustSource::File(_) => None,
            };
            validation.ca_certificate_provider_instance =
                instance.map(|instance| provider(instance, ROOTS));
            ValidationContextType::ValidationContext(validation)
        }
    });
    context
}

fn provider(instance_name: String, certificate_name: &str) -> CertificateProviderPluginInstance {
    CertificateProviderPluginInstance {
        instance_name,
        certificate_name: certificate_name.to_owned(),
    }
}

fn sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

fn typed_name(name: &SanMatcher) -> SubjectAltNameMatcher {
    let san_type = match name.san_type {
        Some(SanType::Email) => ProtoSanType::Email,
        Some(SanType::Dns) => ProtoSanType::Dns,
        Some(SanType::IpAddress) => ProtoSanType::IpAddress,
        // Names of members of the mesh.
        Some(SanType::Uri) | None => ProtoSanType::Uri,
    };
    SubjectAltNameMatcher {
        san_type: san_type as i32,
        matcher: Some(matcher::string(&name.matcher)),
        ..SubjectAltNameMatcher::default()
    }
}

/// A file of the client's machine.
fn file(path: &Path) -> DataSource {
    DataSource {
        specifier: Some(Specifier::Filename(path.display().to_string())),
        ..DataSource::default()
    }
}

/// Encodes a secret.
pub fn secret(config: &Secret) -> ProtoSecret {
    let kind = match config {
        Secret::TrustBundle(bundle) => {
            let pem: String = bundle.roots.iter().map(|der| pem_block(der)).collect();
            secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(pem)),
                ..CertificateValidationContext::default()
            })
        }
        Secret::Certificate {
            chain_pem, key_pem, ..
        } => secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(inline(chain_pem.clone())),
            private_key: Some(inline(key_pem.clone())),
            ..TlsCertificate::default()
        }),
    };
    ProtoSecret {
        name: config.name().to_string(),
        r#type: Some(kind),
    }
}

fn inline(text: String) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineString(text)),
        ..DataSource::default()
    }
}

/// A certificate in PEM (RFC 7468).
fn pem_block(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut column = 0;
    for chunk in der.chunks(3) {
        let bits = (u32::from(chunk[0]) << 16)
            | (u32::from(chunk.get(1).copied().unwrap_or(0)) << 8)
            | u32::from(chunk.get(2).copied().unwrap_or(0));
        for position in 0..4 {
            let is_padding = position > chunk.len();
            let index = (bits >> (18 - 6 * position)) & 0x3f;
            text.push(if is_padding {
                '='
            } else {
                ALPHABET[index as usize] as char
            });
        }
        column += 4;
        if column == 64 {
            text.push('\n');
            column = 0;
        }
    }
    if column > 0 {
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_what_a_parser_reads_back() {
        use rustls_pki_types::{CertificateDer, pem::PemObject};
        for length in [1, 2, 3, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            let read = CertificateDer::from_pem_slice(pem_block(&der).as_bytes()).unwrap();
            assert_eq!(read.as_ref(), der, "{length}");
        }
    }
}
