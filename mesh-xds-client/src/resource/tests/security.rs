//! Authorisation rules and secrets.

use envoy_types::pb::envoy::{
    config::{
        core::v3::{CidrRange, DataSource, data_source::Specifier},
        rbac::v3::{
            Permission as PermissionPb, Policy, Principal as PrincipalPb, Rbac as RulesPb,
            SourcedMetadata,
            permission::{self, Rule},
            principal::{Authenticated, Identifier},
        },
        route::v3::{HeaderMatcher as HeaderPb, header_matcher::HeaderMatchSpecifier},
    },
    extensions::{
        filters::http::rbac::v3::Rbac as FilterPb,
        transport_sockets::tls::v3::{CertificateValidationContext, secret::Type},
    },
    r#type::{
        matcher::v3::{
            MetadataMatcher as MetadataProto, StringMatcher as StringProto,
            ValueMatcher as ValueProto,
            metadata_matcher::{PathSegment, path_segment::Segment},
            string_matcher::MatchPattern,
            value_matcher,
        },
        v3::Int32Range,
    },
};
use http::HeaderMap;
use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    config::{DynamicMetadata, Permission, Principal, Rbac, Secret, StringMatcher},
};

use super::{
    tls::{exact, part},
    *,
};
use crate::resource::security::rbac;

