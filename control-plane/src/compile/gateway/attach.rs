//! Which routes are on which services.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{CompileOptions, Compiled, ServiceInfo},
    Attached, RouteSpec,
    status::{ParentStatus, RouteStatus},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, Severity, UNKNOWN_REFERENCE},
    model::{Object, ObjectSet, Spec, gateway::ParentRef},
};

/// The routes of each service, by its full name.
pub(in super::super) type Attachments<'o> = BTreeMap<String, Vec<Attached<'o>>>;

/// Finds the services of all routes.
pub(in super::super) fn attach<'o>(
    objects: &'o ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) -> Attachments<'o> {
    let mut attachments = Attachments::new();
    for object in objects.values() {
        let (spec, parents, rules) = match &object.spec {
            Spec::HttpRoute(spec) => (RouteSpec::Http(spec), &spec.parent_refs, spec.rules.len()),
            Spec::GrpcRoute(spec) => (RouteSpec::Grpc(spec), &spec.parent_refs, spec.rules.len()),
            _ => continue,
        };
        let mut status = RouteStatus::new(object, rules);
        for (index, parent) in parents.iter().enumerate() {
            let field = format!("spec.parentRefs[{index}]");
            let accepted = match service(object, parent, services, options) {
                Ok((service, port)) => {
                    compiled.made_of(&service.fqdn, &object.key);
                    let attached = Attached { object, spec, port };
                    attachments
                        .entry(service.fqdn.clone())
                        .or_default()
                        .push(attached);
                    Ok(())
                }
                Err(Unattached::NotOurs(message)) => {
                    let help = "a Service as a parent has kind: Service and group: \"\"";
                    findings.push(Diagnostic {
                        severity: Severity::Warning,
                        ..object.diagnose(BAD_VALUE, &format!("{field}.kind"), message, help)
                    });
                    // Its status is for whoever it is meant for.
                    continue;
                }
                Err(Unattached::NoParent(part, message)) => {
                    let help = "mend the name, or add the Service or its port";
                    let field = format!("{field}.{part}");
                    findings.push(object.diagnose(UNKNOWN_REFERENCE, &field, &message, help));
                    Err(message)
                }
            };
            status
                .parents
                .push(ParentStatus::new(object, parent, accepted));
        }
        compiled.statuses.insert(object.key.clone(), status);
    }
    attachments
}

enum Unattached {
    /// Something that is no parent in a mesh.
    NotOurs(String),
    /// The field, and what is wrong with it.
    NoParent(&'static str, String),
}

fn service<'s>(
    object: &Arc<Object>,
    parent: &ParentRef,
    services: &'s BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
) -> Result<(&'s ServiceInfo, Option<u16>), Unattached> {
    let group = parent
        .group
        .as_deref()
        .unwrap_or("gateway.networking.k8s.io");
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != ("", "Service") {
        let message = format!("{kind} of the group {group:?} is no parent in the mesh");
        return Err(Unattached::NotOurs(message));
    }
    let namespace = parent.namespace.as_ref().unwrap_or(&object.key.namespace);
    let name = &parent.name;
    let fqdn = format!("{name}.{namespace}.svc.{}", options.cluster_domain);
    let Some(service) = services.get(&fqdn) else {
        let message = format!("there is no Service {namespace}/{name}");
        return Err(Unattached::NoParent("name", message));
    };
    if parent.port.is_none() && parent.section_name.is_none() {
        return Ok((service, None));
    }
    let port = service.ports.iter().find(|port| {
        parent.port.is_none_or(|number| number == port.number)
            && parent
                .section_name
                .as_ref()
                .is_none_or(|name| *name == port.name)
    });
    let Some(port) = port else {
        let part = match parent.port {
            Some(_) => "port",
            None => "sectionName",
        };
        let message = format!("Service {namespace}/{name} has no such port");
        return Err(Unattached::NoParent(part, message));
    };
    Ok((service, Some(port.number)))
}
