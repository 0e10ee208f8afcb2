//! Clusters and their endpoints, from services and DestinationRules.
//!
//! Also decides automatic mTLS: what servers ask for in PeerAuthentication, clients do unasked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, Cluster, ClusterEndpoints, Discovery, Endpoint, HashPolicy, LbMetadata,
    LbPolicy, LocalityEndpoints, LocalityId, SanMatcher, SocketMatch, StringMatcher, StringPattern,
    TrustSource, UpstreamTls,
};

use super::{
    CompileOptions, Compiled, balance,
    client_tls::{self, ClientTls},
    locality::{Placed, Setting},
    policy::{self, Effective},
    pool,
    scoped::ClientMatch,
    security::MtlsMode,
    services::{PortInfo, ServiceInfo, Workload},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{DestinationRule, Object, TrafficPolicy},
};

/// Istio's label of workloads that take mTLS.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// What balances unless a rule says otherwise, as in Istio.
pub(super) fn default_lb() -> LbPolicy {
    LbPolicy::least_request(2)
}

/// The name of a cluster and its endpoints.
pub(super) fn cluster_name(port: u16, subset: &str, fqdn: &str) -> String {
    format!("outbound|{port}|{subset}|{fqdn}")
}

/// A part of a service: all of it, or a subset.
struct Part<'p> {
    name: &'p str,
    labels: &'p BTreeMap<String, String>,
    /// Policies with their fields; what a later one says beats what an earlier one says.
    policies: Vec<(String, &'p TrafficPolicy)>,
}

impl Part<'_> {
    fn has(&self, workload: &Workload) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

/// All of the service first, then the subsets of its rule.
fn parts<'p>(
    rule: Option<&'p DestinationRule>,
    nothing: &'p BTreeMap<String, String>,
) -> Vec<Part<'p>> {
    let of_all = rule.and_then(|rule| rule.traffic_policy.as_ref());
    let inherited = of_all.map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let all = Part {
        name: "",
        labels: nothing,
        policies: inherited.iter().cloned().collect(),
    };
    let subsets = rule.iter().flat_map(|rule| rule.subsets.iter().enumerate());
    let subsets = subsets.map(|(index, subset)| {
        let field = format!("spec.subsets[{index}].trafficPolicy");
        let own = subset.traffic_policy.as_ref().map(|policy| (field, policy));
        Part {
            name: &subset.name,
            labels: &subset.labels,
            policies: inherited.iter().cloned().chain(own).collect(),
        }
    });
    std::iter::once(all).chain(subsets).collect()
}

/// The DestinationRules of a service: one for all clients, and those for some.
#[derive(Debug, Default)]
pub(super) struct Rules<'r> {
    pub(super) of_all: Option<DeclaredRule<'r>>,
    pub(super) of_some: Vec<DeclaredRule<'r>>,
}

pub(super) type DeclaredRule<'r> = (&'r Arc<Object>, &'r DestinationRule);

/// The clusters of all ports and parts of a service.
pub(super) fn compile(
    service: &ServiceInfo,
    rules: &Rules<'_>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let nothing = BTreeMap::new();
    let rule = rules.of_all;
    let parts = parts(rule.map(|(_, rule)| rule), &nothing);
    for port in &service.ports {
        for part in &parts {
            let name = cluster_name(port.number, part.name, &service.fqdn);
            let members: Vec<_> = service.workloads.iter().filter(|w| part.has(w)).collect();
            let place = Port {
                service,
                port,
                subset: part.name,
                members: &members,
            };
            let object = rule.map(|(object, _)| object);
            let mut made = cluster(
                &place,
                (object, &part.policies),
                options,
                compiled,
                findings,
            );
            if let Some(discovery) = dns(service, &members, port.number) {
                made.cluster.discovery = discovery;
            }
            let is_taker = |workload: &Workload| {
                let is_mixed = !made.cluster.socket_matches.is_empty();
                is_mixed && is_taker(workload, port, compiled)
            };
            let endpoints = labelled_endpoints(&name, &members, port.number, is_taker);
            if let Some(setting) = made.setting {
                let placed = Placed::new(setting, endpoints.clone(), &members, port.number);
                compiled
                    .placed
                    .insert(name.as_str().into(), Arc::new(placed));
            }
            if let Some(hash) = made.hash {
                compiled.hashing.insert(name.as_str().into(), hash);
            }
            for (object, own) in &rules.of_some {
                let client = ClientMatch::of(object, own);
                let policies = own.traffic_policy.as_ref();
                let field = "spec.trafficPolicy".to_owned();
                let policies: Vec<_> = policies.map(|policy| (field, policy)).into_iter().collect();
                let mut own = cluster(
                    &place,
                    (Some(object), &policies),
                    options,
                    compiled,
                    findings,
                );
                own.cluster.discovery = made.cluster.discovery.clone();
                if own.hash.is_some() || own.setting.is_some() {
                    let field = "spec.trafficPolicy.loadBalancer";
                    let message = "consistentHash and localityLbSetting hold for all clients";
                    let help = "write them into the rule without a workloadSelector";
                    findings.push(object.diagnose(BAD_VALUE, field, message, help));
                }
                compiled
                    .own_clusters
                    .entry(name.as_str().into())
                    .or_default()
                    .push((client, Arc::new(own.cluster)));
            }
            if matches!(made.cluster.discovery, Discovery::Eds(_)) {
                let name = name.as_str().into();
                compiled.endpoints.insert(name, Arc::new(endpoints));
            }
            let cluster = Arc::new(made.cluster);
            compiled.clusters.insert(name.as_str().into(), cluster);
        }
    }
}

