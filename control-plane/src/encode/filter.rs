//! HTTP filters, and what routes say about them.
//!
//! gRPC clients know faults alone: other filters are left out for them, which docs/config-fields.md says
//! of the fields that they come from.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{RuntimeFractionalPercent, TypedExtensionConfig},
            route::v3::{
                FilterConfig as ProtoOverride, RateLimit as ProtoRateLimit,
                rate_limit::{
                    Action,
                    action::{
                        ActionSpecifier, DestinationCluster, GenericKey, HeaderValueMatch,
                        RemoteAddress, RequestHeaders,
                    },
                },
            },
        },
        extensions::{
            common::ratelimit::v3::{
                LocalRateLimitDescriptor, XRateLimitHeadersRfcVersion, rate_limit_descriptor::Entry,
            },
            filters::{
                common::fault::v3::{
                    FaultDelay as ProtoDelay,
                    fault_delay::{FaultDelaySecifier, HeaderDelay},
                },
                http::{
                    cors::v3::{Cors, CorsPolicy as ProtoCors},
                    fault::v3::{
                        FaultAbort as ProtoAbort, HttpFault,
                        fault_abort::{ErrorType, HeaderAbort},
                    },
                    local_ratelimit::v3::LocalRateLimit as ProtoLimit,
                    stateful_session::v3::StatefulSession,
                },
                network::http_connection_manager::v3::{HttpFilter as ProtoFilter, http_filter},
            },
            rate_limit_descriptors::expr::v3::{Descriptor, descriptor::ExprSpecifier},
        },
        r#type::v3::{HttpStatus, TokenBucket as ProtoBucket},
    },
    google::protobuf::{Any, BoolValue},
};
use mesh_core::config::{
    Abort, CorsPolicy, Delay, DescriptorEntry, DescriptorSource, Fault, FilterConfig,
    FilterOverrides, Fraction, HttpFilter, LocalRateLimit, RateLimit, TokenBucket,
};

use super::{
    ClientClass, any, duration, ext_authz, jwt, matcher, rbac, route::percent, session, uint32,
};
use crate::compile::{CORS_FILTER, FAULT_FILTER, RATE_LIMIT_FILTER, SESSION_FILTER};

/// The caller's first URI subject alternative name, as CEL.
const PEER_IDENTITY: &str = "connection.uri_san_peer_certificate";

/// Filters that clients have in any case: they do nothing until a route says something about them, and
/// are optional for who does not know them.
pub(super) fn of_clients(class: ClientClass) -> Vec<ProtoFilter> {
    let mut filters = vec![(FAULT_FILTER, any(&HttpFault::default()))];
    if !class.is_grpc() {
        let neutral = ProtoLimit {
            stat_prefix: "mesh".to_owned(),
            ..ProtoLimit::default()
        };
        filters.insert(0, (CORS_FILTER, any(&Cors::default())));
        filters.push((RATE_LIMIT_FILTER, any(&neutral)));
        filters.push((SESSION_FILTER, any(&StatefulSession::default())));
    }
    let optional = filters.into_iter().map(|(name, config)| ProtoFilter {
        is_optional: true,
        ..named(name, config)
    });
    optional.collect()
}

/// A filter of a listener; `None` when the class does not know it.
pub(super) fn http_filter(filter: &HttpFilter, class: ClientClass) -> Option<ProtoFilter> {
    let config = match &filter.config {
        FilterConfig::Rbac(Some(rules)) => any(&rbac::filter(rules, class)),
        // A class that cannot verify tokens refuses requests that come with one.
        FilterConfig::JwtAuthn(tokens) if class.is_grpc() => {
            any(&rbac::filter(&jwt::refused(tokens), class))
        }
        FilterConfig::JwtAuthn(tokens) => any(&jwt::filter(tokens)),
        // What would have to be decided elsewhere is refused by the rules before.
        FilterConfig::ExtAuthz(_) if class.is_grpc() => return None,
        FilterConfig::ExtAuthz(settings) => any(&ext_authz::filter(settings.service.as_ref()?)),
        FilterConfig::Cors(None) => any(&Cors::default()),
        other if class.is_grpc() => one(other, class)?,
        other => session::listed(other).or_else(|| one(other, class))?,
    };
    Some(ProtoFilter {
        disabled: filter.disabled,
        ..named(&filter.name, config)
    })
}

