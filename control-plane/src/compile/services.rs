//! Services, their endpoints and clusters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, CircuitBreakers, Cluster, ClusterEndpoints, DEFAULT_CONNECT_TIMEOUT,
    Discovery, Endpoint, HealthStatus, HttpVersion, LbPolicy, LocalityEndpoints, LocalityId,
    StringMatcher, StringPattern, TrustSource, UpstreamTls,
};

use super::{CompileOptions, Compiled, security::MtlsMode, value};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{
        DestinationRule, EndpointSlice, Object, ObjectSet, Service, ServiceEntry, Spec,
        TrafficPolicy,
    },
};

/// Istio's annotation with a Service's accounts, separated by commas.
const ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
/// Kubernetes' label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Istio's label of workloads that take mTLS.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// What balances unless a rule says otherwise, as in Istio.
const DEFAULT_LB: LbPolicy = LbPolicy::LeastRequest { choice_count: 2 };

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
    accounts: BTreeSet<String>,
    extra_names: Vec<String>,
    is_external: bool,
}

/// A port of a service.
#[derive(Clone, Debug)]
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
    locality: LocalityId,
    weight: u32,
    health: HealthStatus,
}

impl ServiceInfo {
    /// All ways to write the name, with 0 for the name in full.
    pub(super) fn spellings(&self, cluster_domain: &str) -> Vec<(String, u8)> {
        let (name, namespace) = (&self.name, &self.namespace);
        let mut all = vec![(self.fqdn.clone(), 0)];
        if self.fqdn == format!("{name}.{namespace}.svc.{cluster_domain}") {
            all.push((format!("{name}.{namespace}.svc"), 1));
            all.push((format!("{name}.{namespace}"), 1));
        }
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
    services
}

fn http_version(protocol: &str) -> HttpVersion {
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
    if !matches!(entry.resolution.as_deref(), Some("STATIC")) {
        let message = "only resolution STATIC is supported";
        let help = "write resolution: STATIC and list the endpoints";
        findings.push(object.diagnose(BAD_VALUE, "spec.resolution", message, help));
    }
    let mut info = ServiceInfo {
        fqdn: host.to_ascii_lowercase(),
        namespace: namespace.clone(),
        name,
        extra_names: entry.subject_alt_names.clone(),
        is_external: entry.location.as_deref() == Some("MESH_EXTERNAL"),
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
    for (index, endpoint) in entry.endpoints.iter().enumerate() {
        let Ok(ip) = endpoint.address.parse::<IpAddr>() else {
            let field = format!("spec.endpoints[{index}].address");
            let message = format!("{:?} is not an IP address", endpoint.address);
            findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
            continue;
        };
        let addresses = entry.ports.iter().map(|port| {
            let own = endpoint.ports.get(&port.name).copied().or(port.target_port);
            (port.number, SocketAddr::new(ip, own.unwrap_or(port.number)))
        });
        if let Some(account) = &endpoint.service_account {
            info.accounts.insert(format!("ns/{namespace}/sa/{account}"));
        }
        let mut place = endpoint.locality.as_deref().unwrap_or_default().split('/');
        let mut next = || place.next().unwrap_or_default().to_owned();
        info.workloads.push(Workload {
            namespace: namespace.clone(),
            labels: endpoint.labels.clone(),
            addresses: addresses.collect(),
            locality: LocalityId {
                region: next(),
                zone: next(),
                sub_zone: next(),
            },
            weight: endpoint.weight.unwrap_or(1).max(1),
            health: HealthStatus::Healthy,
        });
    }
    info
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
        let zone = endpoint.zone.clone().unwrap_or_default();
        service.workloads.push(Workload {
            namespace: namespace.clone(),
            labels: object.metadata.labels.clone(),
            addresses: addresses.collect(),
            locality: LocalityId {
                zone,
                ..LocalityId::default()
            },
            weight: 1,
            health,
        });
    }
}

/// The name of a cluster and its endpoints.
pub(super) fn cluster_name(port: u16, subset: &str, fqdn: &str) -> String {
    format!("outbound|{port}|{subset}|{fqdn}")
}

pub(super) fn compile_clusters(
    service: &ServiceInfo,
    rule: Option<(&Arc<Object>, &DestinationRule)>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let nothing = BTreeMap::new();
    let mut parts = vec![(
        "",
        &nothing,
        rule.and_then(|(_, rule)| rule.traffic_policy.as_ref()),
    )];
    for subset in rule.iter().flat_map(|(_, rule)| &rule.subsets) {
        let policy = subset.traffic_policy.as_ref().or(parts[0].2);
        parts.push((&subset.name, &subset.labels, policy));
    }
    for port in &service.ports {
        for (subset, labels, policy) in &parts {
            let name = cluster_name(port.number, subset, &service.fqdn);
            let members: Vec<_> = service
                .workloads
                .iter()
                .filter(|w| {
                    labels
                        .iter()
                        .all(|(key, value)| w.labels.get(key) == Some(value))
                })
                .collect();
            let mut cluster = Cluster {
                name: name.as_str().into(),
                discovery: Discovery::Eds(name.as_str().into()),
                lb_policy: DEFAULT_LB,
                circuit_breakers: CircuitBreakers::default(),
                connect_timeout: DEFAULT_CONNECT_TIMEOUT,
                http_version: port.http_version,
                tls: None,
            };
            let mut mode = None;
            if let (Some(policy), Some((object, _))) = (policy, rule) {
                mode = apply_policy(object, policy, &mut cluster, findings);
            }
            let is_mtls = mode.unwrap_or_else(|| takes_mtls(service, &members, port, compiled));
            cluster.tls = is_mtls.then(|| upstream_tls(service, port, subset, options));
            compiled
                .clusters
                .insert(name.as_str().into(), Arc::new(cluster));
            let endpoints = endpoints(&name, &members, port.number);
            compiled
                .endpoints
                .insert(name.as_str().into(), Arc::new(endpoints));
        }
    }
}

/// Applies a traffic policy; what it says of mTLS.
fn apply_policy(
    object: &Object,
    policy: &TrafficPolicy,
    cluster: &mut Cluster,
    findings: &mut Vec<Diagnostic>,
) -> Option<bool> {
    let mut wrong = |field: &str, message: String| {
        let field = format!("spec.trafficPolicy.{field}");
        findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
    };
    let simple = policy
        .load_balancer
        .as_ref()
        .and_then(|lb| lb.simple.as_deref());
    match simple {
        None | Some("UNSPECIFIED") => {}
        Some("ROUND_ROBIN") => cluster.lb_policy = LbPolicy::RoundRobin,
        Some("LEAST_REQUEST" | "LEAST_CONN") => cluster.lb_policy = DEFAULT_LB,
        Some("RANDOM") => cluster.lb_policy = LbPolicy::Random,
        Some(other) => wrong("loadBalancer.simple", format!("{other} is not supported")),
    }
    let pool = policy.connection_pool.as_ref();
    if let Some(limit) = pool
        .and_then(|p| p.http.as_ref())
        .and_then(|http| http.http2_max_requests)
    {
        cluster.circuit_breakers.max_requests = limit;
    }
    let timeout = pool
        .and_then(|p| p.tcp.as_ref())
        .and_then(|tcp| tcp.connect_timeout.as_deref());
    match timeout.map(value::duration) {
        Some(Ok(timeout)) => cluster.connect_timeout = timeout,
        Some(Err(message)) => wrong("connectionPool.tcp.connectTimeout", message),
        None => {}
    }
    if let Some(budget) = &policy.retry_budget {
        let held = &mut cluster.circuit_breakers.retry_budget;
        held.min_retry_concurrency = budget
            .min_retry_concurrency
            .unwrap_or(held.min_retry_concurrency);
        match budget.percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => held.percent = percent as u32,
            Some(percent) => wrong("retryBudget.percent", format!("{percent} is not 0 to 100")),
            None => {}
        }
    }
    match policy.tls.as_ref().map(|tls| tls.mode.as_str()) {
        None => None,
        Some("DISABLE") => Some(false),
        Some("ISTIO_MUTUAL") => Some(true),
        Some(other) => {
            wrong(
                "tls.mode",
                format!("{other:?} is not supported: mTLS is used"),
            );
            // Never less than was asked for.
            Some(true)
        }
    }
}

