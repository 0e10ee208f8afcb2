//! Rules about the token of a request: its principal, and its claims.
//!
//! A server keeps what it verified under the key [`PAYLOAD`] of the namespace [`NAMESPACE`], as Envoy
//! and Istio have it. A request without a token has neither, and matches nothing.

use mesh_core::config::{
    MetadataMatcher, Principal, Regex, StringMatcher, StringPattern, ValueMatcher,
};

use super::rules::{of_token, value};

/// Namespace of the dynamic metadata.
pub(super) const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// Key of the claims.
pub(super) const PAYLOAD: &str = "payload";

/// `[a][b]` to the claim's path.
pub(super) fn path(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("request.auth.claims{text}: write request.auth.claims[NAME]");
    let inside = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let parts = inside.ok_or_else(wrong)?.split("][");
    let parts: Vec<_> = parts.map(str::to_owned).collect();
    let is_name = |part: &String| !part.is_empty() && !part.contains(['[', ']']);
    if parts.iter().all(is_name) {
        Ok(parts)
    } else {
        Err(wrong())
    }
}

/// A claim that is a text or a list of them.
pub(super) fn claim(path: &[String], text: &str) -> Result<MetadataMatcher, String> {
    Ok(of_token(path, value(text)?))
}

/// `ISSUER/SUBJECT`, with `*` first, last or alone.
///
/// An issuer holds slashes, so that where it ends is not known: every place is tried.
pub(super) fn principal(text: &str) -> Result<Principal, String> {
    let wrong = || format!("{text:?} is not ISSUER/SUBJECT, with * first or last at most");
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*'));
    if inner.unwrap_or(text).contains('*') {
        return Err(wrong());
    }
    let (issuer, subject) = (
        |value| of_claim("iss", value),
        |value| of_claim("sub", value),
    );
    let both = |is: ValueMatcher, sub: ValueMatcher| Principal::And(vec![issuer(is), subject(sub)]);
    let slashes = |text: &str| -> Vec<(String, String)> {
        let at = text.match_indices('/');
        at.map(|(at, _)| (text[..at].to_owned(), text[at + 1..].to_owned()))
            .collect()
    };
    let mut any = Vec::new();
    match inner {
        None => {
            for (is, sub) in slashes(text) {
                any.push(both(exact(is), exact(sub)));
            }
        }
        Some("") => any.push(both(something()?, something()?)),
        Some(suffix) if text.starts_with('*') => {
            any.push(both(something()?, ends(suffix)?));
            for (is, sub) in slashes(suffix) {
                any.push(both(ends(&is)?, exact(sub)));
            }
        }
        Some(prefix) => {
            any.push(both(begins(prefix)?, something()?));
            for (is, sub) in slashes(prefix) {
                any.push(both(exact(is), begins(&sub)?));
            }
        }
    }
    if any.is_empty() {
        return Err(wrong());
    }
    Ok(Principal::Or(any))
}

fn of_claim(name: &str, value: ValueMatcher) -> Principal {
    Principal::Metadata(of_token(&[name.to_owned()], value))
}

fn exact(text: String) -> ValueMatcher {
    ValueMatcher::String(StringMatcher::exact(text))
}

/// A text that is not empty.
fn something() -> Result<ValueMatcher, String> {
    let any = StringMatcher::new(StringPattern::Regex(Regex::new(".+")?))?;
    Ok(ValueMatcher::String(any))
}

fn begins(text: &str) -> Result<ValueMatcher, String> {
    match text {
        "" => something(),
        text => Ok(ValueMatcher::String(StringMatcher::new(
            StringPattern::Prefix(text.to_owned()),
        )?)),
    }
}

fn ends(text: &str) -> Result<ValueMatcher, String> {
    match text {
        "" => something(),
        text => Ok(ValueMatcher::String(StringMatcher::new(
            StringPattern::Suffix(text.to_owned()),
        )?)),
    }
}
