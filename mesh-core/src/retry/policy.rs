//! Which attempts a retry policy asks to make again (Envoy `retry_on`, gRFC A6, A44).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};

use crate::{
    config::{HeaderMatcher, RetryOn, RetryPolicy, joined},
    outcome::{Outcome, grpc_status_of},
};

/// An attempt that ended, as far as a retry policy looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Attempted<'a> {
    /// What became of it.
    pub outcome: Outcome,
    /// Headers of its response; `None` when it has none.
    pub headers: Option<&'a HeaderMap>,
    /// Whether the call is gRPC.
    pub is_grpc: bool,
}

impl Attempted<'_> {
    /// Without a response, or with one whose headers say nothing.
    pub fn without_headers(outcome: Outcome) -> Self {
        Self {
            outcome,
            headers: None,
            is_grpc: false,
        }
    }
}

/// Set by an Envoy that refused the request for want of capacity.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Set by an Envoy whose rate limit refused the request.
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Whether a request with these headers may be tried again at all: one that lacks what
/// `retriable_request_headers` ask for may not.
pub fn may_retry(policy: &RetryPolicy, request: &HeaderMap) -> bool {
    let Some(extras) = &policy.extras else {
        return true;
    };
    let asked = &extras.retriable_request_headers;
    asked.is_empty() || any_matches(asked, request)
}

/// Whether `policy` wants another attempt after this one.
pub fn is_retriable(policy: &RetryPolicy, attempted: &Attempted<'_>) -> bool {
    if let Some(headers) = attempted.headers {
        // As in Envoy: an overloaded hop is not asked again, and a rate limit only if the policy
        // says so, whatever else it says.
        if headers.contains_key(OVERLOADED) {
            return false;
        }
        if headers.contains_key(RATE_LIMITED) {
            return policy.retry_on.intersects(RetryOn::ENVOY_RATE_LIMITED);
        }
        if is_retriable_by_header(policy, headers) {
            return true;
        }
    }
    let conditions = match attempted.outcome {
        Outcome::Http(status) => {
            return is_retriable_status(policy, status)
                || attempted.is_grpc
                    && policy.retry_on.intersects(on_grpc(grpc_status_of(status)));
        }
        Outcome::Grpc(code) => on_grpc(code),
        // Envoy: what overflows here would overflow again.
        Outcome::Overflow => return false,
        // gRPC users ask for UNAVAILABLE where Envoy users ask for connect-failure.
        Outcome::ConnectFailure => {
            NO_RESPONSE
                | RetryOn::CONNECT_FAILURE
                | RetryOn::RESET_BEFORE_REQUEST
                | RetryOn::UNAVAILABLE
        }
        Outcome::Refused => {
            NO_RESPONSE
                | RetryOn::REFUSED_STREAM
                | RetryOn::RESET_BEFORE_REQUEST
                | RetryOn::UNAVAILABLE
        }
        Outcome::Reset => NO_RESPONSE | RetryOn::UNAVAILABLE,
        Outcome::PerTryTimeout => NO_RESPONSE | RetryOn::DEADLINE_EXCEEDED,
    };
    policy.retry_on.intersects(conditions)
}

/// Envoy: "does not respond at all (disconnect, reset, read timeout)".
const NO_RESPONSE: RetryOn = RetryOn::SERVER_ERROR
    .or(RetryOn::GATEWAY_ERROR)
    .or(RetryOn::RESET);

/// The condition of a gRPC status.
fn on_grpc(code: u32) -> RetryOn {
    match code {
        1 => RetryOn::CANCELLED,
        4 => RetryOn::DEADLINE_EXCEEDED,
        8 => RetryOn::RESOURCE_EXHAUSTED,
        13 => RetryOn::INTERNAL,
        14 => RetryOn::UNAVAILABLE,
        _ => RetryOn::default(),
    }
}

fn is_retriable_by_header(policy: &RetryPolicy, headers: &HeaderMap) -> bool {
    policy.retry_on.intersects(RetryOn::RETRIABLE_HEADERS)
        && policy
            .extras
            .as_ref()
            .is_some_and(|extras| any_matches(&extras.retriable_headers, headers))
}

fn any_matches(matchers: &[HeaderMatcher], headers: &HeaderMap) -> bool {
    matchers.iter().any(|matcher| {
        let value: Option<Cow<'_, str>> = joined(headers, &matcher.name);
        matcher.is_match(value.as_deref())
    })
}

