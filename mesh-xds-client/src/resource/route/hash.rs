//! Hash policies (gRFC A42; the others as in Envoy).
//!
//! Stage 3. One that cannot be evaluated gives no hash, and that is noted.

use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy as HashProto,
    hash_policy::{Cookie, Header, PolicySpecifier},
};
use mesh_core::config::{HashPolicy, HashSource};

use super::rewrite::regex_rewrite;
use crate::resource::{path::Sink, value::duration};

/// The channel's own number.
const CHANNEL_ID: &str = "io.grpc.channel_id";

pub(super) fn policy(sink: &mut Sink, proto: &HashProto) -> Option<HashPolicy> {
    let source = match &proto.policy_specifier {
        Some(PolicySpecifier::Header(proto)) => sink.field("header", |sink| header(sink, proto))?,
        Some(PolicySpecifier::Cookie(proto)) => sink.field("cookie", |sink| cookie(sink, proto))?,
        Some(PolicySpecifier::ConnectionProperties(proto)) if proto.source_ip => {
            HashSource::SourceIp
        }
        Some(PolicySpecifier::QueryParameter(proto)) if proto.name.is_empty() => {
            return sink.error_at("query_parameter.name", "is missing");
        }
        Some(PolicySpecifier::QueryParameter(proto)) => {
            HashSource::QueryParameter(proto.name.clone())
        }
        Some(PolicySpecifier::FilterState(proto)) if proto.key == CHANNEL_ID => HashSource::Channel,
        other => {
            let name = match other {
                Some(PolicySpecifier::FilterState(_)) => "filter_state.key",
                Some(PolicySpecifier::ConnectionProperties(_)) => "connection_properties",
                _ => "policy_specifier",
            };
            sink.ignore([(name, true)]);
            HashSource::Unknown
        }
    };
    Some(HashPolicy {
        source,
        terminal: proto.terminal,
    })
}

fn header(sink: &mut Sink, proto: &Header) -> Option<HashSource> {
    if proto.header_name.is_empty() {
        return sink.error_at("header_name", "is missing");
    }
    let rewrite = match &proto.regex_rewrite {
        Some(proto) => Some(regex_rewrite(sink, "regex_rewrite", proto)?),
        None => None,
    };
    Some(HashSource::Header {
        name: proto.header_name.to_ascii_lowercase(),
        rewrite,
    })
}

fn cookie(sink: &mut Sink, proto: &Cookie) -> Option<HashSource> {
    if proto.name.is_empty() {
        return sink.error_at("name", "is missing");
    }
    let attributes = proto.attributes.iter();
    Some(HashSource::Cookie {
        name: proto.name.clone(),
        ttl: duration(sink, "ttl", proto.ttl.as_ref()),
        path: proto.path.clone(),
        attributes: attributes
            .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
            .collect(),
    })
}
