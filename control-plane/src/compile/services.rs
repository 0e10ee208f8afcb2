//! Services and their endpoints, from Services, EndpointSlices and ServiceEntries.
//!
//! What becomes of them, clusters and routes, is for the modules beside this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use mesh_core::config::{DnsHost, HealthStatus, HttpVersion, LocalityId};

use super::{
    CompileOptions,
    members::{add_registered, add_selected},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{
        EndpointSlice, Object, ObjectKey, ObjectSet, Service, ServiceEntry, Spec, TargetReference,
        WorkloadEntry,
    },
    registry::Members,
};

/// Istio's annotation with a Service's accounts, separated by commas.
const ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
/// Kubernetes' label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A service with its endpoints.
#[derive(Clone, Debug, Default)]
pub struct ServiceInfo {
    /// Namespace.
    pub namespace: String,
    /// Name in the namespace; the host where it has no other name.
    pub name: String,
    /// Name in full.
    pub fqdn: String,
    /// Ports.
    pub ports: Vec<PortInfo>,
    /// Endpoints.
    pub workloads: Vec<Workload>,
    /// How many of the endpoints come before those that registered.
    pub(super) declared: usize,
    /// Requests go to the nearest endpoints.
    pub(super) prefers_close: bool,
    /// Requests of a process go to one endpoint.
    pub(super) has_affinity: bool,
    /// Nobody declared it: it is there because instances registered.
    pub(super) is_undeclared: bool,
    /// What it is made of.
    pub(super) objects: BTreeSet<ObjectKey>,
    pub(super) accounts: BTreeSet<String>,
    pub(super) extra_names: Vec<String>,
    pub(super) is_external: bool,
    /// All addresses of its host are one endpoint (`DNS_ROUND_ROBIN`).
    pub(super) is_one_host: bool,
    /// Further ways to write the name.
    pub(super) spellings: Vec<String>,
    /// Which workloads are its endpoints, besides those that name it.
    pub(super) selector: Option<WorkloadSelector>,
    /// Port numbers at those, by service port number.
    pub(super) target_ports: BTreeMap<u16, u16>,
}

/// Workloads by their labels.
#[derive(Clone, Debug)]
pub(super) struct WorkloadSelector {
    pub(super) namespace: String,
    labels: BTreeMap<String, String>,
    /// Whether it selects instances that registered, too.
    pub(super) of_registered: bool,
}

impl WorkloadSelector {
    /// `None` without a label: that selects nothing.
    fn new(
        namespace: &str,
        labels: &BTreeMap<String, String>,
        of_registered: bool,
    ) -> Option<Self> {
        (!labels.is_empty()).then(|| Self {
            namespace: namespace.to_owned(),
            labels: labels.clone(),
            of_registered,
        })
    }

    pub(super) fn has(&self, label: impl Fn(&str) -> Option<String>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| label(key).as_ref() == Some(value))
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Number.
    pub number: u16,
    /// Name.
    pub name: String,
    /// Which HTTP version its endpoints speak.
    pub http_version: HttpVersion,
}

/// An endpoint of a service.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses by service port number.
    pub addresses: BTreeMap<u16, SocketAddr>,
    /// Further addresses of the same, likewise.
    pub(super) additional_addresses: BTreeMap<u16, Vec<SocketAddr>>,
    /// What Kubernetes says it is.
    pub(super) target: Option<TargetReference>,
    /// Hosts that clients look up by themselves, in place of addresses.
    pub(super) hosts: BTreeMap<u16, DnsHost>,
    pub(super) locality: LocalityId,
    pub(super) weight: u32,
    pub(super) health: HealthStatus,
    /// It registered: nobody but itself says what it is.
    pub(super) is_registered: bool,
}

impl Workload {
    /// Can be reached there, too. IPv4 is its identity, whichever came first: clients that know of one
    /// address alone are likelier to reach it.
    fn add_addresses(&mut self, addresses: BTreeMap<u16, SocketAddr>) {
        for (port, mut address) in addresses {
            let Some(first) = self.addresses.get_mut(&port) else {
                self.addresses.insert(port, address);
                continue;
            };
            if address.is_ipv4() && first.is_ipv6() {
                std::mem::swap(first, &mut address);
            }
            let additional = self.additional_addresses.entry(port).or_default();
            if address != *first && !additional.contains(&address) {
                additional.push(address);
            }
        }
    }

    /// Whether it registered by itself.
    pub fn is_registered(&self) -> bool {
        self.is_registered
    }

    /// What is declared of its health.
    pub fn health(&self) -> HealthStatus {
        self.health
    }

