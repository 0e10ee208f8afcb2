//! TLS contexts of both sides.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::{ClusterDiscoveryType, EdsClusterConfig},
            core::v3::{
                DataSource, Metadata, TransportSocket, data_source::Specifier, transport_socket,
            },
            endpoint::v3::{
                Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::transport_sockets::raw_buffer::v3::RawBuffer,
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
    google::protobuf::{BoolValue, Struct, Value, value},
};
use mesh_core::config::{
    CertificateSource, DownstreamTls, SanMatcher, SanType, TlsVersion, TrustSource, UpstreamTls,
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

fn text(value: &str) -> Value {
    Value {
        kind: Some(value::Kind::StringValue(value.into())),
    }
}

fn filename(path: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::Filename(path.into())),
        ..DataSource::default()
    })
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
        [SanMatcher::exact("spiffe://t/ns/a/sa/b")]
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
        [SanMatcher {
            san_type: Some(SanType::Uri),
            ..SanMatcher::exact("typed")
        }],
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

fn typed(san_type: i32, name: &str) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type,
        matcher: Some(exact(name)),
        ..SubjectAltNameMatcher::default()
    }
}

/// A context of a server outside, which a validation context describes.
fn outside(change: impl FnOnce(&mut CertificateValidationContext)) -> UpstreamTlsContext {
    let mut validation = CertificateValidationContext::default();
    change(&mut validation);
    let validation = ValidationContextType::ValidationContext(validation);
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(validation),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    }
}

fn decode_outside(proto: &UpstreamTlsContext) -> Result<UpstreamTls, Vec<String>> {
    part(|sink| tls::decode_upstream(sink, &context(), proto))
}

fn system(validation: &mut CertificateValidationContext) {
    validation.system_root_certs = Some(Default::default());
}

#[test]
fn roots_of_outside_lose_against_a_provider_and_against_sds() {
    let path = |v: &mut CertificateValidationContext| v.trusted_ca = filename("/ca.pem");
    let got = decode_outside(&outside(path)).unwrap();
    assert_eq!(got.roots, TrustSource::File("/ca.pem".into()));
    assert_eq!((got.identity, got.min_version), (None, TlsVersion::V1_2));

    let with_ca = outside(|v| {
        path(v);
        v.ca_certificate_provider_instance = current("default");
    });
    let got = decode_outside(&with_ca).unwrap();
    assert_eq!(
        (got.roots, got.min_version),
        (provider().1, TlsVersion::V1_3)
    );

    let Some(ValidationContextType::ValidationContext(default)) = outside(system)
        .common_tls_context
        .unwrap()
        .validation_context_type
    else {
        panic!("as it was made");
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(default),
        validation_context_sds_secret_config: Some(sds("ROOTCA")),
        ..CombinedCertificateValidationContext::default()
    };
    let mut proto = outside(|_| {});
    proto
        .common_tls_context
        .as_mut()
        .unwrap()
        .validation_context_type = Some(ValidationContextType::CombinedValidationContext(combined));
    let got = decode_outside(&proto).unwrap();
    assert_eq!(got.roots, TrustSource::Sds("ROOTCA".into()));
}

#[test]
fn the_systems_roots_need_a_name_to_look_for() {
    let errors = decode_outside(&outside(system)).unwrap_err();
    assert!(errors[0].contains("vouch for everybody"), "{errors:?}");
    let by_matcher = outside(|v| {
        system(v);
        v.match_typed_subject_alt_names = vec![typed(2, "api.example")];
    });
    let got = decode_outside(&by_matcher).unwrap();
    assert_eq!(got.roots, TrustSource::System);
    let mut by_sni = outside(system);
    by_sni.auto_sni_san_validation = true;
    let errors = decode_outside(&by_sni).unwrap_err();
    assert!(
        errors[0].starts_with("auto_sni_san_validation: needs a name"),
        "{errors:?}"
    );
    by_sni.auto_host_sni = true;
    let got = decode_outside(&by_sni).unwrap();
    assert!(got.auto_host_sni && got.auto_sni_san_validation);
}

#[test]
fn names_of_every_kind_can_be_expected_but_not_of_another_kind() {
    for (number, san_type) in [
        (1, SanType::Email),
        (2, SanType::Dns),
        (3, SanType::Uri),
        (4, SanType::IpAddress),
    ] {
        let proto = outside(|v| {
            system(v);
            v.match_typed_subject_alt_names = vec![typed(number, "x")];
        });
        let expected = SanMatcher {
            san_type: Some(san_type),
            ..SanMatcher::exact("x")
        };
        let got = decode_outside(&proto).unwrap();
        assert_eq!(got.subject_alt_names, [expected]);
    }
    let other = outside(|v| {
        system(v);
        v.match_typed_subject_alt_names = vec![typed(5, "x")];
    });
    let errors = decode_outside(&other).unwrap_err();
    let place = "common_tls_context.validation_context.match_typed_subject_alt_names[0].san_type";
    assert!(errors[0].starts_with(place), "{errors:?}");
}

