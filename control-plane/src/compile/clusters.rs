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
            let made = cluster(
                &place,
                (object, &part.policies),
                options,
                compiled,
                findings,
            );
            let endpoints = endpoints(&name, &members, port.number);
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
                let own = cluster(
                    &place,
                    (Some(object), &policies),
                    options,
                    compiled,
                    findings,
                );
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
            compiled
                .clusters
                .insert(name.as_str().into(), Arc::new(made.cluster));
            compiled
                .endpoints
                .insert(name.as_str().into(), Arc::new(endpoints));
        }
    }
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
    let mut mode = None;
    if let Some(object) = object {
        let policies = policies.iter().map(|(field, policy)| (&**field, *policy));
        let policy = policy::effective(policies, port.number);
        mode = apply(object, &policy, &mut made, findings);
    }
    let is_mtls = mode.unwrap_or_else(|| takes_mtls(service, members, port, compiled));
    made.cluster.tls = is_mtls.then(|| upstream_tls(service, port, subset, options));
    made
}

/// Applies what holds; what it says of mTLS.
fn apply(
    object: &Object,
    policy: &Effective<'_>,
    made: &mut Made,
    findings: &mut Vec<Diagnostic>,
) -> Option<bool> {
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
            details: None,
        });
    }
    ClusterEndpoints::new(name, localities.into_values().collect())
}