pub(super) fn named(name: &str, config: Any) -> ProtoFilter {
    ProtoFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..ProtoFilter::default()
    }
}

/// What a level says, for a class.
pub(super) fn overrides(
    config: Option<&FilterOverrides>,
    class: ClientClass,
) -> HashMap<String, Any> {
    let said = config.into_iter().flat_map(|config| &config.by_name);
    let said = said.filter_map(|(name, said)| {
        let config = match &said.config {
            Some(config) if !said.disabled => overridden(config, class)?,
            _ if class.is_grpc() => return None,
            _ => any(&ProtoOverride {
                disabled: said.disabled,
                ..ProtoOverride::default()
            }),
        };
        Some((name.to_string(), config))
    });
    said.collect()
}

fn overridden(config: &FilterConfig, class: ClientClass) -> Option<Any> {
    let has_own = !class.is_grpc();
    let own = has_own.then(|| session::overridden(config)).flatten();
    own.or_else(|| one(config, class))
}

fn one(config: &FilterConfig, class: ClientClass) -> Option<Any> {
    match config {
        FilterConfig::Fault(config) => Some(any(&fault(config))),
        FilterConfig::LocalRateLimit(config) if !class.is_grpc() => {
            Some(any(&rate_limit(config, class)))
        }
        FilterConfig::Cors(Some(policy)) if !class.is_grpc() => Some(any(&cors(policy))),
        _ => None,
    }
}

fn fault(config: &Fault) -> HttpFault {
    HttpFault {
        delay: config.delay.as_ref().map(|delay| ProtoDelay {
            percentage: Some(percent(delay.percentage)),
            fault_delay_secifier: Some(match delay.delay {
                Delay::Fixed(fixed) => FaultDelaySecifier::FixedDelay(duration(fixed)),
                Delay::Header => FaultDelaySecifier::HeaderDelay(HeaderDelay {}),
            }),
        }),
        abort: config.abort.as_ref().map(|abort| ProtoAbort {
            percentage: Some(percent(abort.percentage)),
            error_type: Some(match abort.abort {
                Abort::Http(status) => ErrorType::HttpStatus(status.into()),
                Abort::Grpc(status) => ErrorType::GrpcStatus(status),
                Abort::Header => ErrorType::HeaderAbort(HeaderAbort {}),
            }),
            ..ProtoAbort::default()
        }),
        upstream_cluster: config.upstream_cluster.clone(),
        headers: config.headers.iter().map(matcher::header).collect(),
        downstream_nodes: config.downstream_nodes.clone(),
        max_active_faults: config.max_active_faults.map(uint32),
        ..HttpFault::default()
    }
}

fn cors(policy: &CorsPolicy) -> ProtoCors {
    let flag = |value: Option<bool>| value.map(|value| BoolValue { value });
    ProtoCors {
        allow_origin_string_match: policy.allow_origins.iter().map(matcher::string).collect(),
        allow_methods: policy.allow_methods.clone(),
        allow_headers: policy.allow_headers.clone(),
        expose_headers: policy.expose_headers.clone(),
        max_age: policy.max_age.clone(),
        allow_credentials: flag(policy.allow_credentials),
        allow_private_network_access: flag(policy.allow_private_network_access),
        forward_not_matching_preflights: flag(policy.forward_not_matching_preflights),
        filter_enabled: policy.enabled.map(share),
        ..ProtoCors::default()
    }
}

fn share(fraction: Fraction) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(percent(fraction)),
        runtime_key: String::new(),
    }
}

