//! Retry policies.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::route::v3::{
        RetryPolicy as RetryProto, retry_policy::RetryBackOff, route::Action,
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_core::config::RetryOn;

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
    assert_eq!(
        forward(config(vec![shared])).retry,
        None,
        "no condition means: never"
    );
}
