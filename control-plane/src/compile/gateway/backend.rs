//! Services that rules send requests to, and who may refer to them.

use mesh_core::config::{Fraction, HeaderMutations, WeightedCluster};

use super::{
    super::{clusters::cluster_name, route_match::Wrong, routes::Context},
    own_extras, share_of,
};
use crate::{
    diagnostic::UNKNOWN_REFERENCE,
    model::{Object, ObjectSet, Spec, gateway::BackendRef},
};

/// The clusters of a rule.
#[derive(Clone, Debug, Default)]
pub(super) struct Backends {
    pub(super) clusters: Vec<WeightedCluster>,
    /// The share of backends that cannot be used, and why.
    pub(super) failing: Option<(Fraction, String)>,
}

/// Why a reference cannot be followed: a reason of Gateway API, and what to say.
pub(super) struct BadRef {
    reason: &'static str,
    message: String,
    help: &'static str,
    part: &'static str,
}

/// What may be referred to across namespaces (ReferenceGrant).
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Grants(Vec<Grant>);

#[derive(Clone, Debug)]
struct Grant {
    from: (String, String),
    namespace: String,
    /// `None` is every Service.
    name: Option<String>,
}

impl Grants {
    pub(in super::super) fn collect(objects: &ObjectSet) -> Self {
        let mut all = Vec::new();
        for object in objects.values() {
            let Spec::ReferenceGrant(spec) = &object.spec else {
                continue;
            };
            for from in &spec.from {
                let is_route = from.group == "gateway.networking.k8s.io";
                for to in spec.to.iter().filter(|_| is_route) {
                    if to.group.is_empty() && to.kind == "Service" {
                        all.push(Grant {
                            from: (from.kind.clone(), from.namespace.clone()),
                            namespace: object.key.namespace.clone(),
                            name: to.name.clone(),
                        });
                    }
                }
            }
        }
        Self(all)
    }

    fn allow(&self, object: &Object, namespace: &str, name: &str) -> bool {
        let key = &object.key;
        self.0.iter().any(|grant| {
            grant.from.0 == key.kind
                && grant.from.1 == key.namespace
                && grant.namespace == namespace
                && grant.name.as_deref().is_none_or(|granted| granted == name)
        })
    }
}

impl Context<'_> {
    /// The clusters of a rule's backends. One that cannot be used fails its share.
    pub(super) fn backends(
        &mut self,
        object: &Object,
        declared: &[BackendRef],
        field: &str,
        is_grpc: bool,
    ) -> Result<Backends, Wrong> {
        let mut backends = Backends::default();
        let (mut all, mut failing, mut reason) = (0_u64, 0_u64, String::new());
        for (index, backend) in declared.iter().enumerate() {
            let weight = backend.weight.unwrap_or(1);
            all += u64::from(weight);
            let place = format!("backendRefs[{index}]");
            match self.weighted(object, backend, field, &place, is_grpc) {
                Ok(cluster) if weight > 0 => backends
                    .clusters
                    .push(WeightedCluster { weight, ..cluster }),
                Ok(_) => {}
                Err(message) => {
                    failing += u64::from(weight);
                    reason = message;
                }
            }
        }
        if backends.clusters.is_empty() {
            let message = match declared {
                [] => "a rule needs a backend or a RequestRedirect".to_owned(),
                _ if reason.is_empty() => "no backend has a weight".to_owned(),
                // Said already.
                _ => return Err((String::new(), reason)),
            };
            return Err(("backendRefs".to_owned(), message));
        }
        if all > u64::from(u32::MAX) {
            let message = format!("the weights sum up to {all}, more than {}", u32::MAX);
            return Err(("backendRefs".to_owned(), message));
        }
        if failing > 0 {
            backends.failing = share_of(failing, all).map(|share| (share, reason));
        }
        Ok(backends)
    }

    fn weighted(
        &mut self,
        object: &Object,
        backend: &BackendRef,
        field: &str,
        place: &str,
        is_grpc: bool,
    ) -> Result<WeightedCluster, String> {
        let field = format!("{field}.{place}");
        let name = self.backend(object, backend, &field)?;
        let effects = match self.filters(object, &backend.filters, &field, is_grpc) {
            Ok(effects) if effects.is_for_a_backend() => effects,
            Ok(_) => {
                let message = "only headers and the authority can be changed for one backend";
                self.wrong(object, &format!("{field}.filters"), message);
                return Err(message.to_owned());
            }
            Err((part, message)) => {
                self.wrong(object, &format!("{field}.{part}"), &message);
                return Err(message);
            }
        };
        let headers: HeaderMutations = effects.headers.clone();
        Ok(WeightedCluster {
            extras: own_extras(headers, effects.literal_host()),
            ..WeightedCluster::new(name, 1)
        })
    }

    /// The cluster of a backend; why there is none is said and noted in the route's status.
    pub(super) fn backend(
        &mut self,
        object: &Object,
        backend: &BackendRef,
        field: &str,
    ) -> Result<String, String> {
        match self.resolve(object, backend) {
            Ok(cluster) => Ok(cluster),
            Err(bad) => {
                let field = format!("{field}.{}", bad.part);
                let message = bad.message.clone();
                self.findings.push(object.diagnose(
                    UNKNOWN_REFERENCE,
                    &field,
                    &bad.message,
                    bad.help,
                ));
                if let Some(status) = self.compiled.statuses.get_mut(&object.key) {
                    status.unresolved(bad.reason, bad.message);
                }
                Err(message)
            }
        }
    }

    fn resolve(&self, object: &Object, backend: &BackendRef) -> Result<String, BadRef> {
        let bad = |reason, part, message, help| BadRef {
            reason,
            message,
            help,
            part,
        };
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let group = backend.group.as_deref().unwrap_or_default();
        if (group, kind) != ("", "Service") {
            let message = format!("{kind} of the group {group:?} is no backend here");
            return Err(bad("InvalidKind", "kind", message, "refer to a Service"));
        }
        let own = &object.key.namespace;
        let namespace = backend.namespace.as_ref().unwrap_or(own);
        let (name, domain) = (&backend.name, &self.options.cluster_domain);
        let fqdn = format!("{name}.{namespace}.svc.{domain}");
        // Who asks for a service may go on to it.
        let is_parent = fqdn == self.service.fqdn;
        if namespace != own && !is_parent && !self.grants.allow(object, namespace, name) {
            let message = format!(
                "namespace {namespace} does not let {} refer to {name}",
                object.key
            );
            let help = "add a ReferenceGrant to that namespace";
            return Err(bad("RefNotPermitted", "namespace", message, help));
        }
        let Some(service) = self.services.get(&fqdn) else {
            let message = format!("there is no Service {namespace}/{name}");
            let help = "add the Service, or mend the name";
            return Err(bad("BackendNotFound", "name", message, help));
        };
        let Some(number) = backend.port else {
            let message = "a Service needs a port".to_owned();
            return Err(bad("BackendNotFound", "port", message, "write port"));
        };
        if service.port(Some(number)).is_none() {
            let message = format!("Service {namespace}/{name} has no port {number}");
            return Err(bad(
                "BackendNotFound",
                "port",
                message,
                "write one that it has",
            ));
        }
        Ok(cluster_name(number, "", &fqdn))
    }
}
