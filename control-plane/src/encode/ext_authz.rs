//! Checks by another service (Envoy's `ext_authz` filter).

use envoy_types::pb::envoy::{
    config::core::v3::{
        ApiVersion, GrpcService,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
    },
    extensions::filters::http::ext_authz::v3::{ExtAuthz as ProtoFilter, ext_authz::Services},
    r#type::v3::HttpStatus,
};
use mesh_core::config::ExtAuthz;

use super::{duration, matcher};

/// Encodes what a provider makes of it; the rest has no source of intent.
pub(super) fn filter(config: &ExtAuthz) -> ProtoFilter {
    let service = GrpcService {
        timeout: Some(duration(config.timeout)),
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: config.cluster.to_string(),
            authority: config.authority.clone().unwrap_or_default(),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    ProtoFilter {
        services: Some(Services::GrpcService(service)),
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: config.failure_mode_allow,
        status_on_error: Some(HttpStatus {
            code: config.status_on_error.into(),
        }),
        filter_enabled_metadata: config.enabled_metadata.as_ref().map(matcher::metadata),
        // What cannot be written is refused by our servers in any case.
        validate_mutations: true,
        ..ProtoFilter::default()
    }
}