fn is_retriable_status(policy: &RetryPolicy, status: u16) -> bool {
    let on = |conditions| policy.retry_on.intersects(conditions);
    (status >= 500 && on(RetryOn::SERVER_ERROR))
        || (matches!(status, 502..=504) && on(RetryOn::GATEWAY_ERROR))
        || (status == 409 && on(RetryOn::RETRIABLE_4XX))
        || (on(RetryOn::RETRIABLE_STATUS_CODES) && policy.retriable_status_codes.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_takes_its_outcomes_and_no_others() {
        use Outcome::{ConnectFailure, Grpc, Http, PerTryTimeout, Refused, Reset};
        let all = [
            Http(200),
            Http(404),
            Http(409),
            Http(429),
            Http(500),
            Http(503),
            Grpc(0),
            Grpc(5),
            Grpc(1),
            Grpc(4),
            Grpc(8),
            Grpc(13),
            Grpc(14),
            ConnectFailure,
            Refused,
            Reset,
            PerTryTimeout,
        ];
        let check = |list: &str, expected: &[Outcome]| {
            let (retry_on, unknown) = RetryOn::parse(list);
            assert!(unknown.is_empty(), "{unknown:?}");
            let policy = RetryPolicy {
                retry_on,
                retriable_status_codes: vec![429],
                ..RetryPolicy::default()
            };
            let taken: Vec<_> = all
                .into_iter()
                .filter(|o| is_retriable(&policy, &Attempted::without_headers(*o)))
                .collect();
            assert_eq!(taken, expected, "{list}");
        };
        check("", &[]);
        check(
            "5xx",
            &[
                Http(500),
                Http(503),
                ConnectFailure,
                Refused,
                Reset,
                PerTryTimeout,
            ],
        );
        check(
            "gateway-error",
            &[Http(503), ConnectFailure, Refused, Reset, PerTryTimeout],
        );
        check("connect-failure", &[ConnectFailure]);
        check("refused-stream", &[Refused]);
        check("reset", &[ConnectFailure, Refused, Reset, PerTryTimeout]);
        check("reset-before-request", &[ConnectFailure, Refused]);
        check("http3-post-connect-failure", &[]);
        check("retriable-4xx", &[Http(409)]);
        check("retriable-status-codes", &[Http(429)]);
        check("cancelled, Internal", &[Grpc(1), Grpc(13)]);
        check("deadline-exceeded", &[Grpc(4), PerTryTimeout]);
        check("resource-exhausted", &[Grpc(8)]);
        check("unavailable", &[Grpc(14), ConnectFailure, Refused, Reset]);
        assert_eq!(RetryOn::parse("5xx,503, nonsense").1, ["503", "nonsense"]);
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = of.iter().map(|(name, value)| {
            let value = http::HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        pairs.collect()
    }

    #[test]
    fn headers_of_the_response_ask_for_a_retry_or_forbid_it() {
        let present =
            |name| HeaderMatcher::new(name, crate::config::HeaderPredicate::Present(true));
        let extras = crate::config::RetryExtras {
            retriable_headers: vec![present("x-again"), present("x-once-more")],
            ..Default::default()
        };
        let check = |list: &str, status, of: &[(&'static str, &'static str)], expected| {
            let policy = RetryPolicy {
                retry_on: RetryOn::parse(list).0,
                extras: Some(std::sync::Arc::new(extras.clone())),
                ..RetryPolicy::default()
            };
            let headers = headers(of);
            let attempted = Attempted {
                outcome: Outcome::Http(status),
                headers: Some(&headers),
                is_grpc: false,
            };
            assert_eq!(
                is_retriable(&policy, &attempted),
                expected,
                "{list} {status} {of:?}"
            );
        };
        check("retriable-headers", 200, &[("x-once-more", "")], true);
        check("retriable-headers", 200, &[("x-other", "")], false);
        check("5xx", 200, &[("x-again", "")], false);
        // A limit is not asked again, whatever else the policy says, unless it says so.
        let limited = [("x-envoy-ratelimited", "true"), ("x-again", "")];
        check("5xx,retriable-headers", 503, &limited, false);
        check("envoy-ratelimited", 429, &limited, true);
        let overloaded = [("x-envoy-overloaded", "true")];
        check("5xx,envoy-ratelimited", 503, &overloaded, false);
    }

    #[test]
    fn a_request_without_the_headers_that_are_asked_for_is_not_tried_again() {
        let matcher =
            |name| HeaderMatcher::new(name, crate::config::HeaderPredicate::Present(true));
        let mut policy = RetryPolicy::default();
        assert!(may_retry(&policy, &headers(&[])));
        policy.extras = Some(std::sync::Arc::new(crate::config::RetryExtras {
            retriable_request_headers: vec![matcher("x-idempotent"), matcher("x-safe")],
            ..Default::default()
        }));
        assert!(!may_retry(&policy, &headers(&[("x-other", "")])));
        assert!(may_retry(&policy, &headers(&[("x-safe", "1")])));
    }

    #[test]
    fn a_grpc_call_takes_an_http_status_for_what_grpc_makes_of_it() {
        let policy = RetryPolicy {
            retry_on: RetryOn::UNAVAILABLE,
            ..RetryPolicy::default()
        };
        for (status, is_grpc, expected) in [
            (503, true, true),
            (429, true, true),
            (500, true, false),
            (503, false, false),
        ] {
            let attempted = Attempted {
                outcome: Outcome::Http(status),
                headers: None,
                is_grpc,
            };
            assert_eq!(is_retriable(&policy, &attempted), expected, "{status}");
        }
    }
}
