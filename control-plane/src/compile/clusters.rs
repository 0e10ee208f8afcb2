//! Clusters and their endpoints, from services and DestinationRules.
//!
//! Also decides automatic mTLS: what servers ask for in PeerAuthentication, clients do unasked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, Cluster, ClusterEndpoints, Endpoint, HashPolicy, LbPolicy,
    LocalityEndpoints, LocalityId, StringMatcher, StringPattern, TrustSource, UpstreamTls,
};

use super::{
    CompileOptions, Compiled, balance,
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
    model::{Object, TrafficPolicy},
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

/// Adds the cluster that all clients get.
fn add(
    service: &ServiceInfo,
    port: &PortInfo,
    part: &Part<'_>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let name = cluster_name(port.number, part.name, &service.fqdn);
    let members = part.members(service);
    let port_of = Port {
        service,
        port,
        members: &members,
    };
    let made = cluster(&port_of, part, options, compiled, findings);
    let endpoints = endpoints(&name, &members, port.number);
    if let Some(setting) = made.setting {
        let placed = Placed::new(setting, endpoints.clone(), &members, port.number);
        let name = name.as_str().into();
        compiled.placed.insert(name, Arc::new(placed));
    }
    if let Some(hash) = made.hash {
        compiled.hashing.insert(name.as_str().into(), hash);
    }
    let recipe = Recipe {
        cluster: name.as_str().into(),
        port: port.number,
        labels: part.labels.clone(),
        is_auto_mtls: made.is_auto_mtls,
        own: None,
    };
    compiled.follow_recipe(&service.fqdn, recipe);
    let (clusters, all) = (&mut compiled.clusters, &mut compiled.endpoints);
    clusters.insert(name.as_str().into(), Arc::new(made.cluster));
    all.insert(name.as_str().into(), Arc::new(endpoints));
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
    let name = cluster_name(port.number, part.name, &service.fqdn);
    let members = part.members(service);
    let port_of = Port {
        service,
        port,
        members: &members,
    };
    let made = cluster(&port_of, part, options, compiled, findings);
    let own = endpoints(&name, &members, port.number);
    let recipes = compiled.recipes.get(&service.fqdn);
    let mut recipes = recipes.into_iter().flat_map(|recipes| recipes.iter());
    let is_same = recipes
        .any(|all| all.own.is_none() && all.cluster.as_str() == name && all.labels == *part.labels)
        && made.setting.is_none()
        && !compiled.placed.contains_key(name.as_str());
    if !compiled.endpoints.contains_key(name.as_str()) {
        // Clients that do not see the subset find nobody there.
        let empty = ClusterEndpoints::new(name.as_str(), Vec::new());
        let (clusters, all) = (&mut compiled.clusters, &mut compiled.endpoints);
        all.insert(name.as_str().into(), Arc::new(empty));
        clusters.insert(name.as_str().into(), Arc::new(made.cluster.clone()));
    }
    let setting = made.setting.unwrap_or(Setting::Nothing);
    let placed = Placed::new(setting, own, &members, port.number);
    let own = OwnCluster {
        clients: clients.clone(),
        cluster: Arc::new(made.cluster),
        endpoints: (!is_same).then(|| Arc::new(placed)),
        hash: made.hash,
    };
    let held = compiled.own_clusters.entry(name.as_str().into());
    let held = held.or_default();
    let recipe = Recipe {
        cluster: name.as_str().into(),
        port: port.number,
        labels: part.labels.clone(),
        is_auto_mtls: made.is_auto_mtls,
        own: Some(held.len()),
    };
    held.push(own);
    compiled.follow_recipe(&service.fqdn, recipe);
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
    let mode = apply(&policy, &mut made, findings);
    made.is_auto_mtls = mode.is_none();
    let is_mtls = mode.unwrap_or_else(|| takes_mtls(service, members, port, compiled));
    made.cluster.tls = is_mtls.then(|| upstream_tls(service, port, part.name, options));
    made
}

/// Applies what holds; what it says of mTLS.
fn apply(policy: &Effective<'_>, made: &mut Made, findings: &mut Vec<Diagnostic>) -> Option<bool> {
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
    match tls.mode.as_str() {
        "DISABLE" => Some(false),
        "ISTIO_MUTUAL" => Some(true),
        other => {
            let message = format!("{other:?} is not supported: mTLS is used");
            wrong_at(place, "mode", message);
            // Never less than was asked for.
            Some(true)
        }
    }
}

/// Automatic mTLS: whether the endpoints take it.
pub(super) fn takes_mtls(
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
    let is_strict = |namespace: &str| {
        let mode = compiled
            .security
            .mode(namespace, &BTreeMap::new(), port.number);
        mode == MtlsMode::Strict
    };
    members.iter().all(|workload| match mode(workload) {
        // Labels that it gave itself do not take it out of its namespace's policy.
        _ if workload.is_registered && is_strict(&workload.namespace) => true,
        MtlsMode::Strict => true,
        MtlsMode::Permissive => workload
            .labels
            .get(TLS_MODE)
            .is_some_and(|mode| mode == "istio"),
        MtlsMode::Disable => false,
    })
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

pub(super) fn endpoints(name: &str, members: &[&Workload], port: u16) -> ClusterEndpoints {
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
        });
    }
    ClusterEndpoints::new(name, localities.into_values().collect())
}