    /// Its share.
    pub fn weight(&self) -> u32 {
        self.weight
    }
}

impl ServiceInfo {
    /// The service without endpoints.
    pub(super) fn without_workloads(&self) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            fqdn: self.fqdn.clone(),
            ports: self.ports.clone(),
            workloads: Vec::new(),
            declared: self.declared,
            prefers_close: self.prefers_close,
            has_affinity: self.has_affinity,
            is_undeclared: self.is_undeclared,
            objects: self.objects.clone(),
            accounts: self.accounts.clone(),
            extra_names: self.extra_names.clone(),
            is_external: self.is_external,
            is_one_host: self.is_one_host,
            spellings: self.spellings.clone(),
            selector: self.selector.clone(),
            target_ports: self.target_ports.clone(),
        }
    }

    /// All ways to write the name, with 0 for the name in full.
    pub(super) fn spellings(&self, cluster_domain: &str) -> Vec<(String, u8)> {
        let (name, namespace) = (&self.name, &self.namespace);
        let mut all = vec![(self.fqdn.clone(), 0)];
        if self.fqdn == format!("{name}.{namespace}.svc.{cluster_domain}") {
            all.push((format!("{name}.{namespace}.svc"), 1));
            all.push((format!("{name}.{namespace}"), 1));
        }
        let further = self.spellings.iter();
        all.extend(further.map(|name| (name.to_ascii_lowercase(), 1)));
        all
    }

    /// The port of a number; without one 80, else the first.
    pub(super) fn port(&self, number: Option<u16>) -> Option<&PortInfo> {
        let find = |number| self.ports.iter().find(|port| port.number == number);
        match number {
            Some(number) => find(number),
            None => find(80).or_else(|| self.ports.first()),
        }
    }
}

/// The service that an object in `namespace` means with `host`.
pub(super) fn find<'s>(
    services: &'s BTreeMap<String, ServiceInfo>,
    host: &str,
    namespace: &str,
    cluster_domain: &str,
) -> Option<&'s ServiceInfo> {
    let candidates = [
        host.to_owned(),
        format!("{host}.{cluster_domain}"),
        format!("{host}.svc.{cluster_domain}"),
        format!("{host}.{namespace}.svc.{cluster_domain}"),
    ];
    candidates.iter().find_map(|name| services.get(name))
}

pub(super) fn unknown_host(object: &Object, field: &str, host: &str) -> Diagnostic {
    let help = "add a Service or ServiceEntry of that name, or mend the name";
    let message = format!("there is no host {host:?}");
    object.diagnose(UNKNOWN_REFERENCE, field, message, help)
}

/// All services, by full name.
pub(super) fn collect(
    objects: &ObjectSet,
    members: &Members,
    options: &CompileOptions,
    findings: &mut Vec<Diagnostic>,
) -> BTreeMap<String, ServiceInfo> {
    let mut services = BTreeMap::new();
    for object in objects.values() {
        match &object.spec {
            Spec::Service(service) => {
                let info = from_service(object, service, options);
                services.insert(info.fqdn.clone(), info);
            }
            Spec::ServiceEntry(entry) => {
                for host in &entry.hosts {
                    let info = from_entry(object, entry, host, options, findings);
                    services.insert(info.fqdn.clone(), info);
                }
            }
            _ => {}
        }
    }
    for object in objects.values() {
        if let Spec::EndpointSlice(slice) = &object.spec {
            add_slice(object, slice, options, &mut services, findings);
        }
    }
    add_registered(members, options, &mut services);
    add_selected(objects, members, &mut services, findings);
    services
}

pub(super) fn http_version(protocol: &str) -> HttpVersion {
    let protocol = protocol.to_ascii_lowercase();
    let head = protocol.rsplit('/').next().unwrap_or_default();
    match head.split('-').next().unwrap_or_default() {
        "grpc" | "http2" | "h2c" => HttpVersion::Http2,
        _ => HttpVersion::ByRequest,
    }
}

