//! What a route does beside choosing a cluster.

use std::{num::NonZeroU32, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use http::HeaderName;
use mesh_core::config::{
    AppendAction, Backoff, DirectResponse, Fraction, HeaderChanges, HeaderMutations, HeaderValue,
    HostRewrite, PathRewrite, RETRIES_MAX, Redirect, RedirectPath, RegexRewrite, RetryExtras,
    RetryOn, RetryPolicy, ValueTemplate,
};

use super::route_match::Wrong;
use crate::{
    model::{
        HeaderOperations, HeadersSpec, HttpDirectResponse, HttpRedirect, HttpRewrite, Percent,
        Retries,
    },
    value,
};

/// Istio's retries for routes that say nothing.
const DEFAULT_RETRIES: u32 = 2;
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// After so many attempts Istio has those that follow leave the priorities of these.
const REMOTE_AFTER: Option<NonZeroU32> = NonZeroU32::new(2);

/// What Istio does for routes that say nothing.
pub(super) fn default_retries() -> RetryPolicy {
    RetryPolicy {
        retry_on: RetryOn::parse(DEFAULT_RETRY_ON).0,
        num_retries: DEFAULT_RETRIES,
        ..RetryPolicy::default()
    }
}

pub(super) fn compile_retries(
    declared: &Retries,
    wrong: &mut impl FnMut(&str, String),
) -> Option<RetryPolicy> {
    let mut policy = default_retries();
    policy.num_retries = declared.attempts.min(RETRIES_MAX);
    if declared.attempts > RETRIES_MAX {
        let message = format!(
            "{} is more than {RETRIES_MAX}, which is used",
            declared.attempts
        );
        wrong("retries.attempts", message);
    }
    if let Some(list) = &declared.retry_on {
        let (mut retry_on, rest) = RetryOn::parse(list);
        for token in rest {
            // Istio takes HTTP codes in the same list.
            match token.parse::<u16>() {
                Ok(code) if (100..600).contains(&code) => {
                    retry_on |= RetryOn::RETRIABLE_STATUS_CODES;
                    policy.retriable_status_codes.push(code);
                }
                _ => wrong(
                    "retries.retryOn",
                    format!("{token:?} is not a known condition"),
                ),
            }
        }
        policy.retry_on = retry_on;
    }
    match declared.per_try_timeout.as_deref().map(value::duration) {
        Some(Ok(limit)) => policy.per_try_timeout = Some(limit).filter(|limit| !limit.is_zero()),
        Some(Err(message)) => wrong("retries.perTryTimeout", message),
        None => {}
    }
    match declared.backoff.as_deref().map(value::duration) {
        Some(Ok(base)) if !base.is_zero() => {
            policy.backoff = Backoff {
                base,
                max: base * 10,
            }
        }
        Some(Ok(_)) => wrong("retries.backoff", "it must be more than zero".into()),
        Some(Err(message)) => wrong("retries.backoff", message),
        None => {}
    }
    if declared.retry_remote_localities {
        policy.extras = Some(Arc::new(RetryExtras {
            previous_priorities: REMOTE_AFTER,
            host_selection_attempts: 1,
            ..RetryExtras::default()
        }));
    }
    (policy.num_retries > 0).then_some(policy)
}

/// A redirect of requests to a service's port.
pub(super) fn redirect(declared: &HttpRedirect, dialled: u16) -> Result<Redirect, Wrong> {
    let status = declared.redirect_code.unwrap_or(301);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let message = format!("{status} is not 301, 302, 303, 307 or 308");
        return Err(("redirectCode".to_owned(), message));
    }
    let is_default = match declared.scheme.as_deref() {
        Some("https") => dialled == 443,
        _ => dialled == 80,
    };
    let port = match (declared.port, declared.derive_port.as_deref()) {
        (Some(_), Some(_)) => {
            let message = "port and derivePort exclude each other".to_owned();
            return Err(("derivePort".to_owned(), message));
        }
        (port, None | Some("FROM_PROTOCOL_DEFAULT")) => port,
        (None, Some("FROM_REQUEST_PORT")) => Some(dialled).filter(|_| !is_default),
        (None, Some(other)) => {
            let message = format!("{other:?} is not FROM_REQUEST_PORT or FROM_PROTOCOL_DEFAULT");
            return Err(("derivePort".to_owned(), message));
        }
    };
    Ok(Redirect {
        scheme: declared.scheme.clone(),
        host: declared.authority.clone(),
        port,
        path: declared.uri.clone().map(RedirectPath::Full),
        status,
        strip_query: false,
    })
}

