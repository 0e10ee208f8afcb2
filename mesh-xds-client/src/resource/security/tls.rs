//! `UpstreamTlsContext` and `DownstreamTlsContext` to [`UpstreamTls`] and [`DownstreamTls`].
//!
//! Stage 3. Certificates and roots come from provider instances named in the bootstrap (gRFC A29,
//! in the current and the deprecated fields) or over SDS; a provider instance wins over SDS, and SDS
//! over what is for servers [outside] the mesh. Names that are sent and expected: gRFC A101. Deviation:
//! the system's roots without any expected name are refused, as they vouch for everybody's names.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    UpstreamTlsContext,
    common_tls_context::{CertificateProviderInstance, ValidationContextType},
    downstream_tls_context::OcspStaplePolicy,
};
use mesh_core::config::{
    CertificateSource, DownstreamTls, OWN_TRUST_BUNDLE, SanMatcher, TlsVersion, TrustSource,
    UpstreamTls,
};

use super::outside;
use crate::{
    bootstrap::CertificateProvider,
    resource::{
        DecodeContext, IDENTITY_PROVIDER, path::Sink, report::report, route::matcher,
        value::same_stream,
    },
};

/// Longest server name (gRFC A29).
const SNI_LENGTH_MAX: usize = 255;

pub(crate) fn decode_upstream(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &UpstreamTlsContext,
) -> Option<UpstreamTls> {
    report!(sink, proto, [allow_renegotiation, enforce_rsa_key_usage]);
    if proto.sni.len() > SNI_LENGTH_MAX {
        sink.error_at::<()>("sni", format!("is longer than {SNI_LENGTH_MAX} bytes"));
    }
    let Some(common) = &proto.common_tls_context else {
        return sink.error_at("common_tls_context", "is missing");
    };
    let decoded = sink.field("common_tls_context", |sink| {
        check_common(sink, common);
        let identity = decode_identity(sink, context, common);
        let outside = outside::certificate(sink, common);
        let min_version = common
            .tls_params
            .as_ref()
            .and_then(|params| sink.field("tls_params", |sink| outside::min_version(sink, params)));
        let validation = decode_validation(sink, context, common);
        let roots = match (validation.roots, &validation.context) {
            (None, Some((field, context))) => {
                sink.field(field, |sink| outside::roots(sink, context))
            }
            (roots, Some((field, context))) => {
                // They lose against a provider and against SDS.
                sink.field(field, |sink| {
                    report!(sink, context, [trusted_ca, system_root_certs]);
                });
                roots
            }
            (roots, None) => roots,
        };
        let Some(roots) = roots else {
            return sink.error(
                "names no source of trusted roots: a CA provider instance, an SDS secret, \
                 trusted_ca or system_root_certs is needed",
            );
        };
        Some(UpstreamTls {
            identity: identity.or(outside),
            subject_alt_names: validation.subject_alt_names,
            sni: Some(proto.sni.clone()).filter(|sni| !sni.is_empty()),
            auto_host_sni: proto.auto_host_sni,
            auto_sni_san_validation: proto.auto_sni_san_validation,
            min_version: min_version.unwrap_or_else(|| TlsVersion::oldest(&roots)),
            roots,
        })
    })?;
    let checks_names = decoded.checks_names();
    if decoded.auto_sni_san_validation && !checks_names {
        return sink.error_at(
            "auto_sni_san_validation",
            "needs a name: set sni, auto_host_sni or match_typed_subject_alt_names",
        );
    }
    if decoded.roots == TrustSource::System && !checks_names {
        return sink.error(
            "the system's roots vouch for everybody: set match_typed_subject_alt_names, or \
             auto_sni_san_validation with sni or auto_host_sni",
        );
    }
    Some(decoded)
}

