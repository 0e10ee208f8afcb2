//! TLS contexts of both sides.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::{ClusterDiscoveryType, EdsClusterConfig},
            core::v3::{DataSource, TransportSocket, transport_socket},
        },
        extensions::transport_sockets::tls::v3::{
            CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
            DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsCertificate,
            UpstreamTlsContext,
            common_tls_context::{
                CertificateProviderInstance, CombinedCertificateValidationContext,
                ValidationContextType,
            },
        },
        r#type::matcher::v3::{StringMatcher as StringPb, string_matcher::MatchPattern},
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{
    CertificateSource, DownstreamTls, StringMatcher, TrustSource, UpstreamTls,
};

use super::*;
use crate::resource::{path::Sink, security::tls};

fn current(name: &str) -> Option<CertificateProviderPluginInstance> {
    Some(CertificateProviderPluginInstance {
        instance_name: name.into(),
        certificate_name: "ignored".into(),
    })
}

fn deprecated(name: &str) -> Option<CertificateProviderInstance> {
    Some(CertificateProviderInstance {
        instance_name: name.into(),
        certificate_name: "ignored".into(),
    })
}

fn sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.into(),
        sds_config: ads(),
    }
}

pub(super) fn exact(text: &str) -> StringPb {
    StringPb {
        match_pattern: Some(MatchPattern::Exact(text.into())),
        ..StringPb::default()
    }
}

/// Runs a part of decode; errors as `path: reason`.
pub(super) fn part<T>(run: impl FnOnce(&mut Sink) -> Option<T>) -> Result<T, Vec<String>> {
    let mut sink = Sink::new("x");
    let value = run(&mut sink);
    sink.finish(value)
        .map(|(value, _)| value)
        .map_err(|errors| {
            errors
                .iter()
                .map(|e| format!("{}: {}", e.path, e.reason))
                .collect()
        })
}

fn upstream(common: CommonTlsContext) -> Result<UpstreamTls, Vec<String>> {
    let proto = UpstreamTlsContext {
        common_tls_context: Some(common),
        ..UpstreamTlsContext::default()
    };
    part(|sink| tls::decode_upstream(sink, &context(), &proto))
}

fn with_provider() -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_provider_instance: current("default"),
        validation_context_type: Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                ca_certificate_provider_instance: current("default"),
                match_subject_alt_names: vec![exact("spiffe://t/ns/a/sa/b")],
                ..CertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

fn provider() -> (CertificateSource, TrustSource) {
    let instance = || "default".to_owned();
    (
        CertificateSource::Provider {
            instance: instance(),
        },
        TrustSource::Provider {
            instance: instance(),
        },
    )
}

#[test]
pub(super) fn certificates_come_from_providers_in_new_and_old_fields_and_from_sds() {
    let (identity, roots) = provider();
    let got = upstream(with_provider()).unwrap();
    assert_eq!(
        (got.identity.as_ref(), &got.roots),
        (Some(&identity), &roots)
    );
    assert_eq!(
        got.subject_alt_names,
        [StringMatcher::exact("spiffe://t/ns/a/sa/b")]
    );

    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
                san_type: 3,
                matcher: Some(exact("typed")),
                ..SubjectAltNameMatcher::default()
            }],
            match_subject_alt_names: vec![exact("untyped")],
            ..CertificateValidationContext::default()
        }),
        validation_context_certificate_provider_instance: deprecated("default"),
        ..CombinedCertificateValidationContext::default()
    };
    let got = upstream(CommonTlsContext {
        tls_certificate_certificate_provider_instance: deprecated("default"),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            combined.clone(),
        )),
        ..CommonTlsContext::default()
    })
    .unwrap();
    assert_eq!((got.identity, got.roots), (Some(identity), roots));
    assert_eq!(
        got.subject_alt_names,
        [StringMatcher::exact("typed")],
        "typed ones win"
    );

    let got = upstream(CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![sds("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                validation_context_certificate_provider_instance: None,
                validation_context_sds_secret_config: Some(sds("ROOTCA")),
                ..combined
            },
        )),
        ..CommonTlsContext::default()
    })
    .unwrap();
    assert_eq!(got.identity, Some(CertificateSource::Sds("default".into())));
    assert_eq!(got.roots, TrustSource::Sds("ROOTCA".into()));
}

#[track_caller]
fn upstream_refused(common: CommonTlsContext, expected: &str) {
    let errors = upstream(common).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let expected = format!("common_tls_context{expected}");
    assert!(
        errors[0].starts_with(&expected),
        "{errors:?}\n!= {expected}"
    );
}

