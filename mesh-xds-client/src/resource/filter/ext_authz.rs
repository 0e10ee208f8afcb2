//! External authorisation (Envoy `ExtAuthz`; gRFC A92).
//!
//! Fails closed: what would check less than the configuration asks for refuses it. A service is a cluster
//! of this mesh, asked over gRPC or HTTP. Deviation from gRFC A92: `google_grpc`, which names a
//! target beside the mesh, is refused until the bootstrap can say which are allowed (gRFC A102).

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{ApiVersion, GrpcService, grpc_service::TargetSpecifier},
        extensions::filters::http::ext_authz::v3::{
            BufferSettings, CheckSettings, ExtAuthz as ExtAuthzProto, ExtAuthzPerRoute,
            ext_authz::Services, ext_authz_per_route::Override,
        },
        r#type::matcher::v3::ListStringMatcher,
    },
    google::protobuf::Any,
};
use http::{HeaderName, HeaderValue};
use mesh_core::config::{
    CheckBody, EXT_AUTHZ_TIMEOUT_DEFAULT, ExtAuthz, ExtAuthzSettings, FilterConfig, FilterOverride,
    StringMatcher,
};

use super::{FilterType, SERVERS, ext_authz_http};
use crate::resource::{
    canonical, metadata,
    path::Sink,
    report::report,
    route::{Side, matcher},
    value::{duration, fraction, is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<ExtAuthzProto>,
    is_override: is::<ExtAuthzPerRoute>,
    sides: SERVERS,
    decode,
    decode_override,
};

const UNSUPPORTED: &str = "is not supported";

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: ExtAuthzProto = parse(sink, any)?;
    let proto = &proto;
    refuse(sink, proto);
    report!(
        sink,
        proto,
        [
            bootstrap_metadata_labels_key,
            charge_cluster_response_stats,
            clear_route_cache,
            emit_client_span,
            emit_filter_state_stats,
            filter_metadata,
            stat_prefix,
        ]
    );
    let service = match &proto.services {
        Some(Services::GrpcService(service)) => {
            sink.field("grpc_service", |sink| decode_service(sink, service))
        }
        Some(Services::HttpService(service)) => {
            sink.field("http_service", |sink| ext_authz_http::decode(sink, service))
        }
        None => sink.error_at("grpc_service", "is missing"),
    };
    let allowed = proto
        .allowed_headers
        .as_ref()
        .map(|list| headers(sink, "allowed_headers", list));
    let disallowed = proto.disallowed_headers.as_ref();
    let disallowed = disallowed.map(|list| headers(sink, "disallowed_headers", list));
    let status = proto
        .status_on_error
        .as_ref()
        .map_or(0, |status| status.code);
    let status = match status {
        0 => None,
        100..=599 => u16::try_from(status).ok(),
        other => sink.error_at("status_on_error", format!("{other} is not a status")),
    };
    let enabled = proto.filter_enabled.as_ref().and_then(|share| {
        sink.field("filter_enabled", |sink| {
            report!(sink, share, [runtime_key]);
            match &share.default_value {
                Some(value) => sink.field("default_value", |sink| fraction(sink, value)),
                None => sink.error_at("default_value", "is missing"),
            }
        })
    });
    let deny_at_disable = proto.deny_at_disable.as_ref().is_some_and(|flag| {
        sink.field("deny_at_disable", |sink| report!(sink, flag, [runtime_key]));
        flag.default_value.is_some_and(|value| value.value)
    });
    let enabled_metadata = match &proto.filter_enabled_metadata {
        Some(rule) => Some(sink.field("filter_enabled_metadata", |sink| {
            metadata::matcher(sink, rule)
        })?),
        None => None,
    };
    let body = match &proto.with_request_body {
        Some(settings) => {
            Some(sink.field("with_request_body", |sink| decode_body(sink, settings))?)
        }
        None => None,
    };
    let service = service?;
    if service.http.is_some()
        && proto.allowed_headers.is_some()
        && service.allowed_headers.is_some()
    {
        let reason = "and authorization_request.allowed_headers exclude each other";
        return sink.error_at("allowed_headers", reason);
    }
    let service = ExtAuthz {
        include_peer_certificate: proto.include_peer_certificate,
        body,
        metadata_namespaces: proto.metadata_context_namespaces.clone(),
        failure_mode_allow: proto.failure_mode_allow,
        failure_mode_allow_header_add: proto.failure_mode_allow_header_add,
        status_on_error: status.unwrap_or(service.status_on_error),
        allowed_headers: match allowed {
            Some(allowed) => Some(allowed?),
            None => service.allowed_headers,
        },
        disallowed_headers: match disallowed {
            Some(disallowed) => disallowed?,
            None => Vec::new(),
        },
        enabled,
        enabled_metadata,
        deny_at_disable,
        include_tls_session: proto.include_tls_session,
        ..service
    };
    Some(FilterConfig::ExtAuthz(service.into()))
}