/// Hosts that clients look up by themselves; `None` where the control plane knows the addresses.
fn dns(service: &ServiceInfo, members: &[&Workload], port: u16) -> Option<Discovery> {
    let hosts = members.iter().filter_map(|member| member.hosts.get(&port));
    let hosts: BTreeSet<_> = hosts.cloned().collect();
    let first = hosts.first()?.clone();
    Some(match service.is_one_host {
        true => Discovery::LogicalDns(first),
        false => Discovery::StrictDns(hosts.into_iter().collect()),
    })
}

/// A port of a part of a service.
struct Port<'p> {
    service: &'p ServiceInfo,
    port: &'p PortInfo,
    subset: &'p str,
    members: &'p [&'p Workload],
}

/// A cluster, and what it asks of routes and endpoints.
struct Made {
    cluster: Cluster,
    hash: Option<HashPolicy>,
    setting: Option<Setting>,
}

fn cluster(
    place: &Port<'_>,
    (object, policies): (Option<&Arc<Object>>, &[(String, &TrafficPolicy)]),
    options: &CompileOptions,
    compiled: &Compiled,
    findings: &mut Vec<Diagnostic>,
) -> Made {
    let Port {
        service,
        port,
        subset,
        members,
    } = *place;
    let name = cluster_name(port.number, subset, &service.fqdn);
    let mut made = Made {
        cluster: Cluster {
            lb_policy: default_lb(),
            http_version: port.http_version,
            ..Cluster::new(name)
        },
        hash: None,
        setting: None,
    };
    let mut asked = None;
    if let Some(object) = object {
        let policies = policies.iter().map(|(field, policy)| (&**field, *policy));
        let policy = policy::effective(policies, port.number);
        asked = apply(object, &policy, service, &mut made, findings);
    }
    let of_mesh = || upstream_tls(service, port, subset, options);
    match asked {
        Some(ClientTls::Off) => {}
        Some(ClientTls::Outside(tls)) => made.cluster.tls = Some(tls),
        Some(ClientTls::Mesh { sni, names }) => {
            let mut tls = of_mesh();
            tls.sni = sni.or(tls.sni);
            if !names.is_empty() {
                tls.subject_alt_names = names;
            }
            made.cluster.tls = Some(tls);
        }
        None => match takes_mtls(service, members, port, compiled) {
            Taken::All => made.cluster.tls = Some(of_mesh()),
            Taken::Some => made.cluster.socket_matches = by_mode(of_mesh()),
            Taken::None => {}
        },
    }
    made
}

/// Applies what holds; what it says of TLS.
fn apply(
    object: &Object,
    policy: &Effective<'_>,
    service: &ServiceInfo,
    made: &mut Made,
    findings: &mut Vec<Diagnostic>,
) -> Option<ClientTls> {
    let mut wrong_at = |place: &str, field: &str, message: String| {
        let field = match field {
            "" => place.to_owned(),
            field => format!("{place}.{field}"),
        };
        findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
    };
    let cluster = &mut made.cluster;
    if let Some((place, spec)) = &policy.load_balancer {
        let wrong = &mut |field: &str, message| wrong_at(place, field, message);
        let (hash, setting) = balance::apply(spec, cluster, wrong);
        (made.hash, made.setting) = (hash, setting);
    }
    if let Some((place, spec)) = &policy.outlier_detection {
        balance::apply_outliers(spec, cluster, &mut |field, message| {
            wrong_at(place, field, message);
        });
    }
    if let Some((place, spec)) = &policy.connection_pool {
        pool::apply(spec, cluster, &mut |field, message| {
            wrong_at(place, field, message);
        });
    }
    if let Some((place, budget)) = &policy.retry_budget {
        // A share of the requests instead of a number.
        cluster.circuit_breakers.max_retries = None;
        let held = &mut cluster.circuit_breakers.retry_budget;
        held.min_retry_concurrency = budget
            .min_retry_concurrency
            .unwrap_or(held.min_retry_concurrency);
        match budget.percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => held.percent = percent as u32,
            Some(percent) => wrong_at(place, "percent", format!("{percent} is not 0 to 100")),
            None => {}
        }
    }
    let (place, tls) = policy.tls.as_ref()?;
    let wrong = &mut |field: &str, message| wrong_at(place, field, message);
    Some(client_tls::read(tls, &service.fqdn, wrong))
}