fn rate_limit(config: &LocalRateLimit, class: ClientClass) -> ProtoLimit {
    let descriptors = config.descriptors.iter().map(|held| {
        let entries = held.entries.iter().map(|(key, value)| Entry {
            key: key.to_string(),
            value: value.to_string(),
        });
        LocalRateLimitDescriptor {
            entries: entries.collect(),
            token_bucket: Some(bucket(&held.token_bucket)),
            ..LocalRateLimitDescriptor::default()
        }
    });
    let headers = match config.x_ratelimit_headers {
        true => XRateLimitHeadersRfcVersion::DraftVersion03,
        false => XRateLimitHeadersRfcVersion::Off,
    };
    ProtoLimit {
        stat_prefix: config.stat_prefix.clone(),
        status: Some(HttpStatus {
            code: config.status.into(),
        }),
        token_bucket: config.token_bucket.as_ref().map(bucket),
        filter_enabled: config.filter_enabled.map(share),
        filter_enforced: config.filter_enforced.map(share),
        descriptors: descriptors.collect(),
        rate_limits: config.rate_limits.iter().map(descriptor).collect(),
        stage: config.stage,
        always_consume_default_token_bucket: Some(BoolValue {
            value: config.always_consume_default_token_bucket,
        }),
        rate_limited_as_resource_exhausted: config.rate_limited_as_resource_exhausted,
        max_dynamic_descriptors: Some(uint32(config.max_dynamic_descriptors)),
        enable_x_ratelimit_headers: headers as i32,
        // Envoy has the field since 1.38, and takes no offence before.
        enable_retry_after_header: config.retry_after_header && class == ClientClass::Rust,
        ..ProtoLimit::default()
    }
}

fn bucket(config: &TokenBucket) -> ProtoBucket {
    ProtoBucket {
        max_tokens: config.max_tokens,
        tokens_per_fill: Some(uint32(config.tokens_per_fill)),
        fill_interval: Some(duration(config.fill_interval)),
    }
}

fn descriptor(config: &RateLimit) -> ProtoRateLimit {
    ProtoRateLimit {
        stage: (config.stage > 0).then(|| uint32(config.stage)),
        actions: config.entries.iter().map(action).collect(),
        ..ProtoRateLimit::default()
    }
}

fn action(entry: &DescriptorEntry) -> Action {
    let key = entry.key.to_string();
    let specifier = match &entry.source {
        DescriptorSource::Constant(value) => ActionSpecifier::GenericKey(GenericKey {
            descriptor_key: key,
            descriptor_value: value.to_string(),
            ..GenericKey::default()
        }),
        DescriptorSource::DestinationCluster => {
            ActionSpecifier::DestinationCluster(DestinationCluster {})
        }
        DescriptorSource::Header {
            name,
            skip_if_absent,
        } => ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: name.to_string(),
            descriptor_key: key,
            skip_if_absent: *skip_if_absent,
        }),
        DescriptorSource::RemoteAddress => ActionSpecifier::RemoteAddress(RemoteAddress {}),
        DescriptorSource::PeerIdentity => ActionSpecifier::Extension(TypedExtensionConfig {
            name: "envoy.rate_limit_descriptors.expr".to_owned(),
            typed_config: Some(any(&Descriptor {
                descriptor_key: key,
                skip_if_error: false,
                expr_specifier: Some(ExprSpecifier::Text(PEER_IDENTITY.to_owned())),
            })),
        }),
        DescriptorSource::HeaderMatch {
            matchers,
            expect,
            value,
        } => ActionSpecifier::HeaderValueMatch(HeaderValueMatch {
            descriptor_key: key,
            descriptor_value: value.to_string(),
            expect_match: Some(BoolValue { value: *expect }),
            headers: matchers.iter().map(matcher::header).collect(),
            ..HeaderValueMatch::default()
        }),
    };
    Action {
        action_specifier: Some(specifier),
    }
}
