//! What a caller asks for its own request, in headers, as Envoy's router reads them.
//!
//! Between stages 8 and 9, for clients that read them. Headers are removed when they are read, also those
//! that say nothing of use. Numbers are read as Envoy does: blanks around them and a plus sign are
//! fine, everything else is as if the header were not there. Several values are one, joined with `,`.
//!
//! Times are read before the route changes the request's headers and conditions of retries after
//! that: a route can so add `x-envoy-max-retries`, but no timeout.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName};

use crate::config::{
    HeaderMatcher, HeaderPredicate, RETRIES_MAX, RetryOn, RetryPolicy, RouterOptions,
    StrictHeaders, joined,
};

const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const STREAM_DURATION: HeaderName = HeaderName::from_static("x-envoy-upstream-stream-duration-ms");
const ALT_RESPONSE: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response");
const HEDGE: HeaderName = HeaderName::from_static("x-envoy-hedge-on-per-try-timeout");
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");

/// Tells a server how long its answer is waited for, in milliseconds.
pub const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// How long a caller wants its request to take, where it says so. A zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerTimes {
    /// Over all attempts, instead of the route's `timeout`.
    pub timeout: Option<Duration>,
    /// Of each attempt, instead of the retry policy's `per_try_timeout`.
    pub per_try_timeout: Option<Duration>,
    /// Of the stream, instead of the route's `max_stream_duration`.
    pub stream_duration: Option<Duration>,
    /// Whether an attempt that takes too long goes on beside the next one.
    pub hedge_on_per_try_timeout: Option<bool>,
    /// Whether 204 is the answer when the time is over.
    pub answers_no_content: bool,
}

impl CallerTimes {
    /// Takes the times out of a request's headers.
    pub fn take(headers: &mut HeaderMap, router: &RouterOptions) -> Self {
        let hedge = take(headers, HEDGE);
        let expected = joined(headers, EXPECTED_TIMEOUT.as_str());
        let timeout = match expected.filter(|_| router.respect_expected_rq_timeout) {
            // Another hop has read the caller's own words before.
            Some(expected) => millis(&expected),
            None => take(headers, TIMEOUT).and_then(|text| millis(&text)),
        };
        Self {
            timeout,
            per_try_timeout: take(headers, PER_TRY_TIMEOUT).and_then(|text| millis(&text)),
            stream_duration: take(headers, STREAM_DURATION).and_then(|text| millis(&text)),
            hedge_on_per_try_timeout: hedge.and_then(|text| text.parse().ok()),
            answers_no_content: take(headers, ALT_RESPONSE).is_some(),
        }
    }
}

/// The first of the `strict` headers that is there and cannot be read, with its value (Envoy
/// `Router.strict_check_headers`).
pub fn unreadable(headers: &HeaderMap, strict: StrictHeaders) -> Option<(&'static str, String)> {
    strict.names().find_map(|name| {
        let value = joined(headers, name)?;
        let is_readable = match name {
            "x-envoy-retry-on" => RetryOn::are_of_http(&value),
            "x-envoy-retry-grpc-on" => RetryOn::are_of_grpc(&value),
            _ => number(&value).is_some(),
        };
        (!is_readable).then(|| (name, value.into_owned()))
    })
}

/// The retry policy of a request: the `declared` one of its route with what its headers, of which it is
/// taken out, add to it.
pub fn take_retry_policy(
    headers: &mut HeaderMap,
    declared: Option<&RetryPolicy>,
) -> Option<RetryPolicy> {
    let on = take(headers, RETRY_ON);
    let grpc_on = take(headers, RETRY_GRPC_ON);
    let max_retries = take(headers, MAX_RETRIES);
    let codes = take(headers, STATUS_CODES);
    let names = take(headers, HEADER_NAMES);
    if declared.is_none() && on.is_none() && grpc_on.is_none() {
        return None;
    }
    let mut policy = declared.cloned().unwrap_or_default();
    policy.retry_on |= RetryOn::of_http(on.as_deref().unwrap_or_default())
        | RetryOn::of_grpc(grpc_on.as_deref().unwrap_or_default());
    if let Some(asked) = max_retries.and_then(|text| number(&text)) {
        policy.num_retries = u32::try_from(asked).map_or(RETRIES_MAX, |n| n.min(RETRIES_MAX));
    }
    let codes = codes.as_deref().unwrap_or_default();
    policy
        .retriable_status_codes
        .extend(items(codes).filter_map(|code| u16::try_from(number(code)?).ok()));
    let names = items(names.as_deref().unwrap_or_default());
    let matchers: Vec<_> = names
        .map(|name| HeaderMatcher::new(name, HeaderPredicate::Present(true)))
        .collect();
    if !matchers.is_empty() {
        let extras = Arc::make_mut(policy.extras.get_or_insert_default());
        extras.retriable_headers.extend(matchers);
    }
    Some(policy)
}

/// Takes all values of a header out.
fn take(headers: &mut HeaderMap, name: HeaderName) -> Option<String> {
    let text = joined(headers, name.as_str())?.into_owned();
    headers.remove(name);
    Some(text)
}

/// The items of a list that are not empty.
fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn millis(text: &str) -> Option<Duration> {
    number(text).map(Duration::from_millis)
}

