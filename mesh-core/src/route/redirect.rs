//! Other paths, and the address of a redirect.

use std::borrow::Cow;

use super::RequestView;
use crate::config::{
    HostRewrite, PathMatcher, PathPattern, PathRewrite, Redirect, RedirectPath, RegexRewrite,
};

/// The path and query after the rewrite; `None` when it stays.
pub(super) fn rewrite_path(
    rewrite: &PathRewrite,
    matcher: &PathMatcher,
    request: &RequestView<'_>,
) -> Option<String> {
    let path = match rewrite {
        PathRewrite::Prefix(prefix) => replace_prefix(matcher, request.path, prefix),
        PathRewrite::Regex(regex) => regex.replace_all(request.path),
        PathRewrite::Template(template) => template.rewrite(request.path)?,
    };
    Some(with_query(path, request.query()))
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// `path` with what `matcher` matched on replaced.
fn replace_prefix(matcher: &PathMatcher, path: &str, prefix: &str) -> String {
    let length = match &matcher.pattern {
        PathPattern::Prefix(text) | PathPattern::SeparatedPrefix(text) => text.len(),
        PathPattern::Exact(_) | PathPattern::Regex(_) | PathPattern::Template(_) => path.len(),
    };
    format!("{prefix}{}", path.get(length..).unwrap_or_default())
}

/// The authority after the rewrite; `None` when it stays, or when only an endpoint knows it.
pub(super) fn rewrite_host(rewrite: &HostRewrite, request: &RequestView<'_>) -> Option<String> {
    match rewrite {
        HostRewrite::Literal(host) => Some(host.clone()),
        HostRewrite::Header(name) => {
            let value = request.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned()).filter(|value| !value.is_empty())
        }
        HostRewrite::PathRegex(regex) => Some(regex.replace_all(request.path)),
        HostRewrite::Endpoint => None,
    }
}

/// The address that a redirect answers with (Envoy's `newUri`).
pub(super) fn location(
    redirect: &Redirect,
    matcher: &PathMatcher,
    request: &RequestView<'_>,
) -> String {
    let scheme = redirect
        .scheme
        .as_deref()
        .unwrap_or_else(|| request.scheme());
    let host = match &redirect.host {
        Some(host) => host.as_str(),
        None => request_host(request, scheme, redirect.port.is_some()),
    };
    let port = redirect.port.map(|port| format!(":{port}"));
    let path = redirect_path(redirect, matcher, request);
    format!("{scheme}://{host}{}{path}", port.unwrap_or_default())
}

fn redirect_path<'r>(
    redirect: &'r Redirect,
    matcher: &PathMatcher,
    request: &RequestView<'r>,
) -> Cow<'r, str> {
    let query = request.query().filter(|_| !redirect.strip_query);
    let regex = |regex: &RegexRewrite| regex.replace_all(request.path);
    let path = match &redirect.path {
        Some(RedirectPath::Full(path)) if path.contains('?') => return Cow::Borrowed(path),
        Some(RedirectPath::Full(path)) => path.clone(),
        Some(RedirectPath::Prefix(prefix)) => replace_prefix(matcher, request.path, prefix),
        Some(RedirectPath::Regex(rewrite)) => regex(rewrite),
        None => request.path.to_owned(),
    };
    Cow::Owned(with_query(path, query))
}

/// The request's host, without a port that belongs to the old scheme or is given anew.
fn request_host<'r>(request: &RequestView<'r>, new_scheme: &str, has_port: bool) -> &'r str {
    let host = request.authority;
    let end = match host.starts_with('[') {
        true => host.rfind("]:").map(|at| at + 1),
        false => host.rfind(':'),
    };
    let Some(end) = end else {
        return host;
    };
    let old_default = match request.scheme() {
        "https" => ":443",
        _ => ":80",
    };
    let is_stale = new_scheme != request.scheme() && &host[end..] == old_default;
    if has_port || is_stale {
        &host[..end]
    } else {
        host
    }
}
