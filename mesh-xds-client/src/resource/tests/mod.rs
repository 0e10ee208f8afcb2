//! What decode accepts and refuses, per type, with the path of each error.

mod balance;
mod cluster;
mod conditions;
mod connection;
mod discovery;
mod endpoint;
mod extras;
mod fields;
mod fuzz;
mod health_check;
mod hedge;
mod http_limits;
mod listener;
mod load;
mod original_dst;
mod rbac;
mod retry;
mod route;
mod security;
mod tls;
mod unsupported;
mod zone_aware;

use envoy_types::pb::{
    envoy::config::core::v3::{
        Address, AggregatedConfigSource, ConfigSource, SocketAddress, address,
        config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
    },
    envoy::config::endpoint::v3::ClusterLoadAssignment as EndpointsProto,
    envoy::service::discovery::v3::Resource,
    google::protobuf::{Any, UInt32Value},
};
use prost::{Message, Name};

use super::*;
use crate::bootstrap::MeshCsr;

fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

fn context() -> DecodeContext {
    let unsupported = CertificateProvider::Unsupported {
        plugin_name: "other".into(),
    };
    let differs = CertificateProvider::MeshCsr(MeshCsr {
        trust_bundle: "OTHER".into(),
        ..MeshCsr::default()
    });
    DecodeContext::new(
        &[
            (
                "default".to_owned(),
                CertificateProvider::MeshCsr(MeshCsr::default()),
            ),
            ("files".to_owned(), unsupported),
            (
                "same".to_owned(),
                CertificateProvider::MeshCsr(MeshCsr::default()),
            ),
            ("differs".to_owned(), differs),
        ]
        .into(),
    )
}

fn decode_any(kind: Kind, resources: Vec<Any>) -> Decoded {
    fuzz::record(kind, &resources);
    decode_all(kind, raw(kind, resources), &context(), |_| true)
}

fn raw(kind: Kind, resources: Vec<Any>) -> Vec<Raw> {
    let resources = resources.into_iter();
    resources
        .map(|any| Raw::from_any(kind, any, &"1".into()))
        .collect()
}

/// The config, or the errors as `path: reason`.
fn decode(kind: Kind, resource: Any) -> Result<Config, Vec<String>> {
    let mut decoded = decode_any(kind, vec![resource]);
    match decoded.rejected.pop() {
        None => Ok(decoded.accepted.remove(0).config),
        Some(rejected) => {
            assert!(decoded.accepted.is_empty());
            let text = |error: &ConfigError| format!("{}: {}", error.path, error.reason);
            Err(rejected.errors.iter().map(text).collect())
        }
    }
}

/// Checks that decode refuses with exactly one error, which begins with `expected`.
#[track_caller]
fn refused(kind: Kind, resource: Any, expected: &str) {
    match decode(kind, resource) {
        Err(errors) if errors.len() == 1 && errors[0].starts_with(expected) => {}
        other => panic!("{other:?}\nis not the one error {expected:?}"),
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn address(text: &str, port: u32) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: text.into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    })
}

fn endpoints_named(name: &str) -> Any {
    any(&EndpointsProto {
        cluster_name: name.into(),
        ..EndpointsProto::default()
    })
}

#[test]
fn resources_come_bare_or_wrapped() {
    let wrapped = |name: &str, resource: Option<Any>| {
        any(&Resource {
            name: name.into(),
            resource,
            ..Resource::default()
        })
    };
    let bare = decode(Kind::Endpoints, endpoints_named("a")).unwrap();
    for name in ["a", ""] {
        let inner = Some(endpoints_named("a"));
        assert_eq!(decode(Kind::Endpoints, wrapped(name, inner)).unwrap(), bare);
    }
    let other = wrapped("b", Some(endpoints_named("a")));
    refused(Kind::Endpoints, other, ": is wrapped under another name");
    refused(
        Kind::Endpoints,
        wrapped("", None),
        ": the wrapper holds no resource",
    );
}

#[test]
fn what_cannot_be_read_is_refused_and_named_where_possible() {
    let decoded = decode_any(
        Kind::Endpoints,
        vec![
            endpoints_named("good"),
            Any {
                type_url: Kind::Endpoints.type_url().into(),
                value: vec![0xff],
            },
            endpoints_named(""),
            any(&ClusterProto::default()),
        ],
    );
    assert_eq!(
        decoded.accepted.len(),
        1,
        "the good one is not held back by the others"
    );
    let text: Vec<_> = decoded
        .rejected
        .iter()
        .map(|r| r.combined(Kind::Endpoints))
        .collect();
    for (error, (place, reason)) in text.iter().zip([
        ("endpoints at resources[1]", "cannot be parsed"),
        ("endpoints at resources[2]", "has no name"),
        ("endpoints at resources[3]", "type_url is"),
    ]) {
        assert_eq!(error.resource, place);
        assert!(error.reason.starts_with(reason), "{error}");
    }
}

#[test]
fn a_name_that_comes_twice_is_refused_and_the_others_are_not() {
    let decoded = decode_any(
        Kind::Endpoints,
        vec![
            endpoints_named("a"),
            endpoints_named("b"),
            endpoints_named("a"),
        ],
    );
    assert_eq!(decoded.accepted.len(), 1);
    assert_eq!(decoded.accepted[0].name, "b");
    assert_eq!(decoded.rejected.len(), 1);
    assert_eq!(decoded.rejected[0].name.as_deref(), Some("a"));
}

#[test]
fn resources_that_nobody_asked_for_are_skipped_even_when_bad() {
    let bad = any(&ClusterProto {
        name: "other".into(),
        ..ClusterProto::default()
    });
    let decoded = decode_all(
        Kind::Cluster,
        raw(Kind::Cluster, vec![bad]),
        &context(),
        |name| name == "mine",
    );
    assert!(decoded.accepted.is_empty() && decoded.rejected.is_empty());
}