/// Label of endpoints that take mTLS, which their socket is chosen by (as Istio has it).
const SOCKET_MODE: &str = "tlsMode";
/// Its value.
const SOCKET_MTLS: &str = "istio";

fn socket_labels() -> LbMetadata {
    LbMetadata::from([(SOCKET_MODE.to_owned(), SOCKET_MTLS.into())])
}

/// mTLS for endpoints that take it, and plaintext for the others.
fn by_mode(tls: UpstreamTls) -> Vec<SocketMatch> {
    let socket = |name: &str, labels, tls| SocketMatch {
        name: name.to_owned(),
        labels,
        tls,
    };
    vec![
        socket("tlsMode-istio", socket_labels(), Some(tls)),
        socket("tlsMode-disabled", LbMetadata::new(), None),
    ]
}

/// How many of the endpoints take mTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    All,
    Some,
    None,
}

/// Automatic mTLS: whether the endpoints take it.
fn takes_mtls(
    service: &ServiceInfo,
    members: &[&Workload],
    port: &PortInfo,
    compiled: &Compiled,
) -> Taken {
    if service.is_external {
        return Taken::None;
    }
    if members.is_empty() {
        let security = &compiled.security;
        let mode = security.mode(&service.namespace, &BTreeMap::new(), port.number);
        return match mode {
            MtlsMode::Strict => Taken::All,
            MtlsMode::Permissive | MtlsMode::Disable => Taken::None,
        };
    }
    let takers = members
        .iter()
        .filter(|workload| is_taker(workload, port, compiled));
    match takers.count() {
        0 => Taken::None,
        count if count == members.len() => Taken::All,
        _ => Taken::Some,
    }
}

fn is_taker(workload: &Workload, port: &PortInfo, compiled: &Compiled) -> bool {
    let own_port = workload.addresses.get(&port.number);
    let own_port = own_port.map_or(port.number, SocketAddr::port);
    let security = &compiled.security;
    let namespace = &workload.namespace;
    let of_namespace = || security.mode(namespace, &BTreeMap::new(), port.number);
    match security.mode(namespace, &workload.labels, own_port) {
        // Labels that it gave itself do not take it out of its namespace's policy.
        _ if workload.is_registered && of_namespace() == MtlsMode::Strict => true,
        MtlsMode::Strict => true,
        MtlsMode::Permissive => workload
            .labels
            .get(TLS_MODE)
            .is_some_and(|mode| mode == "istio"),
        MtlsMode::Disable => false,
    }
}

pub(super) fn upstream_tls(
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
        .map(SanMatcher::exact)
        .collect();
    if names.is_empty() {
        let any_account = format!("spiffe://{domain}/ns/{}/sa/", service.namespace);
        let any_account = StringMatcher::new(StringPattern::Prefix(any_account));
        names.extend(any_account.map(SanMatcher::from));
    }
    UpstreamTls {
        identity: Some(CertificateSource::Provider {
            instance: "default".into(),
        }),
        subject_alt_names: names,
        sni: Some(format!(
            "outbound_.{}_.{subset}_.{}",
            port.number, service.fqdn
        )),
        ..UpstreamTls::new(TrustSource::Sds("ROOTCA".into()))
    }
}

pub(super) fn endpoints(name: &str, members: &[&Workload], port: u16) -> ClusterEndpoints {
    labelled_endpoints(name, members, port, |_| false)
}

/// Endpoints, of which `is_taker` have the label of mTLS.
fn labelled_endpoints(
    name: &str,
    members: &[&Workload],
    port: u16,
    is_taker: impl Fn(&Workload) -> bool,
) -> ClusterEndpoints {
    let labels = Arc::new(socket_labels());
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
        locality.weight = locality.weight.saturating_add(workload.weight);
        locality.endpoints.push(Endpoint {
            address: *address,
            weight: workload.weight,
            health: workload.health,
            hostname: String::new(),
            metadata: Default::default(),
            socket_labels: is_taker(workload).then(|| Arc::clone(&labels)),
        });
    }
    ClusterEndpoints::new(name, localities.into_values().collect())
}