/// What is not done, and must not be left undone in silence.
fn refuse(sink: &mut Sink, proto: &ExtAuthzProto) {
    let is_other_version = proto.transport_api_version != ApiVersion::V3 as i32
        && proto.transport_api_version != ApiVersion::Auto as i32;
    for (field, is_set) in [
        ("transport_api_version", is_other_version),
        ("encode_raw_headers", proto.encode_raw_headers),
        ("shadow_mode", proto.shadow_mode),
        (
            "typed_metadata_context_namespaces",
            !proto.typed_metadata_context_namespaces.is_empty(),
        ),
        (
            "route_metadata_context_namespaces",
            !proto.route_metadata_context_namespaces.is_empty(),
        ),
        (
            "route_typed_metadata_context_namespaces",
            !proto.route_typed_metadata_context_namespaces.is_empty(),
        ),
        (
            "decoder_header_mutation_rules",
            proto.decoder_header_mutation_rules.is_some(),
        ),
        (
            "enable_dynamic_metadata_ingestion",
            proto
                .enable_dynamic_metadata_ingestion
                .as_ref()
                .is_some_and(|flag| !flag.value),
        ),
        (
            "max_denied_response_body_bytes",
            proto.max_denied_response_body_bytes > 0,
        ),
        (
            "enforce_response_header_limits",
            proto.enforce_response_header_limits,
        ),
    ] {
        sink.refuse(field, is_set, UNSUPPORTED);
    }
}

/// How much of a body is told.
fn decode_body(sink: &mut Sink, proto: &BufferSettings) -> Option<CheckBody> {
    if proto.max_request_bytes == 0 {
        return sink.error_at("max_request_bytes", "must be greater than 0");
    }
    Some(CheckBody {
        max_request_bytes: proto.max_request_bytes,
        allow_partial: proto.allow_partial_message,
        pack_as_bytes: proto.pack_as_bytes,
    })
}

pub(super) fn headers(
    sink: &mut Sink,
    name: &str,
    list: &ListStringMatcher,
) -> Option<Vec<StringMatcher>> {
    let matchers = sink.field(name, |sink| {
        sink.each("patterns", &list.patterns, matcher::string)
    });
    (matchers.len() == list.patterns.len()).then_some(matchers)
}

fn decode_service(sink: &mut Sink, proto: &GrpcService) -> Option<ExtAuthz> {
    report!(sink, proto, [retry_policy]);
    let envoy = match &proto.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            let reason = "is not supported: name a cluster with envoy_grpc";
            return sink.error_at("google_grpc", reason);
        }
        None => return sink.error_at("envoy_grpc", "is missing"),
    };
    let mut service = sink.field("envoy_grpc", |sink| {
        report!(
            sink,
            envoy,
            [retry_policy, max_receive_message_length, skip_envoy_headers]
        );
        if envoy.cluster_name.is_empty() {
            return sink.error_at("cluster_name", "is missing");
        }
        let is_authority = envoy.authority.parse::<http::uri::Authority>().is_ok();
        if !envoy.authority.is_empty() && !is_authority {
            return sink.error_at("authority", "is not an authority");
        }
        Some(ExtAuthz {
            authority: Some(envoy.authority.clone()).filter(|text| !text.is_empty()),
            ..ExtAuthz::new(canonical(envoy.cluster_name.clone()))
        })
    })?;
    service.metadata = sink.each("initial_metadata", &proto.initial_metadata, |sink, one| {
        let (name, value) = (&one.key, &one.value);
        match (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            (Ok(name), Ok(value)) if !value.as_bytes().contains(&b'%') => Some((name, value)),
            _ => sink.error(format!("{name:?}: {value:?} is not a plain header")),
        }
    });
    service.timeout = match duration(sink, "timeout", proto.timeout.as_ref()) {
        Some(limit) if limit.is_zero() => {
            return sink.error_at("timeout", "must be greater than 0");
        }
        Some(limit) => limit,
        None => EXT_AUTHZ_TIMEOUT_DEFAULT,
    };
    Some(service)
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<ExtAuthzPerRoute>(any) {
        return sink.error("must be an ExtAuthzPerRoute");
    }
    let proto: ExtAuthzPerRoute = parse(sink, any)?;
    match proto.r#override {
        Some(Override::Disabled(true)) => Some(FilterOverride::off()),
        Some(Override::Disabled(false)) => sink.error_at("disabled", "must be true"),
        Some(Override::CheckSettings(settings)) => {
            sink.field("check_settings", |sink| decode_settings(sink, settings))
        }
        None => sink.error("has neither disabled nor check_settings"),
    }
}

fn decode_settings(sink: &mut Sink, proto: CheckSettings) -> Option<FilterOverride> {
    report!(sink, proto, [emit_client_span]);
    if proto.service_override.is_some() {
        return sink.error_at("service_override", UNSUPPORTED);
    }
    let body = match (
        &proto.with_request_body,
        proto.disable_request_body_buffering,
    ) {
        (Some(_), true) => {
            let reason = "and disable_request_body_buffering exclude each other";
            return sink.error_at("with_request_body", reason);
        }
        (Some(settings), false) => {
            Some(Some(sink.field("with_request_body", |sink| {
                decode_body(sink, settings)
            })?))
        }
        (None, true) => Some(None),
        (None, false) => None,
    };
    let context_extensions: BTreeMap<_, _> = proto.context_extensions.into_iter().collect();
    Some(FilterOverride::with(FilterConfig::ExtAuthz(
        ExtAuthzSettings {
            service: None::<Arc<ExtAuthz>>,
            context_extensions,
            body,
        },
    )))
}
