//! Which services a client sees: those that are exported to its namespace (`exportTo`) and that its
//! Sidecar lists.
//!
//! It decides which names can be dialled, and what a client gets that asks for everything. What a
//! route leads to is served to whoever sees the route.

use std::collections::BTreeMap;

use super::{CompileOptions, ServiceInfo, Viewer, scoped::Audience, services::find};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{Object, ObjectSet, Sidecar, Spec},
};

/// Istio's annotation of Services with the namespaces that see them, separated by commas.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// Who sees what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Visibility {
    root_namespace: String,
    /// By full name; all that are not here are for all.
    exported: BTreeMap<String, Audience>,
    /// In the order in which they are asked.
    sidecars: Vec<Scope>,
}

/// A Sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    namespace: String,
    /// Of the workloads that it is for.
    labels: BTreeMap<String, String>,
    /// What they see; `None` is everything.
    egress: Option<Vec<Egress>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Egress {
    port: Option<u16>,
    /// `None` is any.
    namespace: Option<String>,
    /// A full name, `*.SUFFIX` or `*`.
    host: String,
}

impl Visibility {
    pub(super) fn collect(
        objects: &ObjectSet,
        services: &BTreeMap<String, ServiceInfo>,
        options: &CompileOptions,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut visibility = Self {
            root_namespace: options.root_namespace.clone(),
            ..Self::default()
        };
        let mut sidecars = Vec::new();
        for object in objects.values() {
            let namespace = &object.key.namespace;
            let (hosts, audience) = match &object.spec {
                Spec::Service(_) => {
                    let list = object.metadata.annotations.get(EXPORT_TO);
                    let list = list.iter().flat_map(|list| list.split(','));
                    let audience = Audience::exported(list, namespace);
                    (vec![object.key.name.clone()], audience)
                }
                Spec::ServiceEntry(spec) => {
                    let list = spec.export_to.iter().map(String::as_str);
                    (spec.hosts.clone(), Audience::exported(list, namespace))
                }
                Spec::Sidecar(spec) => {
                    sidecars.push((object, scope(object, spec, findings)));
                    continue;
                }
                _ => continue,
            };
            if audience == Audience::All {
                continue;
            }
            for host in hosts {
                if let Some(service) = find(services, &host, namespace, &options.cluster_domain) {
                    let fqdn = service.fqdn.clone();
                    visibility.exported.insert(fqdn, audience.clone());
                }
            }
        }
        // What selects workloads first, then the oldest.
        sidecars.sort_by_key(|(object, scope)| {
            let made = object.metadata.creation_timestamp.clone();
            (scope.labels.is_empty(), made.is_none(), made)
        });
        visibility.sidecars = sidecars.into_iter().map(|(_, scope)| scope).collect();
        visibility
    }

    /// The Sidecar of a client: one that selects it, else its namespace's, else the mesh's.
    fn sidecar(&self, viewer: Viewer<'_>) -> Option<usize> {
        let has = |scope: &&Scope| {
            let mut labels = scope.labels.iter();
            labels.all(|(key, value)| viewer.labels.get(key) == Some(value))
        };
        let of = |namespace: &str, is_for_all: bool| {
            self.sidecars.iter().position(|scope| {
                scope.namespace == namespace
                    && (!is_for_all || scope.labels.is_empty())
                    && has(&scope)
            })
        };
        of(viewer.namespace, false).or_else(|| of(&self.root_namespace, true))
    }

    /// Equal for clients that see the same.
    pub(super) fn key(&self, viewer: Viewer<'_>) -> String {
        format!("{:?}", self.sidecar(viewer))
    }

    /// Whether a client sees a port of a service.
    pub(super) fn sees(&self, viewer: Viewer<'_>, service: &ServiceInfo, port: u16) -> bool {
        let exported = self.exported.get(&service.fqdn);
        if exported.is_some_and(|audience| !audience.has(viewer.namespace)) {
            return false;
        }
        let sidecar = self.sidecar(viewer);
        let egress = sidecar.and_then(|number| self.sidecars[number].egress.as_ref());
        egress.is_none_or(|all| all.iter().any(|egress| egress.has(service, port)))
    }
}

impl Egress {
    fn has(&self, service: &ServiceInfo, port: u16) -> bool {
        let namespace = self.namespace.as_ref();
        let host = match self.host.strip_prefix('*') {
            Some(suffix) => service.fqdn.ends_with(suffix),
            None => service.fqdn == self.host,
        };
        host && self.port.is_none_or(|own| own == port)
            && namespace.is_none_or(|namespace| *namespace == service.namespace)
    }
}

fn scope(object: &Object, spec: &Sidecar, findings: &mut Vec<Diagnostic>) -> Scope {
    let namespace = &object.key.namespace;
    let mut egress = Vec::new();
    for (index, listener) in spec.egress.iter().enumerate() {
        for (number, text) in listener.hosts.iter().enumerate() {
            let Some((from, host)) = text.split_once('/') else {
                let field = format!("spec.egress[{index}].hosts[{number}]");
                let message = format!("{text:?} has no namespace");
                let help = "write NAMESPACE/HOST, as in ./* or */a.example.com";
                findings.push(object.diagnose(BAD_VALUE, &field, message, help));
                continue;
            };
            let from = match from {
                "*" => None,
                "." => Some(namespace.clone()),
                // Nothing.
                "~" => continue,
                name => Some(name.to_owned()),
            };
            egress.push(Egress {
                port: listener.port.as_ref().map(|port| port.number),
                namespace: from,
                host: host.to_ascii_lowercase(),
            });
        }
    }
    let selector = spec.workload_selector.as_ref();
    Scope {
        namespace: namespace.clone(),
        labels: selector.map_or_else(BTreeMap::new, |selector| selector.labels.clone()),
        egress: (!spec.egress.is_empty()).then_some(egress),
    }
}
