//! What a token says, and whether it is for us and for now (RFC 7519 §4.1).

use std::{borrow::Cow, time::Duration};

use mesh_core::config::JwtProvider;
use serde_json::Value;

use super::Rejected;

/// Whether issuer, audience and time are right.
pub(super) fn check(claims: &Value, provider: &JwtProvider, now: Duration) -> Result<(), Rejected> {
    if !provider.issuer.is_empty() && claims["iss"].as_str() != Some(&provider.issuer) {
        return Err(Rejected::Issuer);
    }
    let is_for_us = |audience: &Value| {
        let audience = audience.as_str().map(bare);
        let mut ours = provider.audiences.iter();
        audience.is_some_and(|audience| ours.any(|our| bare(our) == audience))
    };
    let is_meant = match &claims["aud"] {
        Value::Array(audiences) => audiences.iter().any(is_for_us),
        audience => is_for_us(audience),
    };
    if !provider.audiences.is_empty() && !is_meant {
        return Err(Rejected::Audience);
    }
    let (now, skew) = (now.as_secs_f64(), provider.clock_skew.as_secs_f64());
    if date(claims, "exp")?.is_some_and(|expiry| expiry + skew <= now) {
        return Err(Rejected::Expired);
    }
    if date(claims, "nbf")?.is_some_and(|begin| begin - skew > now) {
        return Err(Rejected::NotYetValid);
    }
    Ok(())
}

/// Seconds since the epoch; a value of another kind is no date, and no token.
fn date(claims: &Value, name: &str) -> Result<Option<f64>, Rejected> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(seconds) if seconds >= 0.0 => Ok(Some(seconds)),
            _ => Err(Rejected::Malformed),
        },
    }
}

/// An audience without scheme and last slash, which Envoy does not compare.
fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://");
    let rest = rest.or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// The claim of this name; of nested ones the names are joined with dots.
pub(super) fn find<'c>(claims: &'c Value, name: &str) -> Option<&'c Value> {
    let whole = claims.get(name);
    whole.or_else(|| name.split('.').try_fold(claims, |at, part| at.get(part)))
}

/// A claim as a header's value; lists and objects have none.
pub(super) fn text(claim: &Value) -> Option<Cow<'_, str>> {
    match claim {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(is) => Some(Cow::Borrowed(if *is { "true" } else { "false" })),
        _ => None,
    }
}
