//! Retry policies.

use std::{num::NonZeroU32, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RetryPolicy as RetryProto, VirtualHost,
            retry_policy::{RetryBackOff, RetryPriority, retry_priority},
            route::Action,
        },
        extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig,
    },
    google::protobuf::{Duration as DurationProto, UInt64Value},
};
use mesh_core::config::{BodyBuffer, RetryOn};

use super::{
    route::{config, forward, host, millis, route, seconds, with_action},
    *,
};

#[test]
pub(super) fn retries() {
    let policy = |retry_on: &str| RetryProto {
        retry_on: retry_on.into(),
        ..RetryProto::default()
    };
    let with_policy = |policy: RetryProto| with_action(|a| a.retry_policy = Some(policy));
    let retry = |policy| forward(with_policy(policy)).retry;

    let got = retry(policy("unavailable, CANCELLED ,bogus,503")).unwrap();
    assert_eq!(
        got.retry_on,
        RetryOn::UNAVAILABLE | RetryOn::CANCELLED | RetryOn::RETRIABLE_STATUS_CODES
    );
    assert_eq!(
        (got.num_retries, &got.retriable_status_codes[..]),
        (1, &[503][..])
    );
    assert_eq!(got.backoff.base, Duration::from_millis(25));
    assert_eq!(got.backoff.max, Duration::from_millis(250));

    let mut many = policy("5xx");
    many.num_retries = uint32(50);
    many.per_try_timeout = seconds(2);
    many.retry_back_off = Some(RetryBackOff {
        base_interval: Some(DurationProto {
            seconds: 0,
            nanos: 1_000,
        }),
        max_interval: None,
    });
    let got = retry(many).unwrap();
    assert_eq!(got.num_retries, 4, "five attempts in all");
    assert_eq!(got.per_try_timeout, Some(Duration::from_secs(2)));
    assert_eq!(
        got.backoff.base,
        Duration::from_millis(1),
        "not below a millisecond"
    );
}

#[test]
pub(super) fn backoff_and_bounds_of_retries() {
    let policy = |retry_on: &str| RetryProto {
        retry_on: retry_on.into(),
        ..RetryProto::default()
    };
    let with_policy = |policy: RetryProto| with_action(|a| a.retry_policy = Some(policy));
    let retry = |policy| forward(with_policy(policy)).retry;
    let backoff = |base: Option<DurationProto>, max: Option<DurationProto>| {
        let mut policy = policy("unavailable");
        policy.retry_back_off = Some(RetryBackOff {
            base_interval: base,
            max_interval: max,
        });
        policy
    };
    let got = retry(backoff(millis(50), millis(60))).unwrap().backoff;
    assert_eq!(
        (got.base, got.max),
        (Duration::from_millis(50), Duration::from_millis(60))
    );
    let mut none = policy("unavailable");
    none.num_retries = uint32(0);
    let mut code = policy("retriable-status-codes");
    code.retriable_status_codes = vec![9999];
    let place = "virtual_hosts[0].routes[0].route.retry_policy";
    for (policy, expected) in [
        (none, format!("{place}.num_retries: must not be 0")),
        (code, format!("{place}.retriable_status_codes: 9999")),
        (
            backoff(None, None),
            format!("{place}.retry_back_off.base_interval: is missing"),
        ),
        (
            backoff(seconds(0), None),
            format!("{place}.retry_back_off.base_interval: must not"),
        ),
        (
            backoff(seconds(2), seconds(1)),
            format!("{place}.retry_back_off.max_interval: must not be less"),
        ),
    ] {
        refused(Kind::Route, with_policy(policy), &expected);
    }
}

#[test]
pub(super) fn the_hosts_retry_policy_is_replaced_not_merged() {
    let mut shared = host(vec![route()]);
    shared.retry_policy = Some(RetryProto {
        retry_on: "unavailable".into(),
        ..RetryProto::default()
    });
    assert!(forward(config(vec![shared.clone()])).retry.is_some());
    let Some(Action::Route(action)) = &mut shared.routes[0].action else {
        unreachable!()
    };
    action.retry_policy = Some(RetryProto::default());
    let own = forward(config(vec![shared])).retry.unwrap();
    assert!(own.retry_on.is_empty() && !own.has_effect(), "never");
}

#[test]
fn retries_leave_priorities_as_often_as_is_said() {
    let with = |name: &str, config: Option<Any>| {
        with_action(|action| {
            action.retry_policy = Some(RetryProto {
                retry_on: "5xx".into(),
                retry_priority: Some(RetryPriority {
                    name: name.into(),
                    config_type: config.map(retry_priority::ConfigType::TypedConfig),
                }),
                ..RetryProto::default()
            });
        })
    };
    let every = |update_frequency| any(&PreviousPrioritiesConfig { update_frequency });
    let name = "envoy.retry_priorities.previous_priorities";
    let policy = forward(with(name, Some(every(2)))).retry.unwrap();
    let extras = policy.extras.unwrap();
    assert_eq!(extras.previous_priorities.map(NonZeroU32::get), Some(2));
    let place = "virtual_hosts[0].routes[0].route.retry_policy.retry_priority.typed_config";
    for (config, reason) in [
        (
            Some(every(0)),
            format!("{place}.update_frequency: must be above 0"),
        ),
        (
            Some(every(-1)),
            format!("{place}.update_frequency: must be above 0"),
        ),
        (None, format!("{place}: is missing")),
    ] {
        refused(Kind::Route, with(name, config), &reason);
    }
}

#[test]
fn bodies_are_kept_as_routes_and_hosts_say() {
    let kept = |change: fn(&mut VirtualHost)| {
        let mut host = host(vec![route()]);
        change(&mut host);
        config(vec![host])
    };
    let of_host = kept(|host| host.per_request_buffer_limit_bytes = uint32(7));
    assert_eq!(forward(of_host).body_buffer, Some(BodyBuffer::AtMost(7)));
    let of_route = kept(|host| {
        host.per_request_buffer_limit_bytes = uint32(7);
        host.routes[0].request_body_buffer_limit = Some(UInt64Value { value: 9 });
    });
    assert_eq!(forward(of_route).body_buffer, Some(BodyBuffer::Exactly(9)));
    let both = kept(|host| {
        host.routes[0].per_request_buffer_limit_bytes = uint32(7);
        host.routes[0].request_body_buffer_limit = Some(UInt64Value { value: 9 });
    });
    let path = "virtual_hosts[0].routes[0].per_request_buffer_limit_bytes: and";
    refused(Kind::Route, both, path);
}