#[test]
pub(super) fn contexts_that_weaken_tls_are_refused() {
    let check = |change: fn(&mut CommonTlsContext), expected: &str| {
        let mut common = with_provider();
        change(&mut common);
        upstream_refused(common, expected);
    };
    check(
        |c| c.validation_context_type = None,
        ": names no source of trusted roots",
    );
    check(|c| c.tls_params = Some(Default::default()), ".tls_params: ");
    check(
        |c| c.custom_handshaker = Some(Default::default()),
        ".custom_handshaker: ",
    );
    check(
        |c| c.tls_certificates = vec![TlsCertificate::default()],
        ".tls_certificates: ",
    );
    check(
        |c| c.tls_certificate_provider_instance = current("nobody"),
        ".tls_certificate_provider_instance.instance_name: \"nobody\" is not",
    );
    check(
        |c| c.tls_certificate_provider_instance = current("files"),
        ".tls_certificate_provider_instance.instance_name: \"files\" uses the",
    );
    // Its roots are not those that peers would be verified with.
    check(
        |c| c.tls_certificate_provider_instance = current("differs"),
        ".tls_certificate_provider_instance.instance_name: \"differs\" differs from \"default\"",
    );
    let mut alias = with_provider();
    alias.tls_certificate_provider_instance = current("same");
    let alias = UpstreamTlsContext {
        common_tls_context: Some(alias),
        ..UpstreamTlsContext::default()
    };
    part(|sink| tls::decode_upstream(sink, &context(), &alias)).unwrap();
    let long = UpstreamTlsContext {
        common_tls_context: Some(with_provider()),
        sni: "a".repeat(256),
        ..UpstreamTlsContext::default()
    };
    let errors = part(|sink| tls::decode_upstream(sink, &context(), &long)).unwrap_err();
    assert!(
        errors[0].starts_with("sni: is longer than 255"),
        "{errors:?}"
    );
}

#[test]
pub(super) fn validations_that_weaken_tls_are_refused() {
    let check = |change: fn(&mut CertificateValidationContext), expected: &str| {
        let mut common = with_provider();
        match &mut common.validation_context_type {
            Some(ValidationContextType::ValidationContext(context)) => change(context),
            other => panic!("{other:?}"),
        }
        upstream_refused(common, expected);
    };
    check(
        |v| v.ca_certificate_provider_instance = None,
        ": names no source of trusted roots",
    );
    check(
        |v| v.crl = Some(DataSource::default()),
        ".validation_context.crl: ",
    );
    check(
        |v| v.verify_certificate_spki = vec!["x".into()],
        ".validation_context.verify_certificate_spki: ",
    );
    check(
        |v| v.verify_certificate_hash = vec!["x".into()],
        ".validation_context.verify_certificate_hash: ",
    );
    check(
        |v| v.custom_validator_config = Some(Default::default()),
        ".validation_context.custom_validator_config: ",
    );
    check(
        |v| v.match_typed_subject_alt_names = vec![Default::default()],
        ".validation_context.match_typed_subject_alt_names[0].san_type: ",
    );
}

#[test]
pub(super) fn tls_that_cannot_be_applied_is_never_taken_for_plaintext() {
    let cluster = |config_type| {
        any(&ClusterProto {
            name: "c".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: ads(),
                ..EdsClusterConfig::default()
            }),
            transport_socket: Some(TransportSocket {
                name: "envoy.transport_sockets.tls".into(),
                config_type,
            }),
            ..ClusterProto::default()
        })
    };
    let typed = |any| Some(transport_socket::ConfigType::TypedConfig(any));
    let place = "transport_socket.typed_config: ";
    refused(Kind::Cluster, cluster(None), place);
    refused(
        Kind::Cluster,
        cluster(typed(any(&DownstreamTlsContext::default()))),
        place,
    );
    refused(
        Kind::Cluster,
        cluster(typed(any(&UpstreamTlsContext::default()))),
        "transport_socket.typed_config.common_tls_context: is missing",
    );
    let tls = any(&UpstreamTlsContext {
        common_tls_context: Some(with_provider()),
        ..UpstreamTlsContext::default()
    });
    match decode(Kind::Cluster, cluster(typed(tls))).unwrap() {
        Config::Cluster(cluster) => assert!(cluster.config.tls.is_some()),
        other => panic!("{other:?}"),
    }
}

#[test]
pub(super) fn server_tls() {
    let downstream = |change: fn(&mut DownstreamTlsContext)| {
        let mut common = with_provider();
        if let Some(ValidationContextType::ValidationContext(context)) =
            &mut common.validation_context_type
        {
            context.match_subject_alt_names.clear();
        }
        let mut proto = DownstreamTlsContext {
            common_tls_context: Some(common),
            require_client_certificate: Some(BoolValue { value: true }),
            ..DownstreamTlsContext::default()
        };
        change(&mut proto);
        part(|sink| tls::decode_downstream(sink, &context(), &proto))
    };
    let (identity, roots) = provider();
    let expected = DownstreamTls {
        identity,
        roots: Some(roots),
        require_client_certificate: true,
    };
    assert_eq!(downstream(|_| {}).unwrap(), expected);
    for (got, expected) in [
        (
            downstream(|p| p.require_sni = Some(BoolValue { value: true })),
            "require_sni: is not supported",
        ),
        (
            downstream(|p| p.ocsp_staple_policy = 2),
            "ocsp_staple_policy: ",
        ),
        (
            downstream(|p| p.common_tls_context = None),
            "common_tls_context: is missing",
        ),
        (
            downstream(|p| {
                p.common_tls_context
                    .as_mut()
                    .unwrap()
                    .validation_context_type = None;
            }),
            "require_client_certificate: needs a validation context",
        ),
        (
            downstream(|p| {
                p.common_tls_context
                    .as_mut()
                    .unwrap()
                    .tls_certificate_provider_instance = None;
            }),
            "common_tls_context: a server needs a certificate",
        ),
        (
            downstream(|p| p.common_tls_context = Some(with_provider())),
            "common_tls_context: name matchers are not supported on servers",
        ),
    ] {
        let errors = got.unwrap_err();
        assert!(errors[0].starts_with(expected), "{errors:?}");
    }
}