pub(super) fn direct_response(declared: &HttpDirectResponse) -> Result<DirectResponse, Wrong> {
    let status = declared.status;
    if !(200..600).contains(&status) {
        let message = format!("{status} is not 200 to 599");
        return Err(("status".to_owned(), message));
    }
    let body = declared.body.clone().unwrap_or_default();
    let body = match (body.string, body.bytes) {
        (Some(_), Some(_)) => {
            let message = "string and bytes exclude each other".to_owned();
            return Err(("body.bytes".to_owned(), message));
        }
        (string, None) => string.unwrap_or_default().into(),
        (None, Some(bytes)) => BASE64
            .decode(bytes)
            .map_err(|error| ("body.bytes".to_owned(), error.to_string()))?
            .into(),
    };
    Ok(DirectResponse { status, body })
}

pub(super) fn rewrite(
    declared: &HttpRewrite,
) -> Result<(Option<PathRewrite>, Option<HostRewrite>), Wrong> {
    let path = match (&declared.uri, &declared.uri_regex_rewrite) {
        (Some(_), Some(_)) => {
            let message = "uri and uriRegexRewrite exclude each other".to_owned();
            return Err(("uriRegexRewrite".to_owned(), message));
        }
        (Some(uri), None) => Some(PathRewrite::Prefix(uri.clone())),
        (None, Some(regex)) => {
            let rewrite = RegexRewrite::new(&regex.r#match, &regex.rewrite)
                .map_err(|message| ("uriRegexRewrite".to_owned(), message))?;
            Some(PathRewrite::Regex(rewrite))
        }
        (None, None) => None,
    };
    Ok((path, declared.authority.clone().map(HostRewrite::Literal)))
}

pub(super) fn headers(declared: &HeadersSpec) -> Result<HeaderMutations, Wrong> {
    let changes = |side: &str, declared: &Option<HeaderOperations>| match declared {
        Some(operations) => operations_of(operations, side == "response")
            .map_err(|(field, message)| (format!("{side}.{field}"), message)),
        None => Ok(HeaderChanges::default()),
    };
    Ok(HeaderMutations {
        request: changes("request", &declared.request)?,
        response: changes("response", &declared.response)?,
    })
}

fn operations_of(declared: &HeaderOperations, is_response: bool) -> Result<HeaderChanges, Wrong> {
    let name = |field: &str, name: &str| match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if name != http::header::HOST => Ok(name),
        _ => {
            let message =
                format!("{name:?} cannot be changed: for the authority there is rewrite.authority");
            Err((field.to_owned(), message))
        }
    };
    let mut changes = HeaderChanges::default();
    for (index, header) in declared.remove.iter().enumerate() {
        changes
            .remove
            .push(name(&format!("remove[{index}]"), header)?);
    }
    let lists = [
        ("set", &declared.set, AppendAction::Overwrite),
        ("add", &declared.add, AppendAction::Append),
    ];
    for (list, values, action) in lists {
        for (header, value) in values {
            let field = format!("{list}.{header}");
            changes.add.push(HeaderValue {
                name: name(&field, header)?,
                value: ValueTemplate::new(value, is_response).map_err(|m| (field, m))?,
                action,
                keep_empty: false,
            });
        }
    }
    Ok(changes)
}

/// `None` is everything.
pub(super) fn share(declared: Option<&Percent>) -> Result<Option<Fraction>, String> {
    let Some(percent) = declared else {
        return Ok(None);
    };
    if !(0.0..=100.0).contains(&percent.value) {
        return Err(format!("{} is not 0 to 100", percent.value));
    }
    Ok(Fraction::new(
        (percent.value * 10_000.0).round() as u32,
        1_000_000,
    ))
}
