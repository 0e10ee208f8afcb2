//! When a rule applies.

use std::collections::HashSet;

use http::Method;
use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, QueryMatcher, Regex, RouteMatch,
    StringMatcher, StringPattern,
};

use super::{
    super::route_match::Wrong,
    rank::{PathClass, Specificity},
};
use crate::model::gateway::{GrpcMethod, GrpcRouteMatch, HttpRouteMatch, NamedText, PathSpec};

/// A match, and how specific it is.
pub(super) struct Matched {
    pub(super) matcher: RouteMatch,
    pub(super) specificity: Specificity,
}

/// Any of the matches of an HTTP rule.
pub(super) fn http(declared: &[HttpRouteMatch]) -> Result<Vec<Matched>, Wrong> {
    if declared.is_empty() {
        return Ok(vec![http_match(&HttpRouteMatch::default())?]);
    }
    let matches = declared.iter().enumerate().map(|(index, declared)| {
        http_match(declared)
            .map_err(|(part, message)| (format!("matches[{index}].{part}"), message))
    });
    matches.collect()
}

fn http_match(declared: &HttpRouteMatch) -> Result<Matched, Wrong> {
    let (path, class) = path(declared.path.as_ref())
        .map_err(|(part, message)| (format!("path.{part}"), message))?;
    let mut matcher = RouteMatch::path(path);
    if let Some(method) = &declared.method {
        let is_method = Method::from_bytes(method.as_bytes()).is_ok();
        if !is_method {
            return Err(("method".to_owned(), format!("{method:?} is not a method")));
        }
        let value = HeaderPredicate::String(StringMatcher::exact(method));
        matcher.headers.push(HeaderMatcher::new(":method", value));
    }
    let headers = headers(&declared.headers)?;
    let specificity = Specificity {
        path: class,
        has_method: declared.method.is_some(),
        headers: headers.len(),
        query_parameters: declared.query_params.len(),
    };
    matcher.headers.extend(headers);
    let mut seen = HashSet::new();
    for (index, parameter) in declared.query_params.iter().enumerate() {
        // Of two with one name the first counts, as the API says.
        if seen.insert(&parameter.name) {
            let value = text(parameter, &format!("queryParams[{index}]"))?;
            matcher
                .query_parameters
                .push(QueryMatcher::value(&parameter.name, value));
        }
    }
    Ok(Matched {
        matcher,
        specificity,
    })
}

type Class = (PathClass, usize, usize);

fn path(declared: Option<&PathSpec>) -> Result<(PathMatcher, Class), Wrong> {
    let value = declared
        .and_then(|path| path.value.as_deref())
        .unwrap_or("/");
    let kind = declared.and_then(|path| path.r#type.as_deref());
    let length = value.chars().count();
    let kind = kind.unwrap_or("PathPrefix");
    if kind != "RegularExpression" && !value.starts_with('/') {
        return Err((
            "value".to_owned(),
            format!("{value:?} does not begin with /"),
        ));
    }
    let (pattern, class) = match kind {
        "Exact" => (PathPattern::Exact(value.to_owned()), PathClass::Exact),
        "PathPrefix" => match value.trim_end_matches('/') {
            "" => (PathPattern::Prefix("/".to_owned()), PathClass::Prefix),
            // `/a` and `/a/` are the same prefix.
            prefix => {
                let pattern = PathPattern::SeparatedPrefix(prefix.to_owned());
                let class = (PathClass::Prefix, prefix.chars().count(), 0);
                return Ok((PathMatcher::new(pattern), class));
            }
        },
        "RegularExpression" => {
            let regex = Regex::new(value).map_err(|message| ("value".to_owned(), message))?;
            (PathPattern::Regex(regex), PathClass::Regex)
        }
        other => return Err(("type".to_owned(), unknown(other))),
    };
    Ok((PathMatcher::new(pattern), (class, length, 0)))
}

fn unknown(kind: &str) -> String {
    format!("{kind:?} is not known here")
}

fn headers(declared: &[NamedText]) -> Result<Vec<HeaderMatcher>, Wrong> {
    let mut seen = HashSet::new();
    let mut headers = Vec::new();
    for (index, header) in declared.iter().enumerate() {
        if seen.insert(header.name.to_ascii_lowercase()) {
            let value = text(header, &format!("headers[{index}]"))?;
            headers.push(HeaderMatcher::new(
                &header.name,
                HeaderPredicate::String(value),
            ));
        }
    }
    Ok(headers)
}

fn text(declared: &NamedText, field: &str) -> Result<StringMatcher, Wrong> {
    if declared.name.is_empty() {
        return Err((format!("{field}.name"), "it has no name".to_owned()));
    }
    match declared.r#type.as_deref() {
        None | Some("Exact") => Ok(StringMatcher::exact(&declared.value)),
        Some("RegularExpression") => Regex::new(&declared.value)
            .and_then(|regex| StringMatcher::new(StringPattern::Regex(regex)))
            .map_err(|message| (format!("{field}.value"), message)),
        Some(other) => Err((format!("{field}.type"), unknown(other))),
    }
}

