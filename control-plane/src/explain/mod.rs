//! `control-plane explain`: where a request goes, and why not elsewhere.
//!
//! Asks the engine that the clients use about what was compiled: from a directory, or in a running
//! control plane over its admin API. `text` writes it for people.

mod servers;
mod taken;
mod text;

use std::{collections::BTreeMap, io, path::Path};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use mesh_core::{
    config::{ListenerKind, RouteSource},
    route::{Explanation, RequestView, explain as explain_routes},
};
use serde::{Deserialize, Serialize};

use crate::{
    compile::{CompileOptions, Compiled, RouteOrigin, View, Viewer, compile},
    model::DEFAULT_NAMESPACE,
    source::load_folder,
};
pub use servers::TakenServers;
use taken::Taking;
pub use taken::{Taken, TakenCluster, TakenRetries};

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
    /// Labels of the client.
    pub labels: BTreeMap<String, String>,
}

impl ExplainRequest {
    /// Reads a request, with one header a line, and the client as `NAMESPACE`,
    /// `NAMESPACE/KEY=VALUE,…`, or nothing.
    ///
    /// # Errors
    /// Which of them is wrong, and why.
    pub fn parse(method: &str, url: &str, headers: &str, from: &str) -> Result<Self, String> {
        let mut request = Self {
            method: method
                .parse()
                .map_err(|_| format!("{method:?} is not a method"))?,
            url: url.parse().map_err(|_| format!("{url:?} is not a URL"))?,
            headers: HeaderMap::new(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            labels: BTreeMap::new(),
        };
        for line in headers.lines().filter(|line| !line.trim().is_empty()) {
            let (name, value) = parse_header(line)?;
            request.headers.append(name, value);
        }
        let (namespace, labels) = from.split_once('/').unwrap_or((from, ""));
        if !namespace.is_empty() {
            namespace.clone_into(&mut request.namespace);
        }
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| format!("{label:?} is no label: write KEY=VALUE"))?;
            request.labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(request)
    }
}

/// A header, as people write it.
pub(crate) fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?} has no colon: write NAME: VALUE"))?;
    let wrong = |what| format!("{text:?}: {what}");
    let name = name.trim().parse();
    let value = value.trim().parse();
    Ok((
        name.map_err(|_| wrong("is not the name of a header"))?,
        value.map_err(|_| wrong("is not the value of a header"))?,
    ))
}

/// What becomes of a request, and why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Explained {
    /// Method and URL.
    pub request: String,
    /// Namespace of the client.
    pub namespace: String,
    /// Labels of the client.
    pub labels: BTreeMap<String, String>,
    /// Name of the route configuration, if there is one.
    pub routes: Option<String>,
    /// Every virtual host.
    pub virtual_hosts: Vec<Host>,
    /// The routes of the virtual host, up to the one that is taken.
    pub tried: Vec<Tried>,
    /// What is declared for the service but not for this client.
    pub left_out: Vec<Tried>,
    /// What the route that is taken does.
    pub taken: Option<Taken>,
    /// Why none is taken.
    pub failure: Option<String>,
}

/// A virtual host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The domain of it that fits.
    pub domain: Option<String>,
    /// Whether it is the one.
    pub is_taken: bool,
}

/// A route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// Its name.
    pub name: String,
    /// Whether it is taken.
    pub is_taken: bool,
    /// Why, or why not.
    pub why: String,
    /// Where it is declared; `None` for one that nobody declared.
    pub origin: Option<Origin>,
}

/// Where something is declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// For example `VirtualService default/greeter`.
    pub object: String,
    /// The field; empty for the whole object.
    pub field: String,
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
}

impl From<&RouteOrigin> for Origin {
    fn from(origin: &RouteOrigin) -> Self {
        Self {
            object: origin.object.to_string(),
            field: origin.field.clone(),
            file: origin.file.to_string(),
            line: origin.line,
        }
    }
}

