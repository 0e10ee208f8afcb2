//! `FilterPolicy` to filters.
//!
//! All policies of a target hold: their changes of headers are made in the order of the objects' names,
//! and of several limits of a body the lowest counts. A session has one way to be kept: the first object's.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{FilterConfig, HeaderMutation, HttpFilter};

use super::{
    CompileOptions, Compiled,
    route_action::headers,
    route_match::Wrong,
    routes::passed_over,
    services::{self, ServiceInfo},
    session::{self, SESSION_FILTER},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{FilterPolicy, Object, ObjectKey, ObjectSet, Spec},
};

type Labels = BTreeMap<String, String>;

/// Name of the filter that changes headers.
pub const HEADER_MUTATION_FILTER: &str = "envoy.filters.http.header_mutation";
/// Name of the filter that holds requests back.
pub const BUFFER_FILTER: &str = "envoy.filters.http.buffer";

/// The policies for servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerFilters {
    root_namespace: String,
    policies: Vec<OfServers>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OfServers {
    object: ObjectKey,
    namespace: String,
    labels: Labels,
    filters: Filters,
}

/// What policies ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filters {
    headers: HeaderMutation,
    max_request_bytes: Option<u32>,
}

/// What the clients of hosts do, by full name.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientFilters(BTreeMap<String, OfClients>);

#[derive(Clone, Debug, Default)]
struct OfClients {
    filters: Filters,
    session: Option<(ObjectKey, FilterConfig)>,
}

impl Filters {
    fn add(&mut self, other: &Self) {
        let HeaderMutation {
            request, response, ..
        } = other.headers.clone();
        self.headers.request.extend(request);
        self.headers.response.extend(response);
        let limits = [self.max_request_bytes, other.max_request_bytes];
        self.max_request_bytes = limits.into_iter().flatten().min();
    }

    /// In the order in which a request meets them: it is held back as it is sent.
    fn configs(&self) -> Vec<(&'static str, FilterConfig)> {
        let is_changed = !self.headers.request.is_empty() || !self.headers.response.is_empty();
        let headers = is_changed.then(|| {
            let config = FilterConfig::HeaderMutation(Arc::new(self.headers.clone()));
            (HEADER_MUTATION_FILTER, config)
        });
        let buffer = self
            .max_request_bytes
            .map(|max_request_bytes| (BUFFER_FILTER, FilterConfig::Buffer { max_request_bytes }));
        headers.into_iter().chain(buffer).collect()
    }
}

impl ServerFilters {
    fn selected(&self, namespace: &str, labels: &Labels) -> impl Iterator<Item = &OfServers> {
        self.policies.iter().filter(move |held| {
            let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
            (held.namespace == namespace || held.namespace == self.root_namespace)
                && held.labels.iter().all(has)
        })
    }

    /// The objects that hold for a server.
    pub(super) fn objects(&self, namespace: &str, labels: &Labels) -> Vec<ObjectKey> {
        let selected = self.selected(namespace, labels);
        selected.map(|held| held.object.clone()).collect()
    }

    pub(super) fn of(&self, namespace: &str, labels: &Labels) -> Vec<HttpFilter> {
        let selected = self.selected(namespace, labels);
        let mut all = Filters::default();
        selected.for_each(|held| all.add(&held.filters));
        let configs = all.configs().into_iter();
        configs
            .map(|(name, config)| HttpFilter::new(name, config))
            .collect()
    }
}

impl ClientFilters {
    /// Gives the listeners of each host the filters that its virtual hosts say something of, after those
    /// that they have. The one listener of an Envoy has them in any case.
    pub(super) fn list(&self, compiled: &mut Compiled) {
        for (fqdn, said) in &self.0 {
            let configs = said.filters.configs();
            let is_said =
                |filter: &HttpFilter| configs.iter().any(|(name, _)| *name == &*filter.name);
            let listed: Vec<_> = idle_filters().into_iter().filter(is_said).collect();
            if !listed.is_empty() {
                let held = compiled.client_filters.entry(fqdn.clone()).or_default();
                held.extend(listed);
            }
        }
    }

