//! Endpoints that are declared apart from their service: instances that registered, and
//! WorkloadEntries that a ServiceEntry or a Service selects.
//!
//! An instance joins the service of its name and namespace. Where there is none, it makes one: it is
//! dialled as any service is, as `NAME.service.consul`, and, in a namespace other than `default`, as
//! `NAME.service.NAMESPACE.ns.consul`, at port [`PORT`] whatever port its instances listen on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_core::config::{HealthStatus, LocalityId};

use super::{
    CompileOptions,
    services::{PortInfo, ServiceInfo, Workload, http_version},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{DEFAULT_NAMESPACE, Object, ObjectSet, Spec, WorkloadEntry},
    registry::{Member, Members, Registration, UNNAMED},
};

/// Port of a service that nobody declared.
pub const PORT: u16 = 80;
/// Prefix of the label that an instance has for each of its tags.
pub const TAG_PREFIX: &str = "tag/";
/// Entry of `Meta` with the service account of an instance.
pub const META_ACCOUNT: &str = "service-account";
/// Entry of `Meta` with the protocol of an instance's port, as `appProtocol` of a Service has it.
pub const META_PROTOCOL: &str = "protocol";

/// The full name of the service that an instance is of.
pub(super) fn full_name(registration: &Registration, options: &CompileOptions) -> String {
    let (name, namespace) = (&registration.service, &registration.namespace);
    format!("{name}.{namespace}.svc.{}", options.cluster_domain).to_ascii_lowercase()
}

/// Adds the instances that registered.
pub(super) fn add_registered(
    members: &Members,
    options: &CompileOptions,
    services: &mut BTreeMap<String, ServiceInfo>,
) {
    for service in services.values_mut() {
        service.declared = service.workloads.len();
    }
    for member in members.values() {
        let registration = &member.registration;
        let service = services
            .entry(full_name(registration, options))
            .or_insert_with_key(|fqdn| undeclared(registration, fqdn));
        add_one(member, service);
    }
}

/// Adds an instance to the service that it names.
fn add_one(member: &Member, service: &mut ServiceInfo) {
    let registration = &member.registration;
    // Who may be a service that somebody declared is said there.
    if service.is_undeclared
        && let Some(account) = registration.meta.get(META_ACCOUNT)
    {
        let namespace = &registration.namespace;
        service
            .accounts
            .insert(format!("ns/{namespace}/sa/{account}"));
    }
    let workload = registered(member, &service.ports);
    service.workloads.push(workload);
}

/// The service with these instances instead of those that it has; `None` when it would be more than
/// other endpoints.
pub(super) fn with_registered(
    before: &ServiceInfo,
    members: &Members,
    options: &CompileOptions,
) -> Option<ServiceInfo> {
    let is_of = |member: &&Arc<Member>| {
        let registration = &member.registration;
        full_name(registration, options) == before.fqdn
    };
    let mut own = members.values().filter(is_of).peekable();
    let (declared, others) = before.workloads.split_at(before.declared);
    let mut service = ServiceInfo {
        workloads: declared.to_vec(),
        ..before.without_workloads()
    };
    if before.is_undeclared {
        let first = undeclared(&own.peek()?.registration, &before.fqdn);
        if first.ports != before.ports || first.spellings != before.spellings {
            return None;
        }
        service.accounts.clear();
    }
    for member in own {
        add_one(member, &mut service);
    }
    if service.accounts != before.accounts {
        return None;
    }
    let entries = others.iter().filter(|workload| !workload.is_registered);
    service.workloads.extend(entries.cloned());
    add_chosen(members, &mut service);
    Some(service)
}

/// The service of an instance that no object declares.
fn undeclared(registration: &Registration, fqdn: &str) -> ServiceInfo {
    let (name, namespace) = (&registration.service, &registration.namespace);
    let protocol = registration.meta.get(META_PROTOCOL);
    let mut spellings = vec![format!("{name}.service.{namespace}.ns.consul")];
    if namespace == DEFAULT_NAMESPACE {
        spellings.push(format!("{name}.service.consul"));
    }
    ServiceInfo {
        namespace: namespace.clone(),
        name: name.clone(),
        fqdn: fqdn.to_owned(),
        ports: vec![PortInfo {
            number: PORT,
            name: UNNAMED.to_owned(),
            http_version: http_version(protocol.map_or("", String::as_str)),
        }],
        spellings,
        is_undeclared: true,
        ..ServiceInfo::default()
    }
}

/// Labels of an instance: its `Meta`, and its tags.
pub(crate) fn labels(registration: &Registration) -> BTreeMap<String, String> {
    let tags = registration.tags.iter();
    let tags = tags.map(|tag| (format!("{TAG_PREFIX}{tag}"), "true".to_owned()));
    registration.meta.clone().into_iter().chain(tags).collect()
}

