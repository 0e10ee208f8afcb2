//! Consul's service-router.
//!
//! The first route that matches is taken; a route to the service itself stands behind them.

use http::Method;
use mesh_core::config::{
    Forward, ForwardExtras, HeaderMatcher, HeaderMutations, HeaderPredicate, PathMatcher,
    PathPattern, PathRewrite, QueryMatcher, RETRIES_MAX, Regex, RetryOn, RetryPolicy, Route,
    RouteAction, RouteMatch, StringMatcher, StringPattern,
};

use super::{
    super::{
        RouteOrigin,
        route_action::{default_retries, headers},
        route_match::Wrong,
        routes::Context,
        scoped::DeclaredRoute,
    },
    ConsulEntries, Target,
};
use crate::{
    model::{
        HeadersSpec, Object, RouterDestination, RouterHttpMatch, RouterText, ServiceRouter,
        service_in,
    },
    value,
};

impl Context<'_> {
    /// The routes of a service-router. A route that cannot be read fails its requests, or is left
    /// out when it is not known which they are.
    pub(in super::super) fn router(
        &mut self,
        object: &Object,
        spec: &ServiceRouter,
        entries: &ConsulEntries<'_>,
    ) -> Vec<DeclaredRoute> {
        let mut routes = Vec::new();
        for (index, declared) in spec.routes.iter().enumerate() {
            let field = format!("spec.routes[{index}]");
            let matcher = match &declared.r#match {
                Some(declared) => compile_match(&declared.http),
                None => Ok(RouteMatch::any()),
            };
            let matcher = match matcher {
                Ok(matcher) => matcher,
                Err((part, message)) => {
                    self.wrong(object, &format!("{field}.match.http.{part}"), &message);
                    continue;
                }
            };
            let place = format!("{field}.destination");
            let (action, mutations) =
                match self.router_destination(object, &declared.destination, &place, entries) {
                    Ok((forward, mutations)) => (RouteAction::Forward(forward), mutations),
                    Err((part, message)) => {
                        self.wrong(object, &format!("{place}.{part}"), &message);
                        (
                            RouteAction::Unsupported(message),
                            HeaderMutations::default(),
                        )
                    }
                };
            let name = format!("{}/routes[{index}]", object.key.name);
            let route = Route {
                headers: (!mutations.is_empty()).then(|| Box::new(mutations)),
                ..Route::new(name, matcher, action)
            };
            let origin = RouteOrigin::new(object, &field);
            routes.push(DeclaredRoute::new(route, Some(origin)));
        }
        routes.push(self.consul_default(entries));
        routes
    }

    fn router_destination(
        &mut self,
        object: &Object,
        declared: &RouterDestination,
        field: &str,
        entries: &ConsulEntries<'_>,
    ) -> Result<(Forward, HeaderMutations), Wrong> {
        let (namespace, own) = (declared.namespace.as_deref(), &object.key.name);
        let service = service_in(declared.service.as_deref(), namespace, own);
        let target = Target {
            service: service.as_deref(),
            subset: declared.service_subset.as_deref(),
            names: [format!("{field}.service"), format!("{field}.serviceSubset")],
        };
        let legs = self.legs(object, &target, entries);
        let timeout = match declared.request_timeout.as_deref().map(value::duration) {
            Some(Ok(timeout)) => Some(timeout).filter(|timeout| !timeout.is_zero()),
            Some(Err(message)) => return Err(("requestTimeout".to_owned(), message)),
            None => legs.timeout,
        };
        let idle_timeout = match declared.idle_timeout.as_deref().map(value::duration) {
            Some(Ok(timeout)) => Some(timeout),
            Some(Err(message)) => return Err(("idleTimeout".to_owned(), message)),
            None => None,
        };
        let spec = HeadersSpec {
            request: declared.request_headers.clone(),
            response: declared.response_headers.clone(),
        };
        let mutations = headers(&spec).map_err(|(part, message)| {
            let part = part.replacen("request.", "requestHeaders.", 1).replacen(
                "response.",
                "responseHeaders.",
                1,
            );
            (part, message)
        })?;
        let rewrite = declared.prefix_rewrite.clone().map(PathRewrite::Prefix);
        let extras = ForwardExtras {
            path_rewrite: rewrite,
            idle_timeout,
            hash_policy: legs.hash_policy,
            ..ForwardExtras::default()
        };
        let forward = Forward {
            clusters: legs.clusters,
            timeout,
            retry: retries(declared)?,
            extras: (extras != ForwardExtras::default()).then(|| Box::new(extras)),
            ..Forward::default()
        };
        Ok((forward, mutations))
    }
}

