//! The messages inside of routes.

use envoy_types::pb::envoy::{
    config::{
        core::v3::{HeaderValue, HeaderValueOption},
        route::v3::{
            DirectResponseAction, HedgePolicy, InternalRedirectPolicy, QueryParameterMatcher,
            RedirectAction, RetryPolicy, Route, RouteAction, RouteMatch,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeader, RetryBackOff, RetryPriority, retry_priority,
            },
            route::Action,
            route_action::{
                HashPolicy, MaxStreamDuration, RequestMirrorPolicy,
                hash_policy::{Cookie, Header, PolicySpecifier},
            },
        },
    },
    extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig,
    r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
};

use super::{
    super::{route::seconds, *},
    messages::{action, add, host, path, route, route_config},
    probe::Fate,
};

fn with_action(action: Action) -> Any {
    any(&route_config(host(Route {
        r#match: Some(path()),
        action: Some(action),
        ..Route::default()
    })))
}

fn with_route(change: impl FnOnce(&mut RouteAction)) -> Any {
    let mut action = action();
    change(&mut action);
    with_action(Action::Route(action))
}

fn with_hash(specifier: PolicySpecifier) -> Any {
    with_route(|action| {
        action.hash_policy = vec![HashPolicy {
            policy_specifier: Some(specifier),
            ..HashPolicy::default()
        }];
    })
}

fn header() -> Header {
    Header {
        header_name: "h".into(),
        ..Header::default()
    }
}

pub(super) fn add_all(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Route;
    let parameter = QueryParameterMatcher {
        name: "q".into(),
        ..QueryParameterMatcher::default()
    };
    add(t, "", k, &parameter, |m| {
        any(&route_config(host(Route {
            r#match: Some(RouteMatch {
                query_parameters: vec![m],
                ..path()
            }),
            ..route(action())
        })))
    });
    add(t, "", k, &RedirectAction::default(), |m| {
        with_action(Action::Redirect(m))
    });
    let direct = DirectResponseAction {
        status: 200,
        ..DirectResponseAction::default()
    };
    add(t, "", k, &direct, |m| {
        with_action(Action::DirectResponse(m))
    });
    let value = HeaderValueOption {
        header: Some(HeaderValue {
            key: "h".into(),
            value: "v".into(),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    };
    add(t, "", k, &value, |m| {
        any(&route_config(host(Route {
            request_headers_to_add: vec![m],
            ..route(action())
        })))
    });
    add(t, "", k, &HedgePolicy::default(), |m| {
        with_route(|action| action.hedge_policy = Some(m))
    });
    add(t, "", k, &InternalRedirectPolicy::default(), |m| {
        with_route(|action| action.internal_redirect_policy = Some(m))
    });
    add(t, "", k, &MaxStreamDuration::default(), |m| {
        with_route(|action| action.max_stream_duration = Some(m))
    });
    let mirror = RequestMirrorPolicy {
        cluster: "c".into(),
        ..RequestMirrorPolicy::default()
    };
    add(t, "", k, &mirror, |m| {
        with_route(|action| action.request_mirror_policies = vec![m])
    });
    let by_header = HashPolicy {
        policy_specifier: Some(PolicySpecifier::Header(header())),
        ..HashPolicy::default()
    };
    add(t, "", k, &by_header, |m| {
        with_route(|action| action.hash_policy = vec![m])
    });
    add(t, "", k, &header(), |m| {
        with_hash(PolicySpecifier::Header(m))
    });
    let cookie = Cookie {
        name: "c".into(),
        ..Cookie::default()
    };
    add(t, "", k, &cookie, |m| with_hash(PolicySpecifier::Cookie(m)));
    let rewrite = RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: "a".into(),
            ..RegexMatcher::default()
        }),
        ..RegexMatchAndSubstitute::default()
    };
    add(t, "", k, &rewrite, |m| {
        with_route(|action| action.regex_rewrite = Some(m))
    });
    let with_retry = |policy: RetryPolicy| {
        with_route(|action| {
            action.retry_policy = Some(RetryPolicy {
                retry_on: "5xx".into(),
                ..policy
            });
        })
    };
    let pause = RetryBackOff {
        base_interval: seconds(1),
        ..RetryBackOff::default()
    };
    add(t, "", k, &pause, |m| {
        with_retry(RetryPolicy {
            retry_back_off: Some(m),
            ..RetryPolicy::default()
        })
    });
    let leaving = PreviousPrioritiesConfig {
        update_frequency: 2,
    };
    add(t, "", k, &leaving, |m| {
        with_retry(RetryPolicy {
            retry_priority: Some(RetryPriority {
                name: "previous_priorities".into(),
                config_type: Some(retry_priority::ConfigType::TypedConfig(any(&m))),
            }),
            ..RetryPolicy::default()
        })
    });
    let asked = RateLimitedRetryBackOff {
        reset_headers: vec![ResetHeader {
            name: "retry-after".into(),
            ..ResetHeader::default()
        }],
        ..RateLimitedRetryBackOff::default()
    };
    add(t, "", k, &asked, |m| {
        with_retry(RetryPolicy {
            rate_limited_retry_back_off: Some(m),
            ..RetryPolicy::default()
        })
    });
}
