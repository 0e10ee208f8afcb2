//! Clusters and their endpoints, from services and DestinationRules.
//!
//! Also decides automatic mTLS: what servers ask for in PeerAuthentication, clients do unasked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, Cluster, ClusterEndpoints, Discovery, Endpoint, EndpointDetails, HashPolicy,
    HashSource, LbMetadata, LbPolicy, LocalityEndpoints, LocalityId, RingHash, SanMatcher,
    SocketMatch, StringMatcher, StringPattern, TrustSource, UpstreamTls,
};

use super::{
    CompileOptions, Compiled, balance,
    client_tls::{self, ClientTls},
    destination_rules::{Held, Holding},
    locality::{Placed, Setting},
    own::OwnCluster,
    patch::Recipe,
    policy::{self, Effective, Place},
    pool,
    scoped::ClientMatch,
    security::MtlsMode,
    services::{PortInfo, ServiceInfo, Workload},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{LoadBalancer, Object, TrafficPolicy},
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
    /// What a later one says beats what an earlier one says.
    policies: Vec<(Place<'p>, &'p TrafficPolicy)>,
}

impl Part<'_> {
    fn members<'w>(&self, service: &'w ServiceInfo) -> Vec<&'w Workload> {
        let workloads = service.workloads.iter();
        workloads
            .filter(|workload| Recipe::has(self.labels, workload))
            .collect()
    }
}

/// All of the service first, then the subsets.
fn parts<'p>(held: &Held<'p>, nothing: &'p BTreeMap<String, String>) -> Vec<Part<'p>> {
    let place = |object: &'p Object, field: String| Place { object, field };
    let inherited = held.policy.map(|(object, policy)| {
        let place = place(object, "spec.trafficPolicy".to_owned());
        (place, policy)
    });
    let all = Part {
        name: "",
        labels: nothing,
        policies: inherited.iter().cloned().collect(),
    };
    let subsets = held.subsets.iter().map(|(object, index, subset)| {
        let field = format!("spec.subsets[{index}].trafficPolicy");
        let own = subset.traffic_policy.as_ref();
        let own = own.map(|policy| (place(object, field), policy));
        Part {
            name: &subset.name,
            labels: &subset.labels,
            policies: inherited.iter().cloned().chain(own).collect(),
        }
    });
    std::iter::once(all).chain(subsets).collect()
}

/// The clusters of all ports and parts of a service.
pub(super) fn compile(
    service: &ServiceInfo,
    rules: &Holding<'_>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let nothing = BTreeMap::new();
    for port in &service.ports {
        for part in parts(&rules.all, &nothing) {
            add(service, port, &part, options, compiled, findings);
        }
        for (clients, held) in &rules.some {
            for part in parts(held, &nothing) {
                add_own(service, port, (clients, &part), options, compiled, findings);
            }
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

/// Adds the cluster that all clients get.
fn add(
    service: &ServiceInfo,
    port: &PortInfo,
    part: &Part<'_>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let Built {
        name,
        members,
        made,
        endpoints,
        recipe,
    } = build(service, port, part, options, compiled, findings);
    if let Some(setting) = made.setting {
        let placed = Placed::new(setting, endpoints.clone(), &members, port.number);
        let name = name.as_str().into();
        compiled.placed.insert(name, Arc::new(placed));
    }
    if let Some(hash) = made.hash {
        compiled.hashing.insert(name.as_str().into(), hash);
    }
    compiled.follow_recipe(&service.fqdn, recipe);
    let (clusters, all) = (&mut compiled.clusters, &mut compiled.endpoints);
    if matches!(made.cluster.discovery, Discovery::Eds(_)) {
        all.insert(name.as_str().into(), Arc::new(endpoints));
    }
    clusters.insert(name.as_str().into(), Arc::new(made.cluster));
}

/// Adds the cluster that some clients get instead.
fn add_own(
    service: &ServiceInfo,
    port: &PortInfo,
    (clients, part): (&ClientMatch, &Part<'_>),
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let Built {
        name,
        members,
        made,
        endpoints,
        recipe,
    } = build(service, port, part, options, compiled, findings);
    let recipes = compiled.recipes.get(&service.fqdn);
    let mut recipes = recipes.into_iter().flat_map(|recipes| recipes.iter());
    let is_same = recipes
        .any(|all| all.own.is_none() && all.cluster.as_str() == name && all.labels == *part.labels)
        && made.setting.is_none()
        && !compiled.placed.contains_key(name.as_str());
    if !compiled.clusters.contains_key(name.as_str()) {
        // Clients that do not see the subset find nobody there.
        let empty = ClusterEndpoints::new(name.as_str(), Vec::new());
        let (clusters, all) = (&mut compiled.clusters, &mut compiled.endpoints);
        all.insert(name.as_str().into(), Arc::new(empty));
        clusters.insert(name.as_str().into(), Arc::new(made.cluster.clone()));
    }
    let setting = made.setting.unwrap_or(Setting::Nothing);
    let placed = Placed::new(setting, endpoints, &members, port.number);
    let own = OwnCluster {
        clients: clients.clone(),
        cluster: Arc::new(made.cluster),
        endpoints: (!is_same).then(|| Arc::new(placed)),
        hash: made.hash,
    };
    let held = compiled.own_clusters.entry(name.as_str().into());
    let held = held.or_default();
    let recipe = Recipe {
        own: Some(held.len()),
        ..recipe
    };
    held.push(own);
    compiled.follow_recipe(&service.fqdn, recipe);
}

/// The cluster of a part of a service, before it is known who gets it.
struct Built<'s> {
    name: String,
    members: Vec<&'s Workload>,
    made: Made,
    endpoints: ClusterEndpoints,
    /// As that of a cluster that all clients get.
    recipe: Recipe,
}

fn build<'s>(
    service: &'s ServiceInfo,
    port: &PortInfo,
    part: &Part<'_>,
    options: &CompileOptions,
    compiled: &Compiled,
    findings: &mut Vec<Diagnostic>,
) -> Built<'s> {
    let name = cluster_name(port.number, part.name, &service.fqdn);
    let members = part.members(service);
    let place = Port {
        service,
        port,
        members: &members,
    };
    let made = cluster(&place, part, options, compiled, findings);
    let recipe = Recipe {
        cluster: name.as_str().into(),
        port: port.number,
        labels: part.labels.clone(),
        is_auto_mtls: made.is_auto_mtls,
        own: None,
    };
    Built {
        endpoints: endpoints_of(&name, &members, (service, port), compiled),
        name,
        members,
        made,
        recipe,
    }
}

