//! Endpoints that are declared apart from their service: instances that registered, and
//! WorkloadEntries that a ServiceEntry or a Service selects.
//!
//! An instance joins the service of its name and namespace. Where there is none, it makes one: it is
//! dialled as any service is, as `NAME.service.consul`, and, in a namespace other than `default`, as
//! `NAME.service.NAMESPACE.ns.consul`, at port [`PORT`] whatever port its instances listen on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
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

/// Adds the instances that registered.
pub(super) fn add_registered(
    members: &Members,
    options: &CompileOptions,
    services: &mut BTreeMap<String, ServiceInfo>,
) {
    for member in members.values() {
        let registration = &member.registration;
        let (name, namespace) = (&registration.service, &registration.namespace);
        let fqdn =
            format!("{name}.{namespace}.svc.{}", options.cluster_domain).to_ascii_lowercase();
        let service = services
            .entry(fqdn)
            .or_insert_with_key(|fqdn| undeclared(registration, fqdn));
        // Who may be a service that somebody declared is said there.
        if service.objects.is_empty()
            && let Some(account) = registration.meta.get(META_ACCOUNT)
        {
            service
                .accounts
                .insert(format!("ns/{namespace}/sa/{account}"));
        }
        let workload = registered(member, &service.ports);
        service.workloads.push(workload);
    }
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
        let is_own = |registration: &Registration| {
            (&registration.service, &registration.namespace) == (&service.name, &service.namespace)
        };
        let chosen: Vec<_> = members
            .values()
            .filter(|member| {
                let registration = &member.registration;
                let labels = labels(registration);
                registration.namespace == selector.namespace
                    && !is_own(registration)
                    && selector.of_registered
                    && selector.has(|key| labels.get(key).cloned())
            })
            .map(|member| registered(member, &service.ports))
            .collect();
        service.workloads.extend(chosen);
    }
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
        hosts: BTreeMap::new(),
        locality: super::services::locality(entry.locality.as_deref()),
        weight: entry.weight.unwrap_or(1).max(1),
        health: HealthStatus::Healthy,
        is_registered: false,
    });
}
