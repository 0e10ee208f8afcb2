//! Checks by another service (Envoy's `ext_authz` filter).

use envoy_types::pb::envoy::{
    config::core::v3::{
        ApiVersion, GrpcService, HeaderValue, HttpUri,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
        http_uri::HttpUpstreamType,
    },
    extensions::filters::http::ext_authz::v3::{
        AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz as ProtoFilter,
        HttpService, ext_authz::Services,
    },
    r#type::{matcher::v3::ListStringMatcher, v3::HttpStatus},
};
use mesh_core::config::{ExtAuthz, HttpCheck, StringMatcher};

use super::{duration, matcher};

/// Encodes what a provider makes of it; the rest has no source of intent.
pub(super) fn filter(config: &ExtAuthz) -> ProtoFilter {
    let service = match &config.http {
        Some(http) => Services::HttpService(over_http(config, http)),
        None => Services::GrpcService(over_grpc(config)),
    };
    ProtoFilter {
        services: Some(service),
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: config.failure_mode_allow,
        status_on_error: Some(HttpStatus {
            code: config.status_on_error.into(),
        }),
        allowed_headers: config.allowed_headers.as_deref().map(list),
        with_request_body: config.body.map(|body| BufferSettings {
            max_request_bytes: body.max_request_bytes,
            allow_partial_message: body.allow_partial,
            pack_as_bytes: body.pack_as_bytes,
        }),
        filter_enabled_metadata: config.enabled_metadata.as_ref().map(matcher::metadata),
        // What cannot be written is refused by our servers in any case.
        validate_mutations: true,
        ..ProtoFilter::default()
    }
}

fn over_grpc(config: &ExtAuthz) -> GrpcService {
    GrpcService {
        timeout: Some(duration(config.timeout)),
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: config.cluster.to_string(),
            authority: config.authority.clone().unwrap_or_default(),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    }
}

fn over_http(config: &ExtAuthz, http: &HttpCheck) -> HttpService {
    let cluster = config.cluster.to_string();
    let host = cluster.rsplit('|').next().unwrap_or(&cluster).to_owned();
    let uri = HttpUri {
        // For people: the cluster is asked.
        uri: format!("http://{host}"),
        timeout: Some(duration(config.timeout)),
        http_upstream_type: Some(HttpUpstreamType::Cluster(cluster)),
    };
    let added = http.headers_to_add.iter().map(|(name, value)| HeaderValue {
        key: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        ..HeaderValue::default()
    });
    let some = |matchers: &[StringMatcher]| (!matchers.is_empty()).then(|| list(matchers));
    HttpService {
        server_uri: Some(uri),
        path_prefix: http.path_prefix.clone(),
        authorization_request: Some(AuthorizationRequest {
            headers_to_add: added.collect(),
            ..AuthorizationRequest::default()
        }),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: some(&http.upstream_headers),
            allowed_upstream_headers_to_append: some(&http.upstream_headers_to_append),
            allowed_client_headers: http.client_headers.as_deref().map(list),
            allowed_client_headers_on_success: some(&http.client_headers_on_success),
            dynamic_metadata_from_headers: some(&http.metadata_headers),
        }),
        ..HttpService::default()
    }
}

fn list(matchers: &[StringMatcher]) -> ListStringMatcher {
    ListStringMatcher {
        patterns: matchers.iter().map(matcher::string).collect(),
    }
}
