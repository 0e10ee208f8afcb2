//! External authorisation over HTTP (Envoy `HttpService`): what a check is, and what an answer says.
//!
//! A check is the request, without its body unless that is asked for, to a path of its own; 200 lets it
//! pass, another status refuses with this answer, and 5xx is no verdict. Deviation from Envoy: an answer
//! never changes `host`, or the headers of HTTP's own framing, whatever matchers say: the request was routed
//! by the one, and is sent by the others.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::{
    CheckRequest, CheckVerdict,
    ext_authz::{Allowed, Denied, EditAction, HeaderEdit},
};
use crate::config::{HttpCheck, StringMatcher};

/// Headers that the request loses, by their names, in an answer that lets it pass (Envoy).
const HEADERS_TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// What a refused caller gets in any case (Envoy).
const ALWAYS_TO_CLIENTS: [HeaderName; 3] = [
    header::CONTENT_LENGTH,
    header::WWW_AUTHENTICATE,
    header::LOCATION,
];

/// What no answer changes.
const OURS: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: String,
}

/// The head of the check of a request: method, path with query, authority, headers.
///
/// # Errors
/// When a header of the request cannot be told.
pub fn check_head(
    config: &HttpCheck,
    request: &CheckRequest<'_>,
) -> Result<(Method, String, String, HeaderMap), String> {
    let pseudo = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let path = format!("{}{}", config.path_prefix, pseudo(":path"));
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        if name.starts_with(':') || *name == header::CONTENT_LENGTH.as_str() {
            continue;
        }
        let wrong = || format!("the header {name:?} cannot be told");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        headers.insert(name, value);
    }
    for name in &OURS {
        headers.remove(name);
    }
    for (name, value) in &config.headers_to_add {
        headers.insert(name, value.clone());
    }
    let length = request.body.as_ref().map_or(0, |body| body.data.len());
    headers.insert(header::CONTENT_LENGTH, length.into());
    Ok((
        request.view.method.clone(),
        path,
        pseudo(":authority"),
        headers,
    ))
}

/// What an answer says.
///
/// # Errors
/// When it is no verdict: the service failed.
pub fn verdict_of_http(config: &HttpCheck, answer: HttpAnswer) -> Result<CheckVerdict, String> {
    let HttpAnswer {
        status,
        headers,
        body,
    } = answer;
    if status.is_server_error() {
        return Err(format!("it answers {status}"));
    }
    if status == StatusCode::OK {
        return Ok(CheckVerdict::Allowed(Box::new(allowed(config, &headers))));
    }
    let to_client = |name: &HeaderName| match &config.client_headers {
        None => true,
        Some(listed) => ALWAYS_TO_CLIENTS.contains(name) || is_listed(listed, name),
    };
    Ok(CheckVerdict::Denied(Box::new(Denied {
        status: Some(status.as_u16()),
        headers: edits(&headers, to_client, EditAction::Append).collect(),
        body,
    })))
}

fn allowed(config: &HttpCheck, headers: &HeaderMap) -> Allowed {
    let listed = |list: &'_ [StringMatcher], action| {
        let edits = edits(headers, |name| is_listed(list, name), action);
        edits.collect::<Vec<_>>()
    };
    let mut request = listed(&config.upstream_headers, EditAction::Overwrite);
    request.extend(listed(&config.upstream_headers_to_append, EditAction::Join));
    let remove = headers.get_all(HEADERS_TO_REMOVE).iter();
    let remove = remove.filter_map(|value| value.to_str().ok());
    let remove = remove.flat_map(|names| names.split(','));
    let remove = remove.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok());
    let told = headers
        .iter()
        .filter(|(name, _)| is_listed(&config.metadata_headers, name));
    let told: BTreeMap<_, _> = told
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let told = told
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::from(value)));
    let told: serde_json::Map<_, _> = told.collect();
    Allowed {
        request,
        remove: remove.filter(|name| *name != header::HOST).collect(),
        response: listed(&config.client_headers_on_success, EditAction::Append),
        metadata: (!told.is_empty()).then_some(Value::Object(told)),
        ..Allowed::default()
    }
}

fn is_listed(list: &[StringMatcher], name: &HeaderName) -> bool {
    list.iter().any(|one| one.is_match(name.as_str()))
}

fn edits<'h>(
    headers: &'h HeaderMap,
    is_meant: impl Fn(&HeaderName) -> bool + 'h,
    action: EditAction,
) -> impl Iterator<Item = HeaderEdit> + 'h {
    let meant = headers
        .iter()
        .filter(move |(name, _)| !OURS.contains(name) && is_meant(name));
    meant.map(move |(name, value)| HeaderEdit {
        name: name.clone(),
        value: value.clone(),
        action,
    })
}