/// Automatic mTLS: whether the endpoints take it.
fn takes_mtls(
    service: &ServiceInfo,
    members: &[&Workload],
    port: &PortInfo,
    compiled: &Compiled,
) -> bool {
    if service.is_external {
        return false;
    }
    let mode = |workload: &Workload| {
        let port = workload
            .addresses
            .get(&port.number)
            .map_or(port.number, SocketAddr::port);
        compiled
            .security
            .mode(&workload.namespace, &workload.labels, port)
    };
    if members.is_empty() {
        let mode = compiled
            .security
            .mode(&service.namespace, &BTreeMap::new(), port.number);
        return mode == MtlsMode::Strict;
    }
    members.iter().all(|workload| match mode(workload) {
        MtlsMode::Strict => true,
        MtlsMode::Permissive => workload
            .labels
            .get(TLS_MODE)
            .is_some_and(|mode| mode == "istio"),
        MtlsMode::Disable => false,
    })
}

fn upstream_tls(
    service: &ServiceInfo,
    port: &PortInfo,
    subset: &str,
    options: &CompileOptions,
) -> UpstreamTls {
    let domain = &options.trust_domain;
    let accounts = service
        .accounts
        .iter()
        .map(|path| format!("spiffe://{domain}/{path}"));
    let mut names: Vec<_> = accounts
        .chain(service.extra_names.iter().cloned())
        .map(StringMatcher::exact)
        .collect();
    if names.is_empty() {
        let any_account = format!("spiffe://{domain}/ns/{}/sa/", service.namespace);
        names.extend(StringMatcher::new(StringPattern::Prefix(any_account)));
    }
    UpstreamTls {
        identity: Some(CertificateSource::Provider {
            instance: "default".into(),
        }),
        roots: TrustSource::Sds("ROOTCA".into()),
        subject_alt_names: names,
        sni: Some(format!(
            "outbound_.{}_.{subset}_.{}",
            port.number, service.fqdn
        )),
    }
}

fn endpoints(name: &str, members: &[&Workload], port: u16) -> ClusterEndpoints {
    let mut localities = BTreeMap::<&LocalityId, LocalityEndpoints>::new();
    let mut seen = BTreeSet::new();
    for workload in members {
        let Some(address) = workload.addresses.get(&port) else {
            continue;
        };
        if !seen.insert(*address) {
            continue;
        }
        let locality = localities
            .entry(&workload.locality)
            .or_insert_with(|| LocalityEndpoints {
                locality: workload.locality.clone(),
                priority: 0,
                weight: 0,
                endpoints: Vec::new(),
            });
        locality.weight += workload.weight;
        locality.endpoints.push(Endpoint {
            address: *address,
            weight: workload.weight,
            health: workload.health,
            hostname: String::new(),
        });
    }
    ClusterEndpoints {
        name: name.into(),
        localities: localities.into_values().collect(),
    }
}