    /// What the virtual hosts of a host say of filters.
    pub(super) fn of_host(&self, fqdn: &str) -> Vec<(&'static str, FilterConfig)> {
        let Some(said) = self.0.get(fqdn) else {
            return Vec::new();
        };
        let session = said.session.iter();
        let session = session.map(|(_, config)| (SESSION_FILTER, config.clone()));
        said.filters.configs().into_iter().chain(session).collect()
    }
}

/// The filters as a listener lists them whose virtual hosts say what they do. A limit is a part of the
/// buffer's configuration in any case, so that it is off.
pub(crate) fn idle_filters() -> [HttpFilter; 2] {
    let headers = FilterConfig::HeaderMutation(Arc::default());
    let buffer = FilterConfig::Buffer {
        max_request_bytes: 1,
    };
    [
        HttpFilter::new(HEADER_MUTATION_FILTER, headers),
        HttpFilter {
            disabled: true,
            ..HttpFilter::new(BUFFER_FILTER, buffer)
        },
    ]
}

/// Reads all policies.
pub(super) fn collect(
    objects: &ObjectSet,
    known: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) -> ClientFilters {
    let mut servers = ServerFilters {
        root_namespace: options.root_namespace.clone(),
        policies: Vec::new(),
    };
    let mut clients = ClientFilters::default();
    for object in objects.values() {
        let Spec::FilterPolicy(spec) = &object.spec else {
            continue;
        };
        let mut wrong = |(part, message): Wrong| {
            let field = format!("spec.{part}");
            findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
        };
        let filters = filters_of(spec, &mut wrong);
        let session = match &spec.session {
            Some(_) if spec.host.is_none() => {
                let message = "sessions are kept by clients: write a host";
                wrong(("session".to_owned(), message.to_owned()));
                None
            }
            Some(declared) => session::declared(declared).map_err(&mut wrong).ok(),
            None => None,
        };
        match (&spec.host, &spec.selector) {
            (None, selector) => servers.policies.push(OfServers {
                object: object.key.clone(),
                namespace: object.key.namespace.clone(),
                labels: selector
                    .as_ref()
                    .map(|selector| selector.match_labels.clone())
                    .unwrap_or_default(),
                filters,
            }),
            (Some(_), Some(_)) => {
                let message = "selector is for servers, host for clients: write one of them";
                wrong(("host".to_owned(), message.to_owned()));
            }
            (Some(host), None) => {
                let namespace = &object.key.namespace;
                match services::find(known, host, namespace, &options.cluster_domain) {
                    Some(service) => {
                        compiled.made_of(&service.fqdn, &object.key);
                        let held = clients.0.entry(service.fqdn.clone()).or_default();
                        held.filters.add(&filters);
                        held.keep(object, &service.fqdn, session, findings);
                    }
                    None => findings.push(services::unknown_host(object, "spec.host", host)),
                }
            }
        }
    }
    compiled.server_filters = servers.into();
    clients
}

impl OfClients {
    /// The first object's session holds.
    fn keep(
        &mut self,
        object: &Object,
        fqdn: &str,
        session: Option<FilterConfig>,
        findings: &mut Vec<Diagnostic>,
    ) {
        match (&self.session, session) {
            (_, None) => {}
            (Some((winner, _)), Some(_)) => findings.push(passed_over(object, fqdn, winner)),
            (None, Some(session)) => self.session = Some((object.key.clone(), session)),
        }
    }
}

fn filters_of(spec: &FilterPolicy, wrong: &mut impl FnMut(Wrong)) -> Filters {
    let mut filters = Filters::default();
    match spec.headers.as_ref().map(headers) {
        Some(Ok(changes)) => {
            filters.headers.request = [changes.request].into();
            filters.headers.response = [changes.response].into();
            let is_something = |changes: &mesh_core::config::HeaderChanges| !changes.is_empty();
            filters.headers.request.retain(is_something);
            filters.headers.response.retain(is_something);
        }
        Some(Err((part, message))) => wrong((format!("headers.{part}"), message)),
        None => {}
    }
    match spec.buffer.as_ref().map(|buffer| buffer.max_request_bytes) {
        Some(0) => {
            let field = "buffer.maxRequestBytes".to_owned();
            wrong((field, "it must be 1 or more".to_owned()));
        }
        limit => filters.max_request_bytes = limit,
    }
    filters
}
