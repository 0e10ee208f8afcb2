//! When a route applies.

use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, QueryMatcher, Regex, RouteMatch,
    StringMatcher, StringPattern,
};

use super::scoped::{Audience, ClientMatch};
use crate::model::{HttpMatch, StringMatch};

/// A field, and what is wrong with it.
pub(super) type Wrong = (String, String);

pub(super) fn compile_match(declared: &HttpMatch) -> Result<RouteMatch, Wrong> {
    let mut path = match &declared.uri {
        None => PathMatcher::any(),
        Some(StringMatch {
            exact: Some(text), ..
        }) => PathMatcher::new(PathPattern::Exact(text.clone())),
        Some(StringMatch {
            prefix: Some(text), ..
        }) => PathMatcher::new(PathPattern::Prefix(text.clone())),
        Some(StringMatch {
            regex: Some(text), ..
        }) => {
            let regex = Regex::new(text).map_err(|message| ("uri.regex".to_owned(), message))?;
            PathMatcher::new(PathPattern::Regex(regex))
        }
        Some(_) => PathMatcher::any(),
    };
    path.case_sensitive = !declared.ignore_uri_case;
    let mut headers = Vec::new();
    let pseudo = [
        (":method", &declared.method),
        (":authority", &declared.authority),
        (":scheme", &declared.scheme),
    ];
    for (name, text) in pseudo {
        if let Some(text) = text {
            headers.push(header(name, text).map_err(|m| (name[1..].to_owned(), m))?);
        }
    }
    for (name, text) in &declared.headers {
        headers.push(header(name, text).map_err(|m| (format!("headers.{name}"), m))?);
    }
    for (name, text) in &declared.without_headers {
        let mut matcher = header(name, text).map_err(|m| (format!("withoutHeaders.{name}"), m))?;
        matcher.invert = true;
        // A header that is missing is one that does not match.
        matcher.treat_missing_as_empty = !matches!(matcher.predicate, HeaderPredicate::Present(_));
        headers.push(matcher);
    }
    let mut query_parameters = Vec::new();
    for (name, text) in &declared.query_params {
        let wrong = |m| (format!("queryParams.{name}"), m);
        let matcher = match pattern(text).map_err(wrong)? {
            Some(pattern) => QueryMatcher::value(name, StringMatcher::new(pattern).map_err(wrong)?),
            None => QueryMatcher::present(name),
        };
        query_parameters.push(matcher);
    }
    Ok(RouteMatch {
        headers,
        query_parameters,
        ..RouteMatch::path(path)
    })
}

/// The clients that a match is for; `None` is everybody.
pub(super) fn clients_of(declared: &HttpMatch) -> Option<ClientMatch> {
    let clients = ClientMatch {
        audience: match &declared.source_namespace {
            Some(name) => Audience::namespace(name),
            None => Audience::All,
        },
        labels: declared.source_labels.clone(),
    };
    (clients != ClientMatch::default()).then_some(clients)
}

/// Istio's name for claims of a token in the place of a header; only gateways know them.
const CLAIMS: &str = "@request.auth.claims";

fn header(name: &str, text: &StringMatch) -> Result<HeaderMatcher, String> {
    if name.starts_with(CLAIMS) {
        let message = "is for gateways: clients choose routes and verify no tokens; write an \
                       AuthorizationPolicy with request.auth.claims[NAME]";
        return Err(message.to_owned());
    }
    if !name.starts_with(':') && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("{name:?} is not the name of a header"));
    }
    let predicate = match pattern(text)? {
        Some(pattern) => HeaderPredicate::String(StringMatcher::new(pattern)?),
        None => HeaderPredicate::Present(true),
    };
    Ok(HeaderMatcher::new(name, predicate))
}

/// `None` asks for presence.
pub(super) fn pattern(text: &StringMatch) -> Result<Option<StringPattern>, String> {
    Ok(match text {
        StringMatch {
            exact: Some(text), ..
        } => Some(StringPattern::Exact(text.clone())),
        StringMatch {
            prefix: Some(text), ..
        } => Some(StringPattern::Prefix(text.clone())),
        StringMatch {
            regex: Some(text), ..
        } => Some(StringPattern::Regex(Regex::new(text)?)),
        StringMatch { .. } => None,
    })
}