pub(crate) fn decode_downstream(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &DownstreamTlsContext,
) -> Option<DownstreamTls> {
    let is_set = |value: &Option<envoy_types::pb::google::protobuf::BoolValue>| {
        value.as_ref().is_some_and(|value| value.value)
    };
    sink.refuse(
        "require_sni",
        is_set(&proto.require_sni),
        "is not supported",
    );
    sink.refuse(
        "ocsp_staple_policy",
        proto.ocsp_staple_policy != OcspStaplePolicy::LenientStapling as i32,
        "only LENIENT_STAPLING is supported",
    );
    report!(
        sink,
        proto,
        [
            full_scan_certs_on_sni_mismatch,
            prefer_client_ciphers,
            session_ticket_keys_type,
            session_timeout,
        ]
    );
    let require_client_certificate = is_set(&proto.require_client_certificate);
    let Some(common) = &proto.common_tls_context else {
        return sink.error_at("common_tls_context", "is missing");
    };
    let (identity, validation) = sink.field("common_tls_context", |sink| {
        check_common(sink, common);
        let identity = decode_identity(sink, context, common);
        for (field, is_set) in [
            ("tls_certificates", !common.tls_certificates.is_empty()),
            ("tls_params", common.tls_params.is_some()),
        ] {
            sink.refuse(field, is_set, "is not supported on servers");
        }
        if identity.is_none() {
            sink.error::<()>("a server needs a certificate: a provider instance or an SDS secret");
        }
        let validation = decode_validation(sink, context, common);
        if let Some((field, context)) = &validation.context {
            sink.field(field, |sink| {
                let place = "is not supported on servers";
                sink.refuse("trusted_ca", context.trusted_ca.is_some(), place);
                // gRFC A82.
                let system = context.system_root_certs.is_some();
                sink.refuse("system_root_certs", system, place);
            });
        }
        if !validation.subject_alt_names.is_empty() {
            sink.error::<()>(
                "name matchers are not supported on servers; write authorisation rules instead",
            );
        }
        (identity, validation)
    });
    if require_client_certificate && validation.roots.is_none() {
        return sink.error_at(
            "require_client_certificate",
            "needs a validation context to check the client's certificate with",
        );
    }
    Some(DownstreamTls {
        identity: identity?,
        roots: validation.roots,
        require_client_certificate,
    })
}

/// Refuses what would weaken security if it were ignored.
fn check_common(sink: &mut Sink, common: &CommonTlsContext) {
    report!(sink, common, [key_log]);
    let unsupported = "is not supported";
    sink.refuse(
        "custom_handshaker",
        common.custom_handshaker.is_some(),
        unsupported,
    );
    sink.refuse(
        "custom_tls_certificate_selector",
        common.custom_tls_certificate_selector.is_some(),
        unsupported,
    );
    sink.refuse(
        "tls_certificate_certificate_provider",
        common.tls_certificate_certificate_provider.is_some(),
        unsupported,
    );
}

fn decode_identity(
    sink: &mut Sink,
    context: &DecodeContext,
    common: &CommonTlsContext,
) -> Option<CertificateSource> {
    if let Some(current) = &common.tls_certificate_provider_instance {
        let name = "tls_certificate_provider_instance";
        return instance(sink, context, name, &current.instance_name)
            .map(|instance| CertificateSource::Provider { instance });
    }
    if let Some(CertificateProviderInstance { instance_name, .. }) =
        &common.tls_certificate_certificate_provider_instance
    {
        let name = "tls_certificate_certificate_provider_instance";
        return instance(sink, context, name, instance_name)
            .map(|instance| CertificateSource::Provider { instance });
    }
    match common.tls_certificate_sds_secret_configs.as_slice() {
        [] => None,
        [config] => sds(sink, "tls_certificate_sds_secret_configs[0]", config)
            .map(|name| CertificateSource::Sds(name.into())),
        _ => sink.error_at(
            "tls_certificate_sds_secret_configs",
            "more than one is not supported",
        ),
    }
}

#[derive(Default)]
struct Validation<'c> {
    roots: Option<TrustSource>,
    subject_alt_names: Vec<SanMatcher>,
    /// With its place.
    context: Option<(&'static str, &'c CertificateValidationContext)>,
}

fn decode_validation<'c>(
    sink: &mut Sink,
    context: &DecodeContext,
    common: &'c CommonTlsContext,
) -> Validation<'c> {
    match &common.validation_context_type {
        None => Validation::default(),
        Some(ValidationContextType::ValidationContext(validation)) => Validation {
            context: Some(("validation_context", validation)),
            ..sink.field("validation_context", |sink| {
                decode_context(sink, context, validation)
            })
        },
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => Validation {
            roots: sds_roots(sink, context, config),
            ..Validation::default()
        },
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let default = combined.default_validation_context.as_ref();
            sink.field("combined_validation_context", |sink| {
                let place = "default_validation_context";
                let mut validation = match default {
                    Some(default) => {
                        sink.field(place, |sink| decode_context(sink, context, default))
                    }
                    None => Validation::default(),
                };
                validation.context = default.map(|default| {
                    let place = "combined_validation_context.default_validation_context";
                    (place, default)
                });
                let deprecated = &combined.validation_context_certificate_provider_instance;
                if validation.roots.is_some() {
                    return validation;
                }
                validation.roots = if let Some(provider) = deprecated {
                    let name = "validation_context_certificate_provider_instance";
                    instance(sink, context, name, &provider.instance_name)
                        .map(|instance| TrustSource::Provider { instance })
                } else if let Some(config) = &combined.validation_context_sds_secret_config {
                    sds_roots(sink, context, config)
                } else {
                    None
                };
                validation
            })
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(provider)) => {
            let name = "validation_context_certificate_provider_instance";
            Validation {
                roots: instance(sink, context, name, &provider.instance_name)
                    .map(|instance| TrustSource::Provider { instance }),
                ..Validation::default()
            }
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            sink.error_at::<()>(
                "validation_context_certificate_provider",
                "is not supported",
            );
            Validation::default()
        }
    }
}