fn retries(declared: &RouterDestination) -> Result<Option<RetryPolicy>, Wrong> {
    let is_silent = declared.num_retries.is_none()
        && !declared.retry_on_connect_failure
        && declared.retry_on.is_empty()
        && declared.retry_on_status_codes.is_empty();
    if is_silent {
        return Ok(Some(default_retries()));
    }
    let (mut retry_on, unknown) = RetryOn::parse(&declared.retry_on.join(","));
    if let Some(token) = unknown.first() {
        let message = format!("{token:?} is not a known condition");
        return Err(("retryOn".to_owned(), message));
    }
    if declared.retry_on_connect_failure {
        retry_on |= RetryOn::CONNECT_FAILURE;
    }
    if !declared.retry_on_status_codes.is_empty() {
        retry_on |= RetryOn::RETRIABLE_STATUS_CODES;
    }
    let num_retries = declared.num_retries.unwrap_or(1).min(RETRIES_MAX);
    let policy = RetryPolicy {
        retry_on,
        retriable_status_codes: declared.retry_on_status_codes.clone(),
        num_retries,
        ..RetryPolicy::default()
    };
    Ok(Some(policy).filter(|policy| num_retries > 0 && !policy.retry_on.is_empty()))
}

fn compile_match(declared: &RouterHttpMatch) -> Result<RouteMatch, Wrong> {
    let paths = [
        &declared.path_exact,
        &declared.path_prefix,
        &declared.path_regex,
    ];
    if paths.into_iter().flatten().count() > 1 {
        let message = "pathExact, pathPrefix and pathRegex exclude each other".to_owned();
        return Err(("pathExact".to_owned(), message));
    }
    let mut path = match declared {
        RouterHttpMatch {
            path_exact: Some(text),
            ..
        } => PathMatcher::new(PathPattern::Exact(text.clone())),
        RouterHttpMatch {
            path_prefix: Some(text),
            ..
        } => PathMatcher::new(PathPattern::Prefix(text.clone())),
        RouterHttpMatch {
            path_regex: Some(text),
            ..
        } => {
            let regex = Regex::new(text).map_err(|message| ("pathRegex".to_owned(), message))?;
            PathMatcher::new(PathPattern::Regex(regex))
        }
        _ => PathMatcher::any(),
    };
    let is_regex = matches!(path.pattern, PathPattern::Regex(_));
    path.case_sensitive = is_regex || !declared.case_insensitive;
    let mut matcher = RouteMatch::path(path);
    if !declared.methods.is_empty() {
        matcher.headers.push(methods(&declared.methods)?);
    }
    for (index, header) in declared.header.iter().enumerate() {
        let wrong = |message| (format!("header[{index}]"), message);
        let predicate = predicate(header).map_err(wrong)?;
        matcher.headers.push(HeaderMatcher {
            invert: header.invert,
            ..HeaderMatcher::new(&header.name, predicate)
        });
    }
    for (index, parameter) in declared.query_param.iter().enumerate() {
        let wrong = |message| (format!("queryParam[{index}]"), message);
        let text = RouterText {
            name: parameter.name.clone(),
            present: parameter.present,
            exact: parameter.exact.clone(),
            regex: parameter.regex.clone(),
            ..RouterText::default()
        };
        matcher
            .query_parameters
            .push(match pattern(&text).map_err(wrong)? {
                Some(pattern) => {
                    let value = StringMatcher::new(pattern).map_err(wrong)?;
                    QueryMatcher::value(&parameter.name, value)
                }
                None => QueryMatcher::present(&parameter.name),
            });
    }
    Ok(matcher)
}

fn methods(declared: &[String]) -> Result<HeaderMatcher, Wrong> {
    let wrong = |index: usize, text: &str| {
        let message = format!("{text:?} is not a method");
        (format!("methods[{index}]"), message)
    };
    for (index, text) in declared.iter().enumerate() {
        let is_word = text
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
        if !is_word || Method::from_bytes(text.as_bytes()).is_err() {
            return Err(wrong(index, text));
        }
    }
    let any = Regex::new(&declared.join("|")).map_err(|message| ("methods".to_owned(), message))?;
    let matcher = StringMatcher::new(StringPattern::Regex(any))
        .map_err(|message| ("methods".to_owned(), message))?;
    Ok(HeaderMatcher::new(
        ":method",
        HeaderPredicate::String(matcher),
    ))
}

/// What is asked of a header.
pub(in crate::compile) fn predicate(declared: &RouterText) -> Result<HeaderPredicate, String> {
    Ok(match pattern(declared)? {
        Some(pattern) => HeaderPredicate::String(StringMatcher {
            ignore_case: declared.ignore_case,
            ..StringMatcher::new(pattern)?
        }),
        None => HeaderPredicate::Present(true),
    })
}

/// `None` asks for presence.
fn pattern(declared: &RouterText) -> Result<Option<StringPattern>, String> {
    if declared.name.is_empty() {
        return Err("it has no name".to_owned());
    }
    let patterns = [
        declared.exact.clone().map(StringPattern::Exact),
        declared.prefix.clone().map(StringPattern::Prefix),
        declared.suffix.clone().map(StringPattern::Suffix),
        declared.contains.clone().map(StringPattern::Contains),
        match &declared.regex {
            Some(text) => Some(StringPattern::Regex(Regex::new(text)?)),
            None => None,
        },
    ];
    let mut patterns = patterns.into_iter().flatten();
    match (patterns.next(), patterns.next()) {
        (pattern @ Some(_), None) if !declared.present => Ok(pattern),
        (None, _) if declared.present => Ok(None),
        _ => Err("one of present, exact, prefix, suffix, contains and regex is needed".to_owned()),
    }
}
