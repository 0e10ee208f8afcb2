//! External authorisation over HTTP (Envoy `HttpService`).
//!
//! The cluster of `server_uri` is asked; what its `uri` says besides is for people, as in Envoy.

use envoy_types::pb::envoy::{
    config::core::v3::{HeaderValue as HeaderProto, HttpUri, http_uri::HttpUpstreamType},
    extensions::filters::http::ext_authz::v3::{
        AuthorizationRequest, AuthorizationResponse, HttpService,
    },
    r#type::matcher::v3::ListStringMatcher,
};
use http::{HeaderName, HeaderValue};
use mesh_core::config::{ExtAuthz, HttpCheck, StringMatcher};

use super::ext_authz::headers;
use crate::resource::{canonical, path::Sink, report::report, value::duration};

const UNSUPPORTED: &str = "is not supported";

pub(super) fn decode(sink: &mut Sink, proto: &HttpService) -> Option<ExtAuthz> {
    report!(sink, proto, [retry_policy]);
    sink.refuse(
        "path_override",
        !proto.path_override.is_empty(),
        UNSUPPORTED,
    );
    let service = match &proto.server_uri {
        Some(uri) => sink.field("server_uri", |sink| server(sink, uri)),
        None => sink.error_at("server_uri", "is missing"),
    };
    let prefix = &proto.path_prefix;
    let is_path = prefix.is_empty()
        || prefix.starts_with('/') && prefix.parse::<http::uri::PathAndQuery>().is_ok();
    sink.refuse("path_prefix", !is_path, "is not the beginning of a path");
    let mut http = HttpCheck {
        path_prefix: prefix.clone(),
        ..HttpCheck::default()
    };
    let mut allowed = None;
    if let Some(told) = &proto.authorization_request {
        sink.field("authorization_request", |sink| {
            allowed = request(sink, told, &mut http);
        });
    }
    if let Some(said) = &proto.authorization_response {
        sink.field("authorization_response", |sink| {
            response(sink, said, &mut http)
        });
    }
    Some(ExtAuthz {
        http: Some(http.into()),
        allowed_headers: allowed,
        ..service?
    })
}

fn server(sink: &mut Sink, proto: &HttpUri) -> Option<ExtAuthz> {
    let cluster = match &proto.http_upstream_type {
        Some(HttpUpstreamType::Cluster(name)) if !name.is_empty() => canonical(name.clone()),
        _ => return sink.error_at("cluster", "is missing"),
    };
    let timeout = match duration(sink, "timeout", proto.timeout.as_ref()) {
        Some(limit) if !limit.is_zero() => limit,
        _ => return sink.error_at("timeout", "must be greater than 0"),
    };
    report!(sink, proto, [uri]);
    Some(ExtAuthz {
        timeout,
        ..ExtAuthz::new(cluster)
    })
}

/// What the service is told; returns the headers.
fn request(
    sink: &mut Sink,
    proto: &AuthorizationRequest,
    http: &mut HttpCheck,
) -> Option<Vec<StringMatcher>> {
    http.headers_to_add = sink.each("headers_to_add", &proto.headers_to_add, header);
    let allowed = proto.allowed_headers.as_ref()?;
    headers(sink, "allowed_headers", allowed)
}

fn header(sink: &mut Sink, proto: &HeaderProto) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = (&proto.key, &proto.value);
    match (
        HeaderName::from_bytes(name.as_bytes()),
        HeaderValue::from_str(value),
    ) {
        (Ok(name), Ok(value)) if !value.as_bytes().contains(&b'%') => Some((name, value)),
        _ => sink.error(format!("{name:?}: {value:?} is not a plain header")),
    }
}

/// What of an answer goes where.
fn response(sink: &mut Sink, proto: &AuthorizationResponse, http: &mut HttpCheck) {
    let mut list = |name: &str, list: &Option<ListStringMatcher>| {
        list.as_ref().and_then(|list| headers(sink, name, list))
    };
    http.upstream_headers =
        list("allowed_upstream_headers", &proto.allowed_upstream_headers).unwrap_or_default();
    http.upstream_headers_to_append = list(
        "allowed_upstream_headers_to_append",
        &proto.allowed_upstream_headers_to_append,
    )
    .unwrap_or_default();
    // An empty list is none, as in Envoy.
    http.client_headers = list("allowed_client_headers", &proto.allowed_client_headers)
        .filter(|listed| !listed.is_empty());
    http.client_headers_on_success = list(
        "allowed_client_headers_on_success",
        &proto.allowed_client_headers_on_success,
    )
    .unwrap_or_default();
    http.metadata_headers = list(
        "dynamic_metadata_from_headers",
        &proto.dynamic_metadata_from_headers,
    )
    .unwrap_or_default();
}
