//! What a request that is being served hands to the calls made for it: its deadline and its caller.
//!
//! A task-local, set by [`crate::server`] around the application and read by the client side, so
//! that a handler's outbound calls never outlive the request that caused them. A task that the
//! handler spawns does not inherit it: take [`RequestContext::current`] along and
//! [`RequestContext::scope`] the new task. Also the `grpc-timeout` header, which carries the
//! deadline between processes (gRPC over HTTP/2, "Timeout"). It enforces nothing itself.

use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};

use crate::identity::PeerIdentity;

/// How long the caller waits (gRPC over HTTP/2).
pub(crate) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// The request that the current task serves. Clones are cheap.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// When the caller stops waiting; `None` when it did not say.
    pub deadline: Option<Instant>,
    /// Who called; `None` without mutual TLS.
    pub peer: Option<PeerIdentity>,
}

impl RequestContext {
    /// Runs `future` with `context` as the current one.
    pub fn scope<F: Future>(context: Self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(context, future)
    }

    /// Runs `f` with `context` as the current one.
    pub fn sync_scope<T>(context: Self, f: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(context, f)
    }

    /// The request that the current task serves, `None` outside of a server.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }
}

/// When the caller of the request that the current task serves stops waiting.
#[inline]
pub fn inbound_deadline() -> Option<Instant> {
    CURRENT.try_with(|context| context.deadline).ok().flatten()
}

/// Reads a `grpc-timeout` value: at most eight digits and a unit. `None` when it is malformed.
pub fn parse_grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Writes a `grpc-timeout` value in the finest unit that needs at most eight digits. Rounds down,
/// so that nobody downstream waits longer than the caller does.
pub fn format_grpc_timeout(timeout: Duration) -> HeaderValue {
    const DIGITS: u128 = 100_000_000;
    let nanos = timeout.as_nanos();
    let units: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60 * 1_000_000_000, 'M'),
        (3600 * 1_000_000_000, 'H'),
    ];
    let (amount, unit) = units
        .iter()
        .map(|(size, unit)| (nanos / size, *unit))
        .find(|(amount, _)| *amount < DIGITS)
        .unwrap_or((DIGITS - 1, 'H'));
    HeaderValue::try_from(format!("{amount}{unit}"))
        .unwrap_or_else(|_| unreachable!("digits and a letter are a header value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_and_written() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("100000000m", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("1 S", None),
            ("1s", None),
        ] {
            assert_eq!(
                parse_grpc_timeout(&HeaderValue::from_static(text)),
                expected,
                "{text}"
            );
        }
        for (timeout, text) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(u64::MAX), "99999999H"),
        ] {
            let value = format_grpc_timeout(timeout);
            assert_eq!(value, text);
            let back = parse_grpc_timeout(&value).expect("well-formed");
            assert!(back <= timeout, "{text}");
        }
    }

    #[tokio::test]
    async fn the_context_is_seen_inside_its_scope_only() {
        assert!(RequestContext::current().is_none() && inbound_deadline().is_none());
        let deadline = Instant::now() + Duration::from_secs(1);
        let context = RequestContext {
            deadline: Some(deadline),
            peer: None,
        };
        RequestContext::scope(context.clone(), async move {
            assert_eq!(inbound_deadline(), Some(deadline));
            tokio::task::yield_now().await;
            assert!(RequestContext::current().is_some());
            let other = tokio::spawn(async { inbound_deadline() }).await;
            assert_eq!(other.expect("task"), None);
        })
        .await;
        RequestContext::sync_scope(context, || assert_eq!(inbound_deadline(), Some(deadline)));
        assert!(inbound_deadline().is_none());
    }
}