fn from_service(object: &Object, service: &Service, options: &CompileOptions) -> ServiceInfo {
    let (namespace, name) = (object.key.namespace.clone(), object.key.name.clone());
    let ports = service.ports.iter().map(|port| PortInfo {
        number: port.port,
        name: port.name.clone(),
        http_version: http_version(port.app_protocol.as_deref().unwrap_or(&port.name)),
    });
    let accounts = object
        .metadata
        .annotations
        .get(ACCOUNTS)
        .map(String::as_str)
        .unwrap_or_default();
    let accounts = accounts
        .split(',')
        .map(str::trim)
        .filter(|account| !account.is_empty());
    ServiceInfo {
        fqdn: format!("{name}.{namespace}.svc.{}", options.cluster_domain),
        accounts: accounts
            .map(|account| match account.split_once("/ns/") {
                Some((_, path)) => format!("ns/{path}"),
                None => format!("ns/{namespace}/sa/{account}"),
            })
            .collect(),
        ports: ports.collect(),
        objects: [object.key.clone()].into(),
        selector: WorkloadSelector::new(&namespace, &service.selector, false),
        target_ports: service
            .ports
            .iter()
            .filter_map(|port| Some((port.port, port.target_number()?)))
            .collect(),
        prefers_close: matches!(
            service.traffic_distribution.as_deref(),
            Some("PreferClose" | "PreferSameZone")
        ),
        has_affinity: service.session_affinity.as_deref() == Some("ClientIP"),
        namespace,
        name,
        ..ServiceInfo::default()
    }
}

fn from_entry(
    object: &Object,
    entry: &ServiceEntry,
    host: &str,
    options: &CompileOptions,
    findings: &mut Vec<Diagnostic>,
) -> ServiceInfo {
    let suffix = format!(".svc.{}", options.cluster_domain);
    let (name, namespace) = match host
        .strip_suffix(&suffix)
        .and_then(|host| host.split_once('.'))
    {
        Some((name, namespace)) => (name.to_owned(), namespace.to_owned()),
        None => (host.to_owned(), object.key.namespace.clone()),
    };
    let resolution = match entry.resolution.as_deref() {
        Some("DNS") => Resolution::Dns,
        Some("DNS_ROUND_ROBIN") => Resolution::OneHost,
        Some("STATIC") => Resolution::Static,
        _ => {
            let message = "resolution must be STATIC, DNS or DNS_ROUND_ROBIN";
            let help = "write resolution: STATIC and list the endpoints, or DNS";
            findings.push(object.diagnose(BAD_VALUE, "spec.resolution", message, help));
            Resolution::Static
        }
    };
    let mut info = ServiceInfo {
        fqdn: host.to_ascii_lowercase(),
        objects: [object.key.clone()].into(),
        namespace: namespace.clone(),
        name,
        extra_names: entry.subject_alt_names.clone(),
        is_external: entry.location.as_deref() == Some("MESH_EXTERNAL"),
        is_one_host: resolution == Resolution::OneHost,
        ..ServiceInfo::default()
    };
    info.ports = entry
        .ports
        .iter()
        .map(|port| PortInfo {
            number: port.number,
            name: port.name.clone(),
            http_version: http_version(&port.protocol),
        })
        .collect();
    let selector = entry.workload_selector.as_ref();
    let own = &object.key.namespace;
    info.selector = selector.and_then(|s| WorkloadSelector::new(own, &s.labels, true));
    let targets = entry.ports.iter();
    info.target_ports = targets
        .filter_map(|port| Some((port.number, port.target_port?)))
        .collect();
    let declared = declared_endpoints(object, entry, host, resolution, findings);
    for (index, endpoint) in declared.iter().enumerate() {
        let at = |number: u16, name: &str, target: Option<u16>| {
            let own = endpoint.ports.get(name).copied().or(target);
            (number, own.unwrap_or(number))
        };
        let ports = entry.ports.iter();
        let ports = ports.map(|port| at(port.number, &port.name, port.target_port));
        let (mut addresses, mut hosts) = (BTreeMap::new(), BTreeMap::new());
        if resolution != Resolution::Static {
            let host = |port| DnsHost {
                name: endpoint.address.to_ascii_lowercase(),
                port,
            };
            hosts = ports.map(|(number, own)| (number, host(own))).collect();
        } else if let Ok(ip) = endpoint.address.parse::<IpAddr>() {
            addresses = ports
                .map(|(number, own)| (number, SocketAddr::new(ip, own)))
                .collect();
        } else {
            let field = format!("spec.endpoints[{index}].address");
            let message = format!("{:?} is not an IP address", endpoint.address);
            let help = "write resolution: DNS for names";
            findings.push(object.diagnose(BAD_VALUE, &field, message, help));
            continue;
        }
        if let Some(account) = &endpoint.service_account {
            info.accounts.insert(format!("ns/{namespace}/sa/{account}"));
        }
        info.workloads.push(Workload {
            namespace: namespace.clone(),
            labels: endpoint.labels.clone(),
            addresses,
            additional_addresses: BTreeMap::new(),
            target: None,
            hosts,
            locality: locality(endpoint.locality.as_deref()),
            weight: endpoint.weight.unwrap_or(1).max(1),
            health: HealthStatus::Healthy,
            is_registered: false,
        });
    }
    info
}

