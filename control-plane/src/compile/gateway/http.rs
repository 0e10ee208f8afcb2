//! Rules of an HTTPRoute.

use mesh_core::config::{Backoff, RETRIES_MAX, RetryOn, RetryPolicy};

use super::{
    super::{route_action::default_retries, route_match::Wrong},
    Rule, matches,
};
use crate::{
    model::gateway::{HttpRule, RetrySpec, Timeouts},
    value,
};

pub(super) fn rule(declared: &HttpRule) -> Rule<'_> {
    let none = Timeouts::default();
    let timeouts = declared.timeouts.as_ref().unwrap_or(&none);
    let timeout = limit(timeouts.request.as_deref(), "timeouts.request");
    let of_attempt = limit(
        timeouts.backend_request.as_deref(),
        "timeouts.backendRequest",
    );
    let of_attempt = match (&timeout, of_attempt) {
        (Ok(Some(all)), Ok(Some(one))) if one > *all => {
            let message = "it is longer than timeouts.request".to_owned();
            Err(("timeouts.backendRequest".to_owned(), message))
        }
        (_, of_attempt) => of_attempt,
    };
    let retry = retry(declared.retry.as_ref()).and_then(|retry| {
        Ok(match of_attempt? {
            Some(limit) => Some(RetryPolicy {
                per_try_timeout: Some(limit),
                ..retry.unwrap_or_else(default_retries)
            }),
            None => retry,
        })
    });
    Rule {
        name: declared.name.as_deref(),
        matches: matches::http(&declared.matches),
        filters: &declared.filters,
        backends: &declared.backend_refs,
        timeout,
        retry,
        session: declared.session_persistence.as_ref(),
    }
}

/// A time limit, of which zero is none.
fn limit(text: Option<&str>, field: &str) -> Result<Option<std::time::Duration>, Wrong> {
    match text.map(value::duration) {
        Some(Ok(limit)) => Ok(Some(limit).filter(|limit| !limit.is_zero())),
        Some(Err(message)) => Err((field.to_owned(), message)),
        None => Ok(None),
    }
}

/// `None` where nothing is said.
fn retry(declared: Option<&RetrySpec>) -> Result<Option<RetryPolicy>, Wrong> {
    let Some(declared) = declared else {
        return Ok(None);
    };
    let mut policy = default_retries();
    // A retry stanza asks for failures of the connection, too (GEP-1731).
    policy.retry_on = RetryOn::CONNECT_FAILURE | RetryOn::RESET | RetryOn::REFUSED_STREAM;
    for (index, code) in declared.codes.iter().enumerate() {
        if !(400..600).contains(code) {
            let message = format!("{code} is not 400 to 599");
            return Err((format!("retry.codes[{index}]"), message));
        }
        policy.retry_on |= RetryOn::RETRIABLE_STATUS_CODES;
        policy.retriable_status_codes.push(*code);
    }
    if let Some(attempts) = declared.attempts {
        if !(1..=RETRIES_MAX).contains(&attempts) {
            let message = format!("{attempts} is not 1 to {RETRIES_MAX}");
            return Err(("retry.attempts".to_owned(), message));
        }
        policy.num_retries = attempts;
    }
    if let Some(base) = limit(declared.backoff.as_deref(), "retry.backoff")? {
        policy.backoff = Backoff {
            base,
            max: base.saturating_mul(10),
        };
    }
    Ok(Some(policy))
}
