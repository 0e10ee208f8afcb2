//! The pause that a server asks for before the next attempt.
//!
//! gRPC servers say it in `grpc-retry-pushback-ms` (gRFC A6), others in the headers that
//! `rate_limited_retry_back_off` names (Envoy).

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{Attempted, backoff};
use crate::{
    config::{RateLimitedBackoff, ResetHeader, RetryPolicy},
    rng::Rng,
};

/// How a gRPC server holds retries back (gRFC A6).
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// When the next attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// After this, by the policy's own backoff.
    Backoff(Duration),
    /// After this, which the server asked for. Backoff begins anew after it.
    Asked(Duration),
    /// Never: the server does not want another attempt.
    Never,
}

/// The pause before retry `retry`, counted from 1 since the last that a server asked for.
/// `unix_time` is the time since 1970.
pub fn pause(
    policy: &RetryPolicy,
    retry: u32,
    attempted: &Attempted<'_>,
    unix_time: Duration,
    rng: &mut impl Rng,
) -> Pause {
    if let Some(headers) = attempted.headers {
        if attempted.is_grpc
            && let Some(asked) = headers.get(PUSHBACK)
        {
            // Negative or malformed: no retry.
            let millis = asked.to_str().ok().and_then(|text| text.parse().ok());
            return millis.map_or(Pause::Never, |ms| Pause::Asked(Duration::from_millis(ms)));
        }
        let limit = policy.extras.as_ref().and_then(|e| e.rate_limited.as_ref());
        if let Some(asked) = limit.and_then(|limit| rate_limited(limit, headers, unix_time)) {
            // As in Envoy: never earlier, and callers do not come back all at once.
            return Pause::Asked(asked.mul_f64(1.0 + 0.5 * rng.unit()));
        }
    }
    Pause::Backoff(backoff(&policy.backoff, retry, rng))
}

/// What the first header says that is there, can be read and does not ask for too much.
fn rate_limited(
    limit: &RateLimitedBackoff,
    headers: &HeaderMap,
    unix_time: Duration,
) -> Option<Duration> {
    let mut asked = limit.reset_headers.iter().filter_map(|header| {
        let ResetHeader { name, is_unix_time } = header;
        let seconds = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        let at = Duration::from_secs(seconds);
        match is_unix_time {
            true => at.checked_sub(unix_time),
            false => Some(at),
        }
    });
    asked.find(|pause| *pause <= limit.max_interval)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;
    use crate::{config::RetryExtras, outcome::Outcome, rng::SplitMix64};

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn check(is_grpc: bool, of: &[(&'static str, &'static str)]) -> Pause {
        let reset = |name, is_unix_time| ResetHeader {
            name: HeaderName::from_static(name),
            is_unix_time,
        };
        let policy = RetryPolicy {
            extras: Some(Arc::new(RetryExtras {
                rate_limited: Some(RateLimitedBackoff {
                    reset_headers: vec![reset("retry-after", false), reset("x-reset", true)],
                    max_interval: Duration::from_secs(300),
                }),
                ..RetryExtras::default()
            })),
            ..RetryPolicy::default()
        };
        let headers = of.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        let headers = headers.collect();
        let attempted = Attempted {
            outcome: Outcome::Http(429),
            headers: Some(&headers),
            is_grpc,
        };
        pause(&policy, 1, &attempted, NOW, &mut SplitMix64::new(7))
    }

    #[test]
    fn a_rate_limit_is_waited_out_with_jitter_above_it() {
        let check_asked = |of: &[(&'static str, &'static str)], seconds: u64| match check(false, of)
        {
            Pause::Asked(pause) => {
                let asked = Duration::from_secs(seconds);
                assert!(
                    pause >= asked && pause <= asked * 3 / 2,
                    "{of:?}: {pause:?}"
                );
            }
            other => panic!("{of:?}: {other:?}"),
        };
        check_asked(&[("retry-after", "7")], 7);
        check_asked(&[("x-reset", "1700000030")], 30);
        // The first that can be read and is not too long counts.
        check_asked(&[("retry-after", "soon"), ("x-reset", "1700000030")], 30);
        check_asked(&[("retry-after", "301"), ("x-reset", "1700000030")], 30);
        for of in [
            &[("retry-after", "301")][..],
            &[("retry-after", "-1")],
            &[("x-reset", "1699999999")],
            &[],
        ] {
            assert!(matches!(check(false, of), Pause::Backoff(_)), "{of:?}");
        }
    }

    #[test]
    fn a_grpc_server_pushes_back_exactly_or_for_ever() {
        let name = "grpc-retry-pushback-ms";
        let exactly = |ms| Pause::Asked(Duration::from_millis(ms));
        assert_eq!(check(true, &[(name, "0")]), exactly(0));
        assert_eq!(check(true, &[(name, "1500")]), exactly(1500));
        for never in ["-1", "soon", ""] {
            assert_eq!(check(true, &[(name, never)]), Pause::Never, "{never:?}");
        }
        assert!(matches!(check(false, &[(name, "-1")]), Pause::Backoff(_)));
    }
}