/// Where the endpoints of a ServiceEntry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// At the addresses that it lists.
    Static,
    /// At all addresses of the hosts that it lists, or of its own.
    Dns,
    /// At the addresses of one host, any of which will do.
    OneHost,
}

/// The endpoints that a ServiceEntry lists; without any, hosts that are looked up are its own.
fn declared_endpoints(
    object: &Object,
    entry: &ServiceEntry,
    host: &str,
    resolution: Resolution,
    findings: &mut Vec<Diagnostic>,
) -> Vec<WorkloadEntry> {
    let mut declared = entry.endpoints.clone();
    if resolution == Resolution::Static {
        return declared;
    }
    if declared.is_empty() && entry.workload_selector.is_none() {
        if host.contains('*') {
            let message = format!("{host:?} cannot be looked up");
            let help = "list the hosts in spec.endpoints, or name each of them in spec.hosts";
            findings.push(object.diagnose(BAD_VALUE, "spec.hosts", message, help));
            return Vec::new();
        }
        declared.push(WorkloadEntry {
            address: host.to_owned(),
            ..WorkloadEntry::default()
        });
    }
    if resolution == Resolution::OneHost && declared.len() > 1 {
        let message = "DNS_ROUND_ROBIN takes one endpoint; the first is used";
        let help = "write resolution: DNS for all of them";
        findings.push(object.diagnose(BAD_VALUE, "spec.endpoints", message, help));
        declared.truncate(1);
    }
    declared
}

/// `region/zone/sub_zone`.
pub(super) fn locality(text: Option<&str>) -> LocalityId {
    let mut place = text.unwrap_or_default().split('/');
    let mut next = || place.next().unwrap_or_default().to_owned();
    LocalityId {
        region: next(),
        zone: next(),
        sub_zone: next(),
    }
}

fn add_slice(
    object: &Object,
    slice: &EndpointSlice,
    options: &CompileOptions,
    services: &mut BTreeMap<String, ServiceInfo>,
    findings: &mut Vec<Diagnostic>,
) {
    let namespace = &object.key.namespace;
    let Some(name) = object.metadata.labels.get(SERVICE_NAME) else {
        let message = format!("the label {SERVICE_NAME} is missing");
        findings.push(object.diagnose(BAD_VALUE, "metadata.labels", message, "name the Service"));
        return;
    };
    let fqdn = format!("{name}.{namespace}.svc.{}", options.cluster_domain);
    let Some(service) = services.get_mut(&fqdn) else {
        findings.push(unknown_host(object, "metadata.labels", name));
        return;
    };
    service.objects.insert(object.key.clone());
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let address = endpoint
            .addresses
            .first()
            .and_then(|a| a.parse::<IpAddr>().ok());
        let Some(ip) = address else {
            let field = format!("endpoints[{index}].addresses");
            let message = "there is no IP address";
            findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
            continue;
        };
        let conditions = endpoint.conditions;
        let health = match (conditions.ready.unwrap_or(true), conditions.serving) {
            (true, _) if conditions.terminating != Some(true) => HealthStatus::Healthy,
            (_, Some(true)) => HealthStatus::Draining,
            _ => HealthStatus::Unhealthy,
        };
        let addresses = service.ports.iter().filter_map(|port| {
            let own = slice
                .ports
                .iter()
                .find(|own| own.name == port.name || slice.ports.len() == 1);
            Some((port.number, SocketAddr::new(ip, own?.port?)))
        });
        let addresses: BTreeMap<_, _> = addresses.collect();
        let target = endpoint.target_ref.clone();
        let target = target.filter(|target| !target.name.is_empty());
        // A pod of a dual-stack Service is in a slice for each kind of addresses.
        let mut others = service.workloads.iter_mut();
        let same = others.find(|other| target.is_some() && other.target == target);
        if let Some(same) = same.filter(|same| same.namespace == *namespace) {
            same.add_addresses(addresses);
            continue;
        }
        let zone = endpoint.zone.clone().unwrap_or_default();
        service.workloads.push(Workload {
            namespace: namespace.clone(),
            labels: object.metadata.labels.clone(),
            addresses,
            additional_addresses: BTreeMap::new(),
            target,
            hosts: BTreeMap::new(),
            locality: LocalityId {
                zone,
                ..LocalityId::default()
            },
            weight: 1,
            health,
            is_registered: false,
        });
    }
}