fn permission(rule: Rule) -> PermissionPb {
    PermissionPb { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> PrincipalPb {
    PrincipalPb {
        identifier: Some(identifier),
    }
}

fn rules(policy: Policy) -> Result<Option<Rbac>, Vec<String>> {
    let filter = FilterPb {
        rules: Some(RulesPb {
            policies: [("p".to_owned(), policy)].into(),
            ..RulesPb::default()
        }),
        ..FilterPb::default()
    };
    part(|sink| rbac::decode_filter(sink, &filter))
}

fn policy(rule: Rule, identifier: Identifier) -> Policy {
    Policy {
        permissions: vec![permission(rule)],
        principals: vec![principal(identifier)],
        ..Policy::default()
    }
}

fn header(name: &str) -> HeaderPb {
    HeaderPb {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderPb::default()
    }
}

#[test]
pub(super) fn authorisation_rules() {
    let set = |rules: Vec<PermissionPb>| permission::Set { rules };
    let got = rules(policy(
        Rule::AndRules(set(vec![
            permission(Rule::Header(header(":method"))),
            permission(Rule::NotRule(Box::new(permission(Rule::DestinationPort(
                80,
            ))))),
            permission(Rule::OrRules(set(vec![permission(Rule::Any(true))]))),
        ])),
        Identifier::NotId(Box::new(principal(Identifier::Authenticated(
            Authenticated {
                principal_name: Some(exact("spiffe://t/ns/a/sa/b")),
            },
        )))),
    ))
    .unwrap()
    .unwrap();
    let got = &got.policies["p"];
    let Permission::And(all) = &got.permissions[0] else {
        panic!("{got:?}")
    };
    assert!(matches!(&all[0], Permission::Header(header) if header.name == ":method"));
    assert_eq!(
        all[1],
        Permission::Not(Box::new(Permission::DestinationPort(80)))
    );
    assert_eq!(all[2], Permission::Or(vec![Permission::Any]));
    let name = Some(StringMatcher::exact("spiffe://t/ns/a/sa/b"));
    let expected = Principal::Not(Box::new(Principal::Authenticated(name)));
    assert_eq!(got.principals, [expected]);
}

/// The subject of a token is `text`.
fn claim(text: &str) -> MetadataProto {
    let key = |key: &str| PathSegment {
        segment: Some(Segment::Key(key.to_owned())),
    };
    let exact = StringProto {
        match_pattern: Some(MatchPattern::Exact(text.to_owned())),
        ..StringProto::default()
    };
    MetadataProto {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: vec![key("payload"), key("sub")],
        value: Some(ValueProto {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(exact)),
        }),
        invert: false,
    }
}

#[test]
#[expect(deprecated, reason = "older control planes write `metadata`")]
pub(super) fn rules_see_the_claims_that_a_filter_put_into_the_metadata() {
    let mut known = DynamicMetadata::default();
    let claims = serde_json::json!({"sub": "alice"});
    known.set("envoy.filters.http.jwt_authn", "payload", claims);
    let sourced = |matcher| SourcedMetadata {
        metadata_matcher: Some(matcher),
        metadata_source: 0,
    };
    let inverted = |text| MetadataProto {
        invert: true,
        ..claim(text)
    };
    // With the claims, without any.
    for (matcher, expected) in [
        (claim("alice"), [true, false]),
        (claim("bob"), [false, false]),
        (inverted("alice"), [false, true]),
        (inverted("bob"), [true, true]),
    ] {
        for (rule, identifier) in [
            (Rule::Metadata(matcher.clone()), Identifier::Any(true)),
            (
                Rule::SourcedMetadata(sourced(matcher.clone())),
                Identifier::Any(true),
            ),
            (Rule::Any(true), Identifier::Metadata(matcher.clone())),
            (
                Rule::Any(true),
                Identifier::SourcedMetadata(sourced(matcher.clone())),
            ),
        ] {
            let allow = rules(policy(rule, identifier)).unwrap().unwrap();
            let allow = Authorizer::compile([&allow]);
            let headers = HeaderMap::new();
            let allowed = [Some(&known), None].map(|metadata| {
                let request = AuthzRequest {
                    principals: &[],
                    authenticated: false,
                    method: "GET",
                    path: "/",
                    authority: "",
                    headers: &headers,
                    source: [127, 0, 0, 1].into(),
                    destination: ([127, 0, 0, 1], 80).into(),
                    server_name: "",
                    metadata,
                    details: Default::default(),
                };
                allow.decide(&request).allowed
            });
            assert_eq!(allowed, expected, "{matcher:?}");
        }
    }
}

#[test]
#[expect(
    deprecated,
    reason = "gRPC and older control planes know no other metadata"
)]
pub(super) fn rules_that_cannot_be_evaluated_refuse_the_filter() {
    let anyone = || Identifier::Any(true);
    let empty = Policy {
        principals: vec![principal(anyone())],
        ..Policy::default()
    };
    let mut conditional = policy(Rule::Any(true), anyone());
    conditional.condition = Some(Default::default());
    let range = CidrRange::default;
    let place = "rules.policies[\"p\"]";
    for (policy, expected) in [
        (empty, format!("{place}.permissions: must not be empty")),
        (conditional, format!("{place}.condition: CEL")),
        (
            policy(Rule::Any(false), anyone()),
            format!("{place}.permissions[0].any: must be true"),
        ),
        (
            policy(Rule::AndRules(permission::Set::default()), anyone()),
            format!("{place}.permissions[0].and_rules.rules: must not be empty"),
        ),
        (
            policy(Rule::DestinationIp(range()), anyone()),
            format!("{place}.permissions[0].destination_ip.address_prefix: \"\" is not"),
        ),
        (
            policy(Rule::Metadata(Default::default()), anyone()),
            format!("{place}.permissions[0].metadata.filter: is missing"),
        ),
        (
            policy(
                Rule::SourcedMetadata(SourcedMetadata {
                    metadata_matcher: Some(claim("alice")),
                    metadata_source: 1,
                }),
                anyone(),
            ),
            format!("{place}.permissions[0].sourced_metadata.metadata_source: is not supported"),
        ),
        (
            policy(
                Rule::Any(true),
                Identifier::SourcedMetadata(SourcedMetadata::default()),
            ),
            format!("{place}.principals[0].sourced_metadata.metadata_matcher: is missing"),
        ),
        (
            policy(Rule::Header(header("grpc-timeout")), anyone()),
            format!("{place}.permissions[0].header.name: \"grpc-timeout\" may not"),
        ),
        (
            policy(Rule::Header(header(":scheme")), anyone()),
            format!("{place}.permissions[0].header.name: "),
        ),
        (
            policy(Rule::Any(true), Identifier::RemoteIp(range())),
            format!("{place}.principals[0].remote_ip.address_prefix: \"\" is not"),
        ),
        (
            policy(
                Rule::DestinationPortRange(Int32Range { start: 9, end: 9 }),
                anyone(),
            ),
            format!("{place}.permissions[0].destination_port_range: [9, 9) holds"),
        ),
        (
            policy(Rule::Matcher(Default::default()), anyone()),
            format!("{place}.permissions[0].matcher: is not supported"),
        ),
        (
            policy(Rule::Any(true), Identifier::FilterState(Default::default())),
            format!("{place}.principals[0].filter_state: is not supported"),
        ),
        (
            policy(Rule::DestinationPort(70_000), anyone()),
            format!("{place}.permissions[0].destination_port: 70000"),
        ),
    ] {
        let errors = rules(policy).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].starts_with(&expected),
            "{errors:?}\n!= {expected}"
        );
    }
}

