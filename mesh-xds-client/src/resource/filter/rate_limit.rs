//! How requests get descriptors (`config.route.v3.RateLimit`).
//!
//! Deviations: an entry that cannot be made refuses the resource, because a limit without it would be
//! another one. The peer's identity is Envoy's CEL expression [`PEER_IDENTITY`], the only one.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::route::v3::{
        RateLimit as RateLimitProto,
        rate_limit::{Action, action::ActionSpecifier},
    },
    extensions::rate_limit_descriptors::expr::v3::{Descriptor, descriptor::ExprSpecifier},
};
use mesh_core::config::{DescriptorEntry, DescriptorSource, RateLimit};

use crate::resource::{
    path::Sink,
    report::report,
    route::{headers::header_name, matcher},
    value::{is, parse, uint32},
};

/// The caller's first URI subject alternative name.
pub(crate) const PEER_IDENTITY: &str = "connection.uri_san_peer_certificate";

pub(super) fn all(sink: &mut Sink, field: &str, protos: &[RateLimitProto]) -> Vec<RateLimit> {
    sink.each(field, protos, |sink, proto| {
        report!(sink, proto, [disable_key, x_ratelimit_option]);
        let unsupported = "is not supported by limits of this process";
        sink.refuse("limit", proto.limit.is_some(), unsupported);
        sink.refuse("hits_addend", proto.hits_addend.is_some(), unsupported);
        sink.refuse(
            "apply_on_stream_done",
            proto.apply_on_stream_done,
            unsupported,
        );
        sink.refuse("actions", proto.actions.is_empty(), "must not be empty");
        let entries = sink.each("actions", &proto.actions, entry);
        Some(RateLimit {
            stage: uint32(proto.stage.as_ref()).unwrap_or(0),
            entries,
        })
    })
}

fn entry(sink: &mut Sink, action: &Action) -> Option<DescriptorEntry> {
    let made = |key: &str, default: &str, source| {
        let key = if key.is_empty() { default } else { key };
        Some(DescriptorEntry {
            key: Arc::from(key),
            source,
        })
    };
    match &action.action_specifier {
        Some(ActionSpecifier::DestinationCluster(_)) => made(
            "",
            "destination_cluster",
            DescriptorSource::DestinationCluster,
        ),
        Some(ActionSpecifier::RemoteAddress(_)) => {
            made("", "remote_address", DescriptorSource::RemoteAddress)
        }
        Some(ActionSpecifier::RequestHeaders(proto)) => sink.field("request_headers", |sink| {
            sink.refuse(
                "descriptor_key",
                proto.descriptor_key.is_empty(),
                "is missing",
            );
            let source = DescriptorSource::Header {
                name: header_name(sink, "header_name", &proto.header_name)?,
                skip_if_absent: proto.skip_if_absent,
            };
            made(&proto.descriptor_key, "", source)
        }),
        Some(ActionSpecifier::GenericKey(proto)) => sink.field("generic_key", |sink| {
            let value = proto.descriptor_value.as_str();
            sink.refuse("descriptor_value", value.is_empty(), "is missing");
            sink.refuse(
                "default_value",
                !proto.default_value.is_empty(),
                "is not supported",
            );
            let source = DescriptorSource::Constant(value.into());
            made(&proto.descriptor_key, "generic_key", source)
        }),
        Some(ActionSpecifier::HeaderValueMatch(proto)) => {
            sink.field("header_value_match", |sink| {
                sink.refuse(
                    "default_value",
                    !proto.default_value.is_empty(),
                    "is not supported",
                );
                let source = DescriptorSource::HeaderMatch {
                    matchers: sink.each("headers", &proto.headers, matcher::header),
                    expect: proto.expect_match.as_ref().is_none_or(|value| value.value),
                    value: proto.descriptor_value.as_str().into(),
                };
                made(&proto.descriptor_key, "header_match", source)
            })
        }
        Some(ActionSpecifier::Extension(extension)) => sink.field("extension", |sink| {
            let any = extension.typed_config.as_ref();
            let Some(any) = any.filter(|any| is::<Descriptor>(any)) else {
                return sink.error_at("typed_config", "is not supported");
            };
            let proto: Descriptor = sink.field("typed_config", |sink| parse(sink, any))?;
            match &proto.expr_specifier {
                Some(ExprSpecifier::Text(text)) if text == PEER_IDENTITY => {
                    made(&proto.descriptor_key, "", DescriptorSource::PeerIdentity)
                }
                _ => sink.error_at(
                    "typed_config",
                    format!("only the expression {PEER_IDENTITY} is supported"),
                ),
            }
        }),
        Some(_) => sink.error("an entry of this kind is not supported"),
        None => sink.error("holds no action"),
    }
}
