//! Clusters and their endpoints, from services and DestinationRules.
//!
//! Also decides automatic mTLS: what servers ask for in PeerAuthentication, clients do unasked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, Cluster, ClusterEndpoints, Endpoint, LbPolicy, LocalityEndpoints,
    LocalityId, StringMatcher, StringPattern, TrustSource, UpstreamTls,
};

use super::{
    CompileOptions, Compiled, balance,
    security::MtlsMode,
    services::{PortInfo, ServiceInfo, Workload},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{DestinationRule, Object, TrafficPolicy},
    value,
};

/// Istio's label of workloads that take mTLS.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// What balances unless a rule says otherwise, as in Istio.
fn default_lb() -> LbPolicy {
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

/// The clusters of all ports and parts of a service.
pub(super) fn compile(
    service: &ServiceInfo,
    rule: Option<(&Arc<Object>, &DestinationRule)>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let nothing = BTreeMap::new();
    let parts = parts(rule.map(|(_, rule)| rule), &nothing);
    for port in &service.ports {
        for part in &parts {
            let name = cluster_name(port.number, part.name, &service.fqdn);
            let members: Vec<_> = service.workloads.iter().filter(|w| part.has(w)).collect();
            let mut cluster = Cluster {
                lb_policy: default_lb(),
                http_version: port.http_version,
                ..Cluster::new(name.as_str())
            };
            let mut mode = None;
            for (field, policy) in &part.policies {
                if let Some((object, _)) = rule {
                    mode = apply_policy(object, field, policy, &mut cluster, findings).or(mode);
                }
            }
            let is_mtls = mode.unwrap_or_else(|| takes_mtls(service, &members, port, compiled));
            cluster.tls = is_mtls.then(|| upstream_tls(service, port, part.name, options));
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
    place: &str,
    policy: &TrafficPolicy,
    cluster: &mut Cluster,
    findings: &mut Vec<Diagnostic>,
) -> Option<bool> {
    let mut wrong = |field: &str, message: String| {
        let field = format!("{place}.{field}");
        findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
    };
    let simple = policy
        .load_balancer
        .as_ref()
        .and_then(|lb| lb.simple.as_deref());
    match simple {
        None | Some("UNSPECIFIED") => {}
        Some("ROUND_ROBIN") => cluster.lb_policy = LbPolicy::RoundRobin,
        Some("LEAST_REQUEST" | "LEAST_CONN") => cluster.lb_policy = default_lb(),
        Some("RANDOM") => cluster.lb_policy = LbPolicy::Random,
        Some(other) => wrong("loadBalancer.simple", format!("{other} is not supported")),
    }
    if let Some(balancer) = &policy.load_balancer
        && let Some(slow_start) = balance::slow_start(balancer, &mut wrong)
    {
        cluster.common_lb_config.slow_start = Some(slow_start);
    }
    if let Some(spec) = &policy.outlier_detection {
        balance::apply_outliers(spec, cluster, &mut wrong);
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