/// Says what a directory makes of a request.
///
/// # Errors
/// When the directory cannot be read.
pub fn explain(
    folder: &Path,
    options: &CompileOptions,
    request: &ExplainRequest,
) -> io::Result<Explained> {
    let loaded = load_folder(folder)?;
    let (compiled, _) = compile(&loaded.objects, options);
    Ok(explain_compiled(&compiled, request))
}

/// Says what becomes of a request.
pub fn explain_compiled(compiled: &Compiled, request: &ExplainRequest) -> Explained {
    let viewer = Viewer {
        labels: &request.labels,
        ..Viewer::from(&request.namespace)
    };
    let mut explained = Explained {
        request: format!("{} {}", request.method, request.url),
        namespace: request.namespace.clone(),
        labels: request.labels.clone(),
        ..Explained::default()
    };
    let authority = request.url.authority();
    let authority = authority.map_or("", |authority| authority.as_str());
    let Some(listener) = compiled.resolve_listener(authority, viewer) else {
        explained.failure = Some(unknown(compiled, authority, &request.namespace));
        return explained;
    };
    let ListenerKind::Api(api) = listener.kind else {
        return explained;
    };
    let RouteSource::Rds(name) = &api.routes else {
        return explained;
    };
    explained.routes = Some(name.to_string());
    let Some(View {
        config, origins, ..
    }) = compiled.view(name.as_str(), viewer)
    else {
        explained.failure = Some(format!("there are no routes {name}"));
        return explained;
    };
    let (method, headers) = (&request.method, &request.headers);
    let view = RequestView::new(method, &request.url, authority, headers);
    let explanation = explain_routes(&config, authority, &view);
    let hosts = explanation.hosts.iter().enumerate();
    explained.virtual_hosts = hosts
        .map(|(index, host)| Host {
            name: host.name.clone(),
            domain: host.domain.clone(),
            is_taken: explanation.host == Some(index),
        })
        .collect();
    explained.tried = tried(&explanation, &origins);
    let left_out = compiled.left_out(name.as_str(), viewer).into_iter();
    explained.left_out = left_out
        .map(|(name, why, origin)| Tried {
            name,
            is_taken: false,
            why,
            origin: origin.as_ref().map(Origin::from),
        })
        .collect();
    match (explanation.host, explanation.route) {
        (Some(host), Some(route)) => {
            let host = &config.virtual_hosts[host];
            let taking = Taking {
                compiled,
                viewer,
                listed: &api.filters,
                above: [config.filters.as_deref(), host.filters.as_deref()],
            };
            explained.taken = Some(Taken::new(&taking, &host.routes[route]));
        }
        _ => explained.failure = Some("no route takes it: the call fails".to_owned()),
    }
    explained
}

fn unknown(compiled: &Compiled, authority: &str, namespace: &str) -> String {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    match compiled.full_name(host, namespace) {
        Some(fqdn) if host != authority => {
            format!("{fqdn} has no such port, or this client does not see it")
        }
        Some(fqdn) => format!("{fqdn} has no port, or this client does not see it"),
        None => format!("no service is called {authority:?} in namespace {namespace}"),
    }
}

fn tried(explanation: &Explanation, origins: &[Option<RouteOrigin>]) -> Vec<Tried> {
    let routes = explanation.routes.iter().enumerate();
    let tried = routes.map(|(index, route)| Tried {
        name: route.name.clone(),
        is_taken: explanation.route == Some(index),
        why: match (&route.mismatch, route.share) {
            (Some(mismatch), _) => format!("not taken: {mismatch}"),
            (None, Some(share)) => {
                let percent = f64::from(share.per_million()) / 10_000.0;
                format!("taken by {percent} % of such requests")
            }
            (None, None) => "taken".to_owned(),
        },
        origin: origins
            .get(index)
            .and_then(Option::as_ref)
            .map(Origin::from),
    });
    tried.collect()
}