#[test]
pub(super) fn secrets() {
    let root = rcgen::generate_simple_self_signed(["root".to_owned()])
        .unwrap()
        .cert;
    let secret = |specifier: Specifier| {
        any(&SecretProto {
            name: "ROOTCA".into(),
            r#type: Some(Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(DataSource {
                    specifier: Some(specifier),
                    ..DataSource::default()
                }),
                ..CertificateValidationContext::default()
            })),
        })
    };
    let pem = format!("{}{}", root.pem(), root.pem());
    for specifier in [
        Specifier::InlineString(pem.clone()),
        Specifier::InlineBytes(pem.into_bytes()),
    ] {
        match decode(Kind::Secret, secret(specifier)).unwrap() {
            Config::Secret(secret) => match &*secret {
                Secret::TrustBundle(bundle) => {
                    assert_eq!(bundle.name.as_str(), "ROOTCA");
                    assert_eq!(bundle.roots.len(), 2);
                    assert_eq!(bundle.roots[0].as_ref(), root.der().as_ref());
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    let place = "validation_context.trusted_ca: ";
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (specifier, expected) in [
        (
            Specifier::InlineString(String::new()),
            "holds no certificate",
        ),
        (
            Specifier::InlineString(garbage.into()),
            "certificate 0 is not X.509",
        ),
        (
            Specifier::Filename("/etc/x".into()),
            "must be inline_string or inline_bytes",
        ),
    ] {
        refused(
            Kind::Secret,
            secret(specifier),
            &format!("{place}{expected}"),
        );
    }
    let none = any(&SecretProto {
        name: "x".into(),
        r#type: None,
    });
    refused(Kind::Secret, none, ": holds no secret");
}

#[test]
fn a_certificate_over_sds_has_its_key_and_nothing_that_is_not_understood() {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["leaf".to_owned()]).unwrap();
    let chain = leaf.self_signed(&key).unwrap().pem();
    let text = |pem: &str| {
        Some(DataSource {
            specifier: Some(Specifier::InlineString(pem.to_owned())),
            ..DataSource::default()
        })
    };
    let pair = |chain: &str, key: &str| TlsCertificate {
        certificate_chain: text(chain),
        private_key: text(key),
        ..TlsCertificate::default()
    };
    let secret = |certificate| {
        any(&SecretProto {
            name: "web".into(),
            r#type: Some(Type::TlsCertificate(certificate)),
        })
    };
    let key = key.serialize_pem();
    match decode(Kind::Secret, secret(pair(&chain, &key))).unwrap() {
        Config::Secret(secret) => assert_eq!(secret.name().as_str(), "web"),
        other => panic!("{other:?}"),
    }
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let encrypted = TlsCertificate {
        password: text("x"),
        ..pair(&chain, &key)
    };
    for (certificate, expected) in [
        (
            pair(&chain, &other),
            "private_key: does not fit certificate_chain",
        ),
        (
            pair(&chain, "nonsense"),
            "private_key: holds no private key in PEM",
        ),
        (pair("", &key), "certificate_chain: holds no certificate"),
        (encrypted, "password: is not supported"),
    ] {
        let expected = format!("tls_certificate.{expected}");
        refused(Kind::Secret, secret(certificate), &expected);
    }
}

#[test]
fn checks_beside_roots_are_not_dropped_in_silence() {
    use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as StringMatcherProto;
    let root = rcgen::generate_simple_self_signed(["root".to_owned()]).unwrap();
    let roots = || CertificateValidationContext {
        trusted_ca: Some(DataSource {
            specifier: Some(Specifier::InlineString(root.cert.pem())),
            ..DataSource::default()
        }),
        ..CertificateValidationContext::default()
    };
    #[expect(deprecated, reason = "older control planes send it")]
    let with_names = CertificateValidationContext {
        match_subject_alt_names: vec![StringMatcherProto::default()],
        ..roots()
    };
    let with_hash = CertificateValidationContext {
        verify_certificate_hash: vec!["00".into()],
        ..roots()
    };
    for (context, expected) in [
        (
            with_names,
            "match_typed_subject_alt_names: is not supported in a secret",
        ),
        (with_hash, "verify_certificate_hash: is not supported"),
    ] {
        let secret = any(&SecretProto {
            name: "roots".into(),
            r#type: Some(Type::ValidationContext(context)),
        });
        refused(
            Kind::Secret,
            secret,
            &format!("validation_context.{expected}"),
        );
    }
}
