//! Sessions that stick to an endpoint, adaptive limits, bodies and headers: filters of which a route
//! says something in a message of its own.

use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{
                HeaderMutation as ProtoMutation, header_mutation::Action,
            },
            core::v3::{RuntimeFeatureFlag, TypedExtensionConfig},
        },
        extensions::{
            filters::http::{
                adaptive_concurrency::v3::{
                    AdaptiveConcurrency as ProtoConcurrency, GradientControllerConfig,
                    adaptive_concurrency::ConcurrencyControllerConfig,
                    gradient_controller_config::{
                        ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
                    },
                },
                buffer::v3::{Buffer, BufferPerRoute, buffer_per_route},
                header_mutation::v3::{
                    HeaderMutation as ProtoHeaders, HeaderMutationPerRoute, Mutations,
                },
                stateful_session::v3::{
                    StatefulSession as ProtoSession, StatefulSessionPerRoute,
                    stateful_session_per_route::Override,
                },
            },
            http::stateful_session::{
                cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
            },
        },
        r#type::{
            http::v3::{Cookie, CookieAttribute},
            v3::{HttpStatus, Percent},
        },
    },
    google::protobuf::{Any, BoolValue},
};
use mesh_core::config::{
    AdaptiveConcurrency, FilterConfig, Fraction, HeaderChanges, HeaderMutation,
    SessionCookieConfig, SessionState, StatefulSession,
};

use super::{any, duration, headers, uint32};

/// The filter as a listener lists it.
pub(super) fn listed(config: &FilterConfig) -> Option<Any> {
    Some(match config {
        FilterConfig::StatefulSession(config) => any(&session(config.as_deref())),
        FilterConfig::AdaptiveConcurrency(config) => any(&concurrency(config)),
        FilterConfig::HeaderMutation(config) => any(&ProtoHeaders {
            mutations: Some(mutations(config)),
            most_specific_header_mutations_wins: config.most_specific_wins,
        }),
        FilterConfig::Buffer { max_request_bytes } => any(&buffer(*max_request_bytes)),
        _ => return None,
    })
}

/// What a route says of it.
pub(super) fn overridden(config: &FilterConfig) -> Option<Any> {
    Some(match config {
        FilterConfig::StatefulSession(Some(config)) => any(&StatefulSessionPerRoute {
            r#override: Some(Override::StatefulSession(session(Some(config)))),
        }),
        FilterConfig::HeaderMutation(config) => any(&HeaderMutationPerRoute {
            mutations: Some(mutations(config)),
        }),
        FilterConfig::Buffer { max_request_bytes } => any(&BufferPerRoute {
            r#override: Some(buffer_per_route::Override::Buffer(buffer(
                *max_request_bytes,
            ))),
        }),
        // A route cannot say anything of an adaptive limit.
        _ => return None,
    })
}

fn session(config: Option<&StatefulSession>) -> ProtoSession {
    let Some(config) = config else {
        return ProtoSession::default();
    };
    let (name, state) = match &config.state {
        SessionState::Cookie(config) => (
            "envoy.http.stateful_session.cookie",
            any(&CookieBasedSessionState {
                cookie: Some(cookie(config)),
            }),
        ),
        SessionState::Header(name) => (
            "envoy.http.stateful_session.header",
            any(&HeaderBasedSessionState {
                name: name.to_string(),
            }),
        ),
    };
    ProtoSession {
        session_state: Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(state),
        }),
        strict: config.strict,
        ..ProtoSession::default()
    }
}

fn cookie(config: &SessionCookieConfig) -> Cookie {
    let attributes = config.attributes.iter();
    Cookie {
        name: config.name.clone(),
        ttl: config.ttl.map(duration),
        path: config.path.clone(),
        attributes: attributes
            .map(|(name, value)| CookieAttribute {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

fn concurrency(config: &AdaptiveConcurrency) -> ProtoConcurrency {
    let percent = |fraction: Fraction| Percent {
        value: f64::from(fraction.per_million()) / 10_000.0,
    };
    let controller = GradientControllerConfig {
        sample_aggregate_percentile: Some(percent(config.sample_aggregate_percentile)),
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            max_concurrency_limit: Some(uint32(config.max_concurrency_limit)),
            concurrency_update_interval: Some(duration(config.concurrency_update_interval)),
            ..ConcurrencyLimitCalculationParams::default()
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams {
            interval: Some(duration(config.min_rtt_interval)),
            request_count: Some(uint32(config.min_rtt_request_count)),
            jitter: Some(percent(config.min_rtt_jitter)),
            min_concurrency: Some(uint32(config.min_concurrency)),
            buffer: Some(percent(config.min_rtt_buffer)),
            ..MinimumRttCalculationParams::default()
        }),
    };
    ProtoConcurrency {
        enabled: Some(RuntimeFeatureFlag {
            default_value: Some(BoolValue {
                value: config.enabled,
            }),
            // Envoy wants a key, under which nothing is set.
            runtime_key: "mesh.adaptive_concurrency".to_owned(),
        }),
        concurrency_limit_exceeded_status: Some(HttpStatus {
            code: config.status.into(),
        }),
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(
            controller,
        )),
    }
}

fn mutations(config: &HeaderMutation) -> Mutations {
    Mutations {
        request_mutations: config.request.iter().flat_map(mutation).collect(),
        response_mutations: config.response.iter().flat_map(mutation).collect(),
        ..Mutations::default()
    }
}

/// What is removed first, as everywhere.
fn mutation(changes: &HeaderChanges) -> Vec<ProtoMutation> {
    let removed = headers::remove(changes).into_iter().map(Action::Remove);
    let added = headers::add(changes).into_iter().map(Action::Append);
    let actions = removed.chain(added).map(|action| ProtoMutation {
        action: Some(action),
    });
    actions.collect()
}

fn buffer(max_request_bytes: u32) -> Buffer {
    Buffer {
        max_request_bytes: Some(uint32(max_request_bytes)),
    }
}