/// A number as `absl::SimpleAtoi` reads it.
fn number(text: &str) -> Option<u64> {
    let text = text.trim_ascii();
    let digits = text.strip_prefix('+').unwrap_or(text);
    // A second sign is none of a number.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = of.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    fn times(of: &[(&'static str, &'static str)], router: RouterOptions) -> CallerTimes {
        let mut headers = headers(of);
        let times = CallerTimes::take(&mut headers, &router);
        headers.remove(EXPECTED_TIMEOUT);
        headers.remove("x-envoy-upstream-rq-timeout-ms");
        assert!(headers.is_empty(), "{headers:?}");
        times
    }

    #[test]
    fn numbers_are_read_as_envoy_reads_them_or_not_at_all() {
        for (text, expected) in [
            ("0", Some(0)),
            ("15", Some(15)),
            (" +15\t", Some(15)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("-0", None),
            ("+", None),
            ("++1", None),
            ("", None),
            ("1.5", None),
            ("0x10", None),
            ("1,2", None),
            ("1s", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn times_are_taken_out_whether_they_say_something_or_not() {
        let read = |of: &[(&'static str, &'static str)]| times(of, RouterOptions::default());
        let all = read(&[
            ("x-envoy-upstream-rq-timeout-ms", "1500"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "0"),
            ("x-envoy-upstream-stream-duration-ms", "7"),
            ("x-envoy-upstream-rq-timeout-alt-response", ""),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
        ]);
        let expected = CallerTimes {
            timeout: Some(Duration::from_millis(1_500)),
            per_try_timeout: Some(Duration::ZERO),
            stream_duration: Some(Duration::from_millis(7)),
            hedge_on_per_try_timeout: Some(true),
            answers_no_content: true,
        };
        assert_eq!(all, expected);
        let nonsense = read(&[
            ("x-envoy-upstream-rq-timeout-ms", "soon"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "-1"),
            ("x-envoy-upstream-stream-duration-ms", ""),
            ("x-envoy-hedge-on-per-try-timeout", "True"),
        ]);
        assert_eq!(nonsense, CallerTimes::default());
    }

    #[test]
    fn a_timeout_that_another_hop_promised_counts_where_the_router_says_so() {
        let both = [
            ("x-envoy-expected-rq-timeout-ms", "20"),
            ("x-envoy-upstream-rq-timeout-ms", "10"),
        ];
        let respects = RouterOptions {
            respect_expected_rq_timeout: true,
            ..RouterOptions::default()
        };
        let timeout = |router| times(&both, router).timeout;
        assert_eq!(timeout(respects), Some(Duration::from_millis(20)));
        let ignores = RouterOptions::default();
        assert_eq!(timeout(ignores), Some(Duration::from_millis(10)));
    }

    fn policy(
        declared: Option<&RetryPolicy>,
        of: &[(&'static str, &'static str)],
    ) -> Option<RetryPolicy> {
        let mut headers = headers(of);
        let policy = take_retry_policy(&mut headers, declared);
        assert!(headers.is_empty(), "{headers:?}");
        policy
    }

    #[test]
    fn conditions_of_http_and_grpc_have_each_their_header() {
        let read = |of: &[(&'static str, &'static str)]| policy(None, of).map(|p| p.retry_on);
        let on = |list: &'static str| read(&[("x-envoy-retry-on", list)]);
        let grpc_on = |list: &'static str| read(&[("x-envoy-retry-grpc-on", list)]);
        let none = Some(RetryOn::default());
        assert_eq!(
            on("5xx, reset"),
            Some(RetryOn::SERVER_ERROR | RetryOn::RESET)
        );
        assert_eq!(on("unavailable"), none);
        assert_eq!(grpc_on("unavailable"), Some(RetryOn::UNAVAILABLE));
        assert_eq!(grpc_on("5xx"), none);
        assert_eq!(on("5XX,,nonsense"), none, "case counts");
        assert_eq!(
            read(&[("x-envoy-max-retries", "3")]),
            None,
            "nothing to retry on"
        );
    }

    #[test]
    fn what_the_caller_says_is_added_to_the_routes_policy() {
        let declared = RetryPolicy {
            retry_on: RetryOn::RESET,
            retriable_status_codes: vec![429],
            num_retries: 2,
            ..RetryPolicy::default()
        };
        let of = &[
            (
                "x-envoy-retry-on",
                "retriable-status-codes,retriable-headers",
            ),
            ("x-envoy-max-retries", "3"),
            ("x-envoy-retriable-status-codes", "418, many,70000, 419"),
            ("x-envoy-retriable-header-names", "x-Again, ,x-more"),
        ];
        let merged = policy(Some(&declared), of).unwrap();
        let asked = RetryOn::RETRIABLE_STATUS_CODES | RetryOn::RETRIABLE_HEADERS;
        assert_eq!(merged.retry_on, RetryOn::RESET | asked);
        assert_eq!(merged.num_retries, 3);
        assert_eq!(merged.retriable_status_codes, [429, 418, 419]);
        let names = merged.extras.unwrap().retriable_headers.clone();
        let names: Vec<_> = names.iter().map(|matcher| matcher.name.as_str()).collect();
        assert_eq!(names, ["x-again", "x-more"]);
        let retries = |of| policy(Some(&declared), of).unwrap().num_retries;
        assert_eq!(retries(&[("x-envoy-max-retries", "0")]), 0);
        assert_eq!(retries(&[("x-envoy-max-retries", "many")]), 2);
        assert_eq!(
            retries(&[("x-envoy-max-retries", "99999999999")]),
            RETRIES_MAX
        );
        // Once, unless somebody says how often.
        assert_eq!(
            policy(None, &[("x-envoy-retry-on", "5xx")])
                .unwrap()
                .num_retries,
            1
        );
    }
}
