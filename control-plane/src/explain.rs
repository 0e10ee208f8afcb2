//! `control-plane explain`: where a request goes, and why not elsewhere.
//!
//! Compiles a directory and asks the engine that the clients use; nothing is served.

use std::{fmt::Write as _, io, path::Path};

use http::{HeaderMap, Method, Uri};
use mesh_core::{
    config::{Forward, ListenerKind, Route, RouteAction, RouteConfig, RouteSource},
    route::{Explanation, RequestView, explain as explain_routes},
};

use crate::{
    compile::{CompileOptions, Compiled, RouteOrigin, compile},
    source::load_folder,
};

/// A request to explain.
#[derive(Clone, Debug)]
pub struct ExplainRequest {
    /// Method.
    pub method: Method,
    /// With scheme and authority, which is the name that the client dials.
    pub url: Uri,
    /// Headers.
    pub headers: HeaderMap,
    /// Namespace of the client.
    pub namespace: String,
}

/// Says what a directory makes of a request, and whether there is a route for it.
///
/// # Errors
/// When the directory cannot be read.
pub fn explain(
    folder: &Path,
    options: &CompileOptions,
    request: &ExplainRequest,
) -> io::Result<(String, bool)> {
    let loaded = load_folder(folder)?;
    let (compiled, _) = compile(&loaded.objects, options);
    let mut text = format!("{} {}\n", request.method, request.url);
    let is_routed = write_all(&mut text, &compiled, request);
    Ok((text, is_routed))
}

fn write_all(text: &mut String, compiled: &Compiled, request: &ExplainRequest) -> bool {
    let authority = request
        .url
        .authority()
        .map_or("", |authority| authority.as_str());
    let Some(listener) = compiled.resolve_listener(authority, &request.namespace) else {
        let namespace = &request.namespace;
        _ = writeln!(
            text,
            "no service is called {authority:?} in namespace {namespace}"
        );
        return false;
    };
    let ListenerKind::Api(api) = listener.kind else {
        return false;
    };
    let RouteSource::Rds(name) = api.routes else {
        return false;
    };
    let Some(config) = compiled.routes.get(name.as_str()) else {
        _ = writeln!(text, "there are no routes {name}");
        return false;
    };
    let (method, headers) = (&request.method, &request.headers);
    let view = RequestView::new(method, &request.url, authority, headers);
    let explanation = explain_routes(config, authority, &view);
    let none = Vec::new();
    let origins = compiled.origins.get(name.as_str()).unwrap_or(&none);
    _ = writeln!(text, "routes {name}");
    write_tried(text, config, &explanation, origins);
    match (explanation.host, explanation.route) {
        (Some(host), Some(route)) => {
            write_action(text, compiled, &config.virtual_hosts[host].routes[route]);
            true
        }
        _ => {
            _ = writeln!(text, "no route takes it: the call fails");
            false
        }
    }
}

fn write_tried(
    text: &mut String,
    config: &RouteConfig,
    explanation: &Explanation,
    origins: &[Option<RouteOrigin>],
) {
    for (index, host) in explanation.hosts.iter().enumerate() {
        let why = match &host.domain {
            Some(domain) if explanation.host == Some(index) => format!("taken by {domain:?}"),
            Some(domain) => format!("{domain:?} fits, another fits better"),
            None => "no domain fits".to_owned(),
        };
        _ = writeln!(text, "virtual host {}: {why}", host.name);
    }
    let first = explanation.host.map_or(0, |host| {
        config.virtual_hosts[..host]
            .iter()
            .map(|host| host.routes.len())
            .sum()
    });
    for (index, route) in explanation.routes.iter().enumerate() {
        let why = match (&route.mismatch, route.share) {
            (Some(mismatch), _) => format!("not taken: {mismatch}"),
            (None, Some(share)) => format!("taken by {} of a million", share.per_million()),
            (None, None) => "taken".to_owned(),
        };
        let origin = match origins.get(first + index) {
            Some(Some(origin)) => origin.to_string(),
            _ => "nothing declares it".to_owned(),
        };
        _ = writeln!(text, "  route {}: {why} ({origin})", route.name);
    }
}

fn write_action(text: &mut String, compiled: &Compiled, route: &Route) {
    if let Some(changes) = &route.headers {
        _ = writeln!(text, "    headers: {changes:?}");
    }
    match &route.action {
        RouteAction::Forward(forward) => write_forward(text, compiled, forward),
        RouteAction::Redirect(redirect) => _ = writeln!(text, "    answers: {redirect:?}"),
        RouteAction::DirectResponse(direct) => {
            _ = writeln!(text, "    answers: {} {:?}", direct.status, direct.body);
        }
        RouteAction::NonForwarding => _ = writeln!(text, "    is served here"),
        RouteAction::Unsupported(reason) => _ = writeln!(text, "    fails: {reason}"),
    }
}

fn write_forward(text: &mut String, compiled: &Compiled, forward: &Forward) {
    let sum: u64 = forward.clusters.iter().map(|c| u64::from(c.weight)).sum();
    for cluster in &forward.clusters {
        let endpoints = compiled.endpoints.get(cluster.name.as_str());
        let count = endpoints.map_or(0, |endpoints| {
            endpoints
                .localities
                .iter()
                .map(|locality| locality.endpoints.len())
                .sum()
        });
        let (name, weight) = (&cluster.name, cluster.weight);
        let plural = if count == 1 { "" } else { "s" };
        _ = writeln!(
            text,
            "    cluster {name}: {weight} of {sum}, {count} endpoint{plural}"
        );
    }
    match forward.timeout {
        Some(timeout) => _ = writeln!(text, "    timeout: {timeout:?}"),
        None => _ = writeln!(text, "    timeout: none"),
    }
    match &forward.retry {
        Some(retry) => {
            let (count, on, backoff) = (retry.num_retries, retry.retry_on, retry.backoff);
            _ = writeln!(
                text,
                "    retries: {count} on {on}, after {:?} to {:?}",
                backoff.base, backoff.max
            );
            if let Some(limit) = retry.per_try_timeout {
                _ = writeln!(text, "    timeout of each attempt: {limit:?}");
            }
        }
        None => _ = writeln!(text, "    retries: none"),
    }
    if let Some(extras) = &forward.extras {
        if let Some(rewrite) = &extras.path_rewrite {
            _ = writeln!(text, "    path: {rewrite:?}");
        }
        if let Some(rewrite) = &extras.host_rewrite {
            _ = writeln!(text, "    authority: {rewrite:?}");
        }
        for mirror in &extras.mirrors {
            _ = writeln!(text, "    copy: {mirror:?}");
        }
    }
}