/// A port of a part of a service.
struct Port<'p> {
    service: &'p ServiceInfo,
    port: &'p PortInfo,
    members: &'p [&'p Workload],
}

/// A cluster, and what it asks of routes and endpoints.
struct Made {
    cluster: Cluster,
    hash: Option<HashPolicy>,
    setting: Option<Setting>,
    /// Whether the workloads decide if clients speak mTLS.
    is_auto_mtls: bool,
}

fn cluster(
    place: &Port<'_>,
    part: &Part<'_>,
    options: &CompileOptions,
    compiled: &Compiled,
    findings: &mut Vec<Diagnostic>,
) -> Made {
    let Port {
        service,
        port,
        members,
    } = *place;
    let name = cluster_name(port.number, part.name, &service.fqdn);
    let mut made = Made {
        cluster: Cluster {
            lb_policy: default_lb(),
            http_version: port.http_version,
            ..Cluster::new(name)
        },
        hash: None,
        setting: None,
        is_auto_mtls: false,
    };
    let policy = policy::effective(&part.policies, port.number);
    let balancing = policy.load_balancer.as_ref().map(|(_, spec)| *spec);
    if service.has_affinity && balancing.is_none_or(says_nothing) {
        made.cluster.lb_policy = LbPolicy::RingHash(RingHash::default());
        made.hash = Some(HashPolicy {
            source: HashSource::SourceIp,
            terminal: false,
        });
    }
    let places = balancing.is_none_or(|spec| spec.locality_lb_setting.is_none());
    made.setting = (service.prefers_close && places).then(Setting::same_zone);
    let asked = apply(&policy, service, &mut made, findings);
    made.is_auto_mtls = asked.is_none();
    let of_mesh = || upstream_tls(service, port, part.name, options);
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
    if let Some(discovery) = dns(service, members, port.number) {
        made.cluster.discovery = discovery;
    }
    made
}

/// Whether a rule leaves it to the service how endpoints are chosen.
fn says_nothing(spec: &LoadBalancer) -> bool {
    spec.simple.is_none() && spec.consistent_hash.is_none()
}

/// Applies what holds; what it says of TLS.
fn apply(
    policy: &Effective<'_>,
    service: &ServiceInfo,
    made: &mut Made,
    findings: &mut Vec<Diagnostic>,
) -> Option<ClientTls> {
    let mut wrong_at = |place: &Place<'_>, field: &str, message: String| {
        let field = match field {
            "" => place.field.clone(),
            field => format!("{}.{field}", place.field),
        };
        findings.push(place.object.diagnose(BAD_VALUE, &field, message, ""));
    };
    let cluster = &mut made.cluster;
    if let Some((place, spec)) = &policy.load_balancer {
        let wrong = &mut |field: &str, message| wrong_at(place, field, message);
        let (hash, setting) = balance::apply(spec, cluster, wrong);
        made.hash = hash.or_else(|| made.hash.take());
        made.setting = setting.or_else(|| made.setting.take());
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
pub(super) enum Taken {
    All,
    Some,
    None,
}

impl Taken {
    /// What a cluster was made for.
    pub(super) fn by(cluster: &Cluster) -> Self {
        match (&cluster.tls, cluster.socket_matches.is_empty()) {
            (Some(_), _) => Self::All,
            (None, false) => Self::Some,
            (None, true) => Self::None,
        }
    }
}

/// Automatic mTLS: whether the endpoints take it.
pub(super) fn takes_mtls(
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

/// Endpoints; where only some take mTLS, those have the label of it, whatever the cluster says.
pub(super) fn endpoints_of(
    name: &str,
    members: &[&Workload],
    (service, port): (&ServiceInfo, &PortInfo),
    compiled: &Compiled,
) -> ClusterEndpoints {
    let is_mixed = takes_mtls(service, members, port, compiled) == Taken::Some;
    labelled_endpoints(name, members, port.number, |workload| {
        is_mixed && is_taker(workload, port, compiled)
    })
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
        let additional = workload.additional_addresses.get(&port);
        let details = EndpointDetails {
            socket_labels: is_taker(workload).then(|| Arc::clone(&labels)),
            additional_addresses: additional.cloned().unwrap_or_default(),
            ..EndpointDetails::default()
        };
        let endpoint = Endpoint {
            weight: workload.weight,
            health: workload.health,
            ..Endpoint::new(*address)
        };
        locality.endpoints.push(endpoint.with_details(details));
    }
    ClusterEndpoints::new(name, localities.into_values().collect())
}
