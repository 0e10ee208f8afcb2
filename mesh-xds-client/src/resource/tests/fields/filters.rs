//! HTTP filters.

use envoy_types::pb::envoy::{
    config::{
        common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation},
        core::v3::{
            GrpcService, HttpUri, RuntimeFractionalPercent, TypedExtensionConfig,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            http_uri::HttpUpstreamType,
        },
        route::v3::{
            RateLimit,
            rate_limit::{
                Action as LimitAction,
                action::{ActionSpecifier, GenericKey, HeaderValueMatch, RequestHeaders},
            },
        },
    },
    extensions::{
        common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry},
        filters::{
            common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
            http::{
                adaptive_concurrency::v3::{
                    AdaptiveConcurrency, GradientControllerConfig,
                    adaptive_concurrency::ConcurrencyControllerConfig,
                    gradient_controller_config::{
                        ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
                    },
                },
                buffer::v3::Buffer,
                cors::v3::{Cors, CorsPolicy},
                ext_authz::v3::{
                    AuthorizationRequest, AuthorizationResponse, BufferSettings, CheckSettings,
                    ExtAuthz, ExtAuthzPerRoute, HttpService, ext_authz::Services,
                    ext_authz_per_route::Override,
                },
                fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
                header_mutation::v3::{HeaderMutation, Mutations},
                local_ratelimit::v3::LocalRateLimit,
                stateful_session::v3::StatefulSession,
            },
        },
        http::stateful_session::cookie::v3::CookieBasedSessionState,
    },
    r#type::{
        http::v3::Cookie,
        v3::{FractionalPercent, TokenBucket},
    },
};

use super::{
    super::{route::seconds, *},
    messages::{add, api_listener, chain, filter, inbound, inline, manager, router},
    probe::Fate,
};

fn on_client(config: Any) -> Any {
    let mut manager = manager();
    manager.http_filters = vec![filter("f", config), router()];
    any(&api_listener(manager))
}

pub(super) fn on_server(config: Any) -> Any {
    let mut manager = inline();
    manager.http_filters = vec![filter("f", config), router()];
    any(&inbound(chain(manager)))
}

fn all() -> Option<FractionalPercent> {
    Some(FractionalPercent {
        numerator: 100,
        denominator: 0,
    })
}

fn bucket() -> TokenBucket {
    TokenBucket {
        max_tokens: 1,
        tokens_per_fill: None,
        fill_interval: seconds(1),
    }
}

fn limit() -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "l".into(),
        token_bucket: Some(bucket()),
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: all(),
            runtime_key: String::new(),
        }),
        ..LocalRateLimit::default()
    }
}

fn faults(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Listener;
    let delay = FaultDelay {
        percentage: all(),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(seconds(1).expect("set"))),
    };
    let abort = FaultAbort {
        percentage: all(),
        error_type: Some(ErrorType::HttpStatus(503)),
        ..FaultAbort::default()
    };
    let fault = HttpFault {
        delay: Some(delay),
        abort: Some(abort.clone()),
        ..HttpFault::default()
    };
    add(t, "", k, &fault, |m| on_client(any(&m)));
    add(t, "", k, &delay, |m| {
        on_client(any(&HttpFault {
            delay: Some(m),
            ..HttpFault::default()
        }))
    });
    add(t, "", k, &abort, |m| {
        on_client(any(&HttpFault {
            abort: Some(m),
            ..HttpFault::default()
        }))
    });
}

fn rate_limits(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Listener;
    add(t, "", k, &limit(), |m| on_client(any(&m)));
    add(t, "", k, &bucket(), |m| {
        on_client(any(&LocalRateLimit {
            token_bucket: Some(m),
            ..limit()
        }))
    });
    let descriptor = LocalRateLimitDescriptor {
        entries: vec![Entry {
            key: "k".into(),
            value: "v".into(),
        }],
        token_bucket: Some(bucket()),
        ..LocalRateLimitDescriptor::default()
    };
    add(t, "", k, &descriptor, |m| {
        on_client(any(&LocalRateLimit {
            descriptors: vec![m],
            ..limit()
        }))
    });
    let with_limit = |rate_limit: RateLimit| {
        on_client(any(&LocalRateLimit {
            rate_limits: vec![rate_limit],
            ..limit()
        }))
    };
    let with_action = |action: ActionSpecifier| RateLimit {
        actions: vec![LimitAction {
            action_specifier: Some(action),
        }],
        ..RateLimit::default()
    };
    let key = GenericKey {
        descriptor_value: "v".into(),
        ..GenericKey::default()
    };
    let base = with_action(ActionSpecifier::GenericKey(key.clone()));
    add(t, "", k, &base, with_limit);
    add(t, "", k, &base.actions[0], |m| {
        with_limit(RateLimit {
            actions: vec![m],
            ..RateLimit::default()
        })
    });
    add(t, "", k, &key, |m| {
        with_limit(with_action(ActionSpecifier::GenericKey(m)))
    });
    let header = RequestHeaders {
        header_name: "h".into(),
        descriptor_key: "k".into(),
        skip_if_absent: false,
    };
    add(t, "", k, &header, |m| {
        with_limit(with_action(ActionSpecifier::RequestHeaders(m)))
    });
    let matched = HeaderValueMatch {
        descriptor_value: "v".into(),
        ..HeaderValueMatch::default()
    };
    add(t, "", k, &matched, |m| {
        with_limit(with_action(ActionSpecifier::HeaderValueMatch(m)))
    });
}