fn decode_context(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &CertificateValidationContext,
) -> Validation<'static> {
    check_validation(sink, proto);
    let roots = proto
        .ca_certificate_provider_instance
        .as_ref()
        .and_then(|provider| {
            let name = "ca_certificate_provider_instance";
            instance(sink, context, name, &provider.instance_name)
                .map(|instance| TrustSource::Provider { instance })
        });
    let subject_alt_names = if proto.match_typed_subject_alt_names.is_empty() {
        let untyped = &proto.match_subject_alt_names;
        sink.each("match_subject_alt_names", untyped, |sink, name| {
            matcher::string(sink, name).map(SanMatcher::from)
        })
    } else {
        let typed = &proto.match_typed_subject_alt_names;
        sink.each("match_typed_subject_alt_names", typed, outside::san_matcher)
    };
    Validation {
        roots,
        subject_alt_names,
        context: None,
    }
}

pub(super) fn check_validation(sink: &mut Sink, proto: &CertificateValidationContext) {
    let unsupported = "is not supported";
    sink.refuse(
        "verify_certificate_spki",
        !proto.verify_certificate_spki.is_empty(),
        unsupported,
    );
    sink.refuse(
        "verify_certificate_hash",
        !proto.verify_certificate_hash.is_empty(),
        unsupported,
    );
    sink.refuse(
        "require_signed_certificate_timestamp",
        proto
            .require_signed_certificate_timestamp
            .as_ref()
            .is_some_and(|value| value.value),
        unsupported,
    );
    sink.refuse("crl", proto.crl.is_some(), unsupported);
    sink.refuse(
        "max_verify_depth",
        proto.max_verify_depth.is_some(),
        unsupported,
    );
    sink.refuse(
        "custom_validator_config",
        proto.custom_validator_config.is_some(),
        unsupported,
    );
    // Where these would loosen the check, it stays as strict as without them.
    report!(
        sink,
        proto,
        [
            allow_expired_certificate,
            only_verify_leaf_cert_crl,
            trust_chain_verification,
            watched_directory,
        ]
    );
}

/// The name of a provider instance, if the bootstrap has it.
fn instance(sink: &mut Sink, context: &DecodeContext, field: &str, name: &str) -> Option<String> {
    sink.field(&format!("{field}.instance_name"), |sink| {
        let provider = context.providers.get(name);
        match provider {
            // A process has one identity; roots of another provider would not be those used.
            Some(
                CertificateProvider::MeshCsr(_)
                | CertificateProvider::FileWatcher(_)
                | CertificateProvider::WorkloadApi(_),
            ) if provider != context.providers.get(IDENTITY_PROVIDER) => sink.error(format!(
                "{name:?} differs from {IDENTITY_PROVIDER:?}, the only provider that is used"
            )),
            Some(
                CertificateProvider::MeshCsr(_)
                | CertificateProvider::FileWatcher(_)
                | CertificateProvider::WorkloadApi(_),
            ) => Some(name.to_owned()),
            Some(CertificateProvider::Unsupported { plugin_name }) => sink.error(format!(
                "{name:?} uses the plugin {plugin_name:?} in the bootstrap, which is not supported"
            )),
            None => sink.error(format!(
                "{name:?} is not among the bootstrap's certificate_providers"
            )),
        }
    })
}

fn sds_roots(
    sink: &mut Sink,
    context: &DecodeContext,
    config: &SdsSecretConfig,
) -> Option<TrustSource> {
    let name = sds(sink, "validation_context_sds_secret_config", config)?;
    if context.is_own_trust_bundle(name) && name != OWN_TRUST_BUNDLE {
        // By any name they are the mesh's, with all that it means.
        let instance = IDENTITY_PROVIDER.to_owned();
        return Some(TrustSource::Provider { instance });
    }
    Some(TrustSource::Sds(name.into()))
}

fn sds<'c>(sink: &mut Sink, field: &str, config: &'c SdsSecretConfig) -> Option<&'c str> {
    sink.field(field, |sink| {
        // Without a source the secret is static in Envoy; here it comes over the same stream.
        if config.sds_config.is_some() {
            same_stream(sink, "sds_config", config.sds_config.as_ref());
        }
        match config.name.as_str() {
            "" => sink.error_at("name", "is missing"),
            name => Some(name),
        }
    })
}
