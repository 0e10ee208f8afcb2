//! Istio's VirtualService: whose clients it is for, and its routes in order.
//!
//! Of several for one host the oldest holds, then the first by name; what is for some namespaces
//! alone goes before what is for all.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CompileOptions, Compiled, ServiceInfo,
    routes::{Context, passed_over},
    scoped::{Audience, DeclaredRoute},
    services::{find, unknown_host},
};
use crate::{
    diagnostic::Diagnostic,
    model::{Object, ObjectSet, Spec, VirtualService},
};

/// A VirtualService, and whom it is for.
pub(super) struct DeclaredService<'o> {
    pub(super) audience: Audience,
    pub(super) object: &'o Arc<Object>,
    spec: &'o VirtualService,
}

/// By the full name of the service, in the order in which they are asked.
pub(super) type VirtualServices<'o> = BTreeMap<String, Vec<DeclaredService<'o>>>;

/// Finds the services of all VirtualServices.
pub(super) fn collect<'o>(
    objects: &'o ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) -> VirtualServices<'o> {
    let mut all = VirtualServices::new();
    for object in objects.values() {
        let Spec::VirtualService(spec) = &object.spec else {
            continue;
        };
        let is_for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh");
        if !is_for_mesh {
            continue;
        }
        let namespace = &object.key.namespace;
        for (index, host) in spec.hosts.iter().enumerate() {
            let Some(service) = find(services, host, namespace, &options.cluster_domain) else {
                findings.push(unknown_host(object, &format!("spec.hosts[{index}]"), host));
                continue;
            };
            compiled.made_of(&service.fqdn, &object.key);
            let export_to = spec.export_to.iter().map(String::as_str);
            let declared = DeclaredService {
                audience: Audience::exported(export_to, namespace),
                object,
                spec,
            };
            all.entry(service.fqdn.clone()).or_default().push(declared);
        }
    }
    for (fqdn, declared) in &mut all {
        in_order(fqdn, declared, findings);
    }
    all
}

/// Puts them in order, and leaves out those that nobody would follow.
fn in_order(fqdn: &str, declared: &mut Vec<DeclaredService<'_>>, findings: &mut Vec<Diagnostic>) {
    declared.sort_by_key(|held| {
        let made = held.object.metadata.creation_timestamp.clone();
        let is_for_all = held.audience == Audience::All;
        (is_for_all, made.is_none(), made, held.object.key.clone())
    });
    let mut kept: Vec<DeclaredService<'_>> = Vec::new();
    for held in declared.drain(..) {
        let first = kept
            .iter()
            .find(|other| other.audience.covers(&held.audience));
        match first {
            Some(first) if Arc::ptr_eq(first.object, held.object) => {}
            Some(first) => findings.push(passed_over(held.object, fqdn, &first.object.key)),
            None => kept.push(held),
        }
    }
    *declared = kept;
}

impl Context<'_> {
    /// The routes of a VirtualService.
    pub(super) fn virtual_service(&mut self, declared: &DeclaredService<'_>) -> Vec<DeclaredRoute> {
        let mut routes = Vec::new();
        let (object, spec) = (declared.object, declared.spec);
        for (index, http) in spec.http.iter().enumerate() {
            let field = format!("spec.http[{index}]");
            match &http.delegate {
                Some(delegate) => self.delegate(object, http, delegate, &field, &mut routes),
                None => self.route(object, http, &field, &mut routes),
            }
        }
        if spec.http.is_empty() {
            routes.push(DeclaredRoute::new(self.default_route(), None));
        }
        routes
    }
}