#[test]
fn versions_are_raised_and_never_lowered() {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
    let with = |min, max, ciphers: &[&str]| {
        let mut proto = outside(|v| v.trusted_ca = filename("/ca.pem"));
        proto.common_tls_context.as_mut().unwrap().tls_params = Some(TlsParameters {
            tls_minimum_protocol_version: min,
            tls_maximum_protocol_version: max,
            cipher_suites: ciphers.iter().map(|name| (*name).to_owned()).collect(),
            ..TlsParameters::default()
        });
        decode_outside(&proto).map(|tls| tls.min_version)
    };
    assert_eq!(with(0, 0, &[]), Ok(TlsVersion::V1_2));
    assert_eq!(with(3, 4, &[]), Ok(TlsVersion::V1_2));
    assert_eq!(with(4, 4, &[]), Ok(TlsVersion::V1_3));
    for (result, place) in [
        (with(1, 4, &[]), "tls_minimum_protocol_version"),
        (with(0, 3, &[]), "tls_maximum_protocol_version"),
        (with(0, 0, &["x"]), "cipher_suites"),
    ] {
        let errors = result.unwrap_err();
        let place = format!("common_tls_context.tls_params.{place}: ");
        assert!(errors[0].starts_with(&place), "{errors:?}");
    }
}

#[test]
fn a_certificate_for_outside_comes_from_files_and_never_from_the_resource() {
    let with = |chain, key| {
        let mut proto = outside(|v| v.trusted_ca = filename("/ca.pem"));
        proto.common_tls_context.as_mut().unwrap().tls_certificates = vec![TlsCertificate {
            certificate_chain: chain,
            private_key: key,
            ..TlsCertificate::default()
        }];
        decode_outside(&proto).map(|tls| tls.identity)
    };
    let files = CertificateSource::Files {
        chain: "/chain.pem".into(),
        key: "/key.pem".into(),
    };
    let read = with(filename("/chain.pem"), filename("/key.pem"));
    assert_eq!(read, Ok(Some(files)));
    let inline = Some(DataSource {
        specifier: Some(Specifier::InlineString("a key".into())),
        ..DataSource::default()
    });
    let errors = with(filename("/chain.pem"), inline).unwrap_err();
    let place = "common_tls_context.tls_certificates[0].private_key: must be a filename";
    assert!(errors[0].starts_with(place), "{errors:?}");
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
    check(
        |c| c.custom_handshaker = Some(Default::default()),
        ".custom_handshaker: ",
    );
    check(
        |c| {
            c.tls_certificates = vec![TlsCertificate {
                private_key: filename("/key.pem"),
                ..TlsCertificate::default()
            }];
        },
        ".tls_certificates[0].certificate_chain: must be a filename",
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
fn endpoints_have_the_socket_that_their_labels_ask_for() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
    let socket = |any| TransportSocket {
        name: "s".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any)),
    };
    let mtls = any(&UpstreamTlsContext {
        common_tls_context: Some(with_provider()),
        ..UpstreamTlsContext::default()
    });
    let labels = Struct {
        fields: [("tlsMode".to_owned(), text("istio"))].into(),
    };
    let matched = |name: &str, labels: Option<Struct>, any| TransportSocketMatch {
        name: name.into(),
        r#match: labels,
        transport_socket: Some(socket(any)),
    };
    let cluster = any(&ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            ..EdsClusterConfig::default()
        }),
        transport_socket_matches: vec![
            matched("mtls", Some(labels.clone()), mtls),
            matched("plain", None, any(&RawBuffer::default())),
        ],
        ..ClusterProto::default()
    });
    let Ok(Config::Cluster(cluster)) = decode(Kind::Cluster, cluster) else {
        panic!("it is valid");
    };
    let endpoint = |port, metadata: Option<Struct>| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address("10.0.0.1", port),
            ..Endpoint::default()
        })),
        metadata: metadata.map(|labels| Metadata {
            filter_metadata: [("envoy.transport_socket_match".to_owned(), labels)].into(),
            ..Metadata::default()
        }),
        ..LbEndpoint::default()
    };
    let endpoints = any(&EndpointsProto {
        cluster_name: "c".into(),
        endpoints: vec![LocalityLbEndpoints {
            load_balancing_weight: uint32(1),
            lb_endpoints: vec![
                endpoint(1, Some(labels.clone())),
                endpoint(2, None),
                endpoint(3, Some(labels)),
            ],
            ..LocalityLbEndpoints::default()
        }],
        ..EndpointsProto::default()
    });
    let Ok(Config::Endpoints(endpoints)) = decode(Kind::Endpoints, endpoints) else {
        panic!("they are valid");
    };
    let endpoints = &endpoints.localities[0].endpoints;
    let is_mtls = endpoints.iter().map(|endpoint| {
        let labels = endpoint.details().socket_labels.as_deref();
        cluster.config.tls_of(labels).is_some()
    });
    assert_eq!(is_mtls.collect::<Vec<_>>(), [true, false, true]);
    let labels = |index: usize| endpoints[index].details().socket_labels.as_ref().unwrap();
    assert!(
        Arc::ptr_eq(labels(0), labels(2)),
        "equal labels are held once"
    );
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
            downstream(|p| {
                p.common_tls_context = outside(|v| {
                    system(v);
                    v.ca_certificate_provider_instance = current("default");
                })
                .common_tls_context;
                let common = p.common_tls_context.as_mut().unwrap();
                common.tls_certificate_provider_instance = current("default");
            }),
            "common_tls_context.validation_context.system_root_certs: is not supported on servers",
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