/// Any of the matches of a gRPC rule.
pub(super) fn grpc(declared: &[GrpcRouteMatch]) -> Result<Vec<Matched>, Wrong> {
    if declared.is_empty() {
        return Ok(vec![grpc_match(&GrpcRouteMatch::default())?]);
    }
    let matches = declared.iter().enumerate().map(|(index, declared)| {
        grpc_match(declared)
            .map_err(|(part, message)| (format!("matches[{index}].{part}"), message))
    });
    matches.collect()
}

fn grpc_match(declared: &GrpcRouteMatch) -> Result<Matched, Wrong> {
    let (pattern, class) = match &declared.method {
        Some(method) => {
            method_path(method).map_err(|(part, message)| (format!("method.{part}"), message))?
        }
        None => (
            PathPattern::Prefix("/".to_owned()),
            (PathClass::Prefix, 0, 0),
        ),
    };
    let mut matcher = RouteMatch::path(PathMatcher::new(pattern));
    matcher.headers = headers(&declared.headers)?;
    Ok(Matched {
        specificity: Specificity {
            path: class,
            has_method: false,
            headers: matcher.headers.len(),
            query_parameters: 0,
        },
        matcher,
    })
}

/// The path `/SERVICE/METHOD` of a call.
fn method_path(declared: &GrpcMethod) -> Result<(PathPattern, Class), Wrong> {
    let part = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (part(&declared.service), part(&declared.method));
    let count = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
    let class = match service {
        Some(_) => PathClass::Service,
        None => PathClass::Prefix,
    };
    let class = (class, count(&service), count(&method));
    let is_regex = match declared.r#type.as_deref() {
        None | Some("Exact") => false,
        Some("RegularExpression") => true,
        Some(other) => return Err(("type".to_owned(), unknown(other))),
    };
    if service.is_none() && method.is_none() {
        let message = "a service or a method is needed".to_owned();
        return Err(("service".to_owned(), message));
    }
    for (field, text) in [("service", &service), ("method", &method)] {
        if !is_regex && text.as_ref().is_some_and(|text| text.contains('/')) {
            return Err((field.to_owned(), format!("{text:?} must not have a slash")));
        }
    }
    if !is_regex && let Some(service) = &service {
        let pattern = match &method {
            Some(method) => PathPattern::Exact(format!("/{service}/{method}")),
            None => PathPattern::Prefix(format!("/{service}/")),
        };
        return Ok((pattern, class));
    }
    let text = |text: Option<String>| match text {
        Some(text) if is_regex => format!("(?:{text})"),
        Some(text) => Regex::escaped(&text),
        None => "[^/]+".to_owned(),
    };
    let regex = format!("/{}/{}", text(service), text(method));
    let regex = Regex::new(&regex).map_err(|message| ("method".to_owned(), message))?;
    Ok((PathPattern::Regex(regex), class))
}