fn registered(member: &Member, ports: &[PortInfo]) -> Workload {
    let registration = &member.registration;
    let own = &registration.ports;
    let unnamed = own.get(UNNAMED).or_else(|| match own.len() {
        1 => own.values().next(),
        _ => None,
    });
    // A port without a name is the service's only one, or its first.
    let addresses = ports.iter().enumerate().filter_map(|(index, port)| {
        let named = own.get(&port.name);
        let number = named.or_else(|| unnamed.filter(|_| index == 0))?;
        Some((port.number, SocketAddr::new(registration.address, *number)))
    });
    let place = &registration.locality;
    Workload {
        namespace: registration.namespace.clone(),
        labels: labels(registration),
        addresses: addresses.collect(),
        additional_addresses: BTreeMap::new(),
        target: None,
        hosts: BTreeMap::new(),
        locality: LocalityId {
            region: place.region.clone(),
            zone: place.zone.clone(),
            sub_zone: place.sub_zone.clone(),
        },
        weight: member.weight,
        health: member.health,
        is_registered: true,
    }
}

/// Adds the WorkloadEntries, and the instances that registered, which a service selects by label.
pub(super) fn add_selected(
    objects: &ObjectSet,
    members: &Members,
    services: &mut BTreeMap<String, ServiceInfo>,
    findings: &mut Vec<Diagnostic>,
) {
    let entries: Vec<_> = objects
        .values()
        .filter_map(|object| match &object.spec {
            Spec::WorkloadEntry(entry) => Some((object, entry, address(object, entry, findings)?)),
            _ => None,
        })
        .collect();
    for service in services.values_mut() {
        let Some(selector) = service.selector.clone() else {
            continue;
        };
        for (object, entry, ip) in &entries {
            let is_chosen = object.key.namespace == selector.namespace
                && selector.has(|key| labels_of(object, entry, key));
            if is_chosen {
                service.objects.insert(object.key.clone());
                add_entry(service, object, entry, *ip);
            }
        }
        add_chosen(members, service);
    }
}

/// Whether a service selects an instance by its labels, and the instance is not of its name.
pub(super) fn selects(service: &ServiceInfo, registration: &Registration) -> bool {
    let Some(selector) = service.selector.as_ref().filter(|own| own.of_registered) else {
        return false;
    };
    let own = (&service.name, &service.namespace);
    registration.namespace == selector.namespace
        && (&registration.service, &registration.namespace) != own
        && {
            let labels = labels(registration);
            selector.has(|key| labels.get(key).cloned())
        }
}

/// Adds the instances that it selects.
fn add_chosen(members: &Members, service: &mut ServiceInfo) {
    let chosen = members.values();
    let chosen = chosen.filter(|member| selects(service, &member.registration));
    let chosen: Vec<_> = chosen
        .map(|member| registered(member, &service.ports))
        .collect();
    service.workloads.extend(chosen);
}

fn address(
    object: &Object,
    entry: &WorkloadEntry,
    findings: &mut Vec<Diagnostic>,
) -> Option<IpAddr> {
    let address = entry.address.parse().ok();
    if address.is_none() {
        let message = format!("{:?} is not an IP address", entry.address);
        findings.push(object.diagnose(BAD_VALUE, "spec.address", message, ""));
    }
    address
}

/// A label of a WorkloadEntry: of its spec, else of its metadata (as in Istio).
fn labels_of(object: &Object, entry: &WorkloadEntry, key: &str) -> Option<String> {
    let label = entry.labels.get(key);
    label.or_else(|| object.metadata.labels.get(key)).cloned()
}

fn add_entry(service: &mut ServiceInfo, object: &Object, entry: &WorkloadEntry, ip: IpAddr) {
    let namespace = &object.key.namespace;
    if let Some(account) = &entry.service_account {
        service
            .accounts
            .insert(format!("ns/{namespace}/sa/{account}"));
    }
    let addresses = service.ports.iter().map(|port| {
        let target = service.target_ports.get(&port.number).copied();
        let own = entry.ports.get(&port.name).copied().or(target);
        (port.number, SocketAddr::new(ip, own.unwrap_or(port.number)))
    });
    let mut labels = object.metadata.labels.clone();
    labels.extend(entry.labels.clone());
    service.workloads.push(Workload {
        namespace: namespace.clone(),
        labels,
        addresses: addresses.collect(),
        additional_addresses: BTreeMap::new(),
        target: None,
        hosts: BTreeMap::new(),
        locality: super::services::locality(entry.locality.as_deref()),
        weight: entry.weight.unwrap_or(1).max(1),
        health: HealthStatus::Healthy,
        is_registered: false,
    });
}