fn concurrency(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Listener;
    let limits = ConcurrencyLimitCalculationParams {
        concurrency_update_interval: seconds(1),
        ..ConcurrencyLimitCalculationParams::default()
    };
    let min_rtt = MinimumRttCalculationParams {
        interval: seconds(60),
        ..MinimumRttCalculationParams::default()
    };
    let gradient = GradientControllerConfig {
        concurrency_limit_params: Some(limits),
        min_rtt_calc_params: Some(min_rtt),
        ..GradientControllerConfig::default()
    };
    let with = |gradient: GradientControllerConfig| AdaptiveConcurrency {
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(
            gradient,
        )),
        ..AdaptiveConcurrency::default()
    };
    add(t, "", k, &with(gradient), |m| on_client(any(&m)));
    add(t, "", k, &gradient, |m| on_client(any(&with(m))));
    add(t, "", k, &limits, |m| {
        on_client(any(&with(GradientControllerConfig {
            concurrency_limit_params: Some(m),
            ..gradient
        })))
    });
    add(t, "", k, &min_rtt, |m| {
        on_client(any(&with(GradientControllerConfig {
            min_rtt_calc_params: Some(m),
            ..gradient
        })))
    });
}

fn checks(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
    let k = Kind::Listener;
    let envoy = EnvoyGrpc {
        cluster_name: "authz".into(),
        ..EnvoyGrpc::default()
    };
    let to = |envoy: EnvoyGrpc| GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
        ..GrpcService::default()
    };
    let by = |service: GrpcService| ExtAuthz {
        services: Some(Services::GrpcService(service)),
        transport_api_version: 2,
        ..ExtAuthz::default()
    };
    add(t, "", k, &by(to(envoy.clone())), |m| on_server(any(&m)));
    add(t, "", k, &to(envoy.clone()), |m| on_server(any(&by(m))));
    add(t, "", k, &envoy.clone(), |m| on_server(any(&by(to(m)))));
    let on_route = |said: ExtAuthzPerRoute| {
        let mut manager = inline();
        let config = any(&by(to(envoy.clone())));
        manager.http_filters = vec![filter("f", config), router()];
        if let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier {
            routes
                .typed_per_filter_config
                .insert("f".into(), any(&said));
        }
        any(&inbound(chain(manager)))
    };
    let off = ExtAuthzPerRoute {
        r#override: Some(Override::Disabled(true)),
    };
    add(t, "", k, &off, on_route);
    let uri = HttpUri {
        timeout: seconds(1),
        http_upstream_type: Some(HttpUpstreamType::Cluster("authz".into())),
        ..HttpUri::default()
    };
    let http = HttpService {
        server_uri: Some(uri.clone()),
        ..HttpService::default()
    };
    let by_http = |service: HttpService| {
        on_server(any(&ExtAuthz {
            services: Some(Services::HttpService(service)),
            transport_api_version: 2,
            ..ExtAuthz::default()
        }))
    };
    add(t, "", k, &http, by_http);
    add(t, " (of checks)", k, &uri, |m| {
        by_http(HttpService {
            server_uri: Some(m),
            ..http.clone()
        })
    });
    add(t, "", k, &AuthorizationRequest::default(), |m| {
        by_http(HttpService {
            authorization_request: Some(m),
            ..http.clone()
        })
    });
    add(t, "", k, &AuthorizationResponse::default(), |m| {
        by_http(HttpService {
            authorization_response: Some(m),
            ..http.clone()
        })
    });
    let body = BufferSettings {
        max_request_bytes: 9,
        ..BufferSettings::default()
    };
    add(t, "", k, &body, |m| {
        on_server(any(&ExtAuthz {
            with_request_body: Some(m),
            ..by(to(envoy.clone()))
        }))
    });
    add(t, "", k, &CheckSettings::default(), |m| {
        on_route(ExtAuthzPerRoute {
            r#override: Some(Override::CheckSettings(m)),
        })
    });
}

pub(super) fn add_all(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Listener;
    faults(t);
    rate_limits(t);
    concurrency(t);
    super::tokens::add_all(t);
    checks(t);
    add(t, "", k, &CorsPolicy::default(), |m| {
        use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
        let mut manager = inline();
        manager.http_filters = vec![filter("f", any(&Cors::default())), router()];
        if let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier {
            let policy = any(&m);
            routes.typed_per_filter_config.insert("f".into(), policy);
        }
        any(&inbound(chain(manager)))
    });
    let remove = Mutation {
        action: Some(header_mutation::Action::Remove("x".into())),
    };
    let mutations = Mutations {
        request_mutations: vec![remove],
        ..Mutations::default()
    };
    let with = |mutations: Mutations| HeaderMutation {
        mutations: Some(mutations),
        ..HeaderMutation::default()
    };
    add(t, "", k, &with(mutations.clone()), |m| on_client(any(&m)));
    add(t, "", k, &mutations, |m| on_client(any(&with(m))));
    let buffer = Buffer {
        max_request_bytes: uint32(1),
    };
    add(t, "", k, &buffer, |m| on_server(any(&m)));
    let in_session = |state: CookieBasedSessionState| StatefulSession {
        session_state: Some(TypedExtensionConfig {
            name: "cookie".into(),
            typed_config: Some(any(&state)),
        }),
        ..StatefulSession::default()
    };
    let state = CookieBasedSessionState {
        cookie: Some(Cookie {
            name: "c".into(),
            ..Cookie::default()
        }),
    };
    add(t, "", k, &in_session(state.clone()), |m| on_client(any(&m)));
    add(t, "", k, &state, |m| on_client(any(&in_session(m))));
}
