//! What a service-resolver makes of a service's clusters: subsets, failover, balancing.
//!
//! Endpoints of failover targets are lower priorities of the cluster itself. Its certificates may
//! bear the names of all of them; a target that is called in another way, with mTLS or without, is
//! left out and said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{
    Cluster, ClusterEndpoints, Discovery, HashPolicy, HashSource, HealthStatus, LbPolicy, RingHash,
    UpstreamTls,
};

use super::{
    super::{
        CompileOptions, Compiled, ServiceInfo,
        clusters::{cluster_name, endpoints, upstream_tls},
        locality::{Placed, Setting},
        routes::Context,
        services::{Workload, find, unknown_host},
    },
    ConsulEntries,
    filter::Filter,
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{
        Object, ResolverBalancer, ResolverHash, ResolverRedirect, ServiceResolver, service_in,
    },
    value,
};

/// What the clusters of services are compiled with.
pub(in super::super) struct Surroundings<'s> {
    pub(in super::super) services: &'s BTreeMap<String, ServiceInfo>,
    pub(in super::super) options: &'s CompileOptions,
}

impl ConsulEntries<'_> {
    /// Adds what the resolvers say to the clusters that are there.
    pub(in super::super) fn resolve(
        &self,
        around: &Surroundings<'_>,
        compiled: &mut Compiled,
        findings: &mut Vec<Diagnostic>,
    ) {
        for (fqdn, (object, spec)) in &self.resolvers {
            let service = &around.services[fqdn];
            compiled.entangled.insert(fqdn.clone());
            subsets(object, spec, service, around, compiled, findings);
            policies(object, spec, service, compiled, findings);
        }
        // Failover leads to what there was before any failover.
        let before = compiled.endpoints.clone();
        for (fqdn, (object, spec)) in &self.resolvers {
            let service = &around.services[fqdn];
            self.failover(object, spec, service, around, &before, compiled, findings);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "it is one step of `resolve`")]
    fn failover(
        &self,
        object: &Object,
        spec: &ServiceResolver,
        service: &ServiceInfo,
        around: &Surroundings<'_>,
        before: &Endpoints,
        compiled: &mut Compiled,
        findings: &mut Vec<Diagnostic>,
    ) {
        let named = spec.subsets.keys().map(String::as_str).chain([""]);
        for subset in named {
            let own = spec
                .failover
                .get_key_value(subset)
                .filter(|_| !subset.is_empty());
            let Some((key, declared)) = own.or_else(|| spec.failover.get_key_value("*")) else {
                continue;
            };
            let single = ResolverRedirect {
                service: declared.service.clone(),
                service_subset: declared.service_subset.clone(),
                namespace: declared.namespace.clone(),
            };
            let field = format!("spec.failover.{key}");
            let targets: Vec<_> = match &declared.targets[..] {
                [] => vec![(field, &single)],
                several => several
                    .iter()
                    .enumerate()
                    .map(|(index, target)| (format!("{field}.targets[{index}]"), target))
                    .collect(),
            };
            for port in &service.ports {
                let name = cluster_name(port.number, subset, &service.fqdn);
                let mut behind = Behind {
                    name: &name,
                    priority: 1,
                };
                for (field, target) in &targets {
                    let found = self.target(object, target, service, port.number, around);
                    let fqdn = found
                        .as_deref()
                        .ok()
                        .and_then(|name| name.rsplit('|').next());
                    compiled.entangled.extend(fqdn.map(str::to_owned));
                    let wrong = match &found {
                        Ok(found) => behind.add(found, before, compiled),
                        Err(message) => Err(message.clone()),
                    };
                    if let Err(message) = wrong {
                        let field = format!("{field}.service");
                        let help = "name a service and a subset that it has";
                        findings.push(object.diagnose(UNKNOWN_REFERENCE, &field, message, help));
                    }
                }
            }
        }
    }

    /// The cluster of a failover target.
    fn target(
        &self,
        object: &Object,
        target: &ResolverRedirect,
        own: &ServiceInfo,
        port: u16,
        around: &Surroundings<'_>,
    ) -> Result<String, String> {
        let elsewhere = target.namespace.as_deref();
        let name = service_in(target.service.as_deref(), elsewhere, &object.key.name);
        let service = match &name {
            None => own,
            Some(name) => {
                let (namespace, domain) = (&object.key.namespace, &around.options.cluster_domain);
                find(around.services, name, namespace, domain)
                    .ok_or_else(|| unknown_host(object, "", name).message)?
            }
        };
        let default = self.resolvers.get(&service.fqdn);
        let default = default.and_then(|(_, spec)| spec.default_subset.as_deref());
        let subset = target
            .service_subset
            .as_deref()
            .or(default)
            .unwrap_or_default();
        let port = service.port(Some(port)).or_else(|| service.port(None));
        let port = port.ok_or_else(|| format!("{} has no ports", service.fqdn))?;
        Ok(cluster_name(port.number, subset, &service.fqdn))
    }
}

type Endpoints = BTreeMap<mesh_core::EndpointsName, Arc<ClusterEndpoints>>;

/// A cluster to which lower priorities are added.
struct Behind<'b> {
    name: &'b str,
    priority: u32,
}

impl Behind<'_> {
    fn add(
        &mut self,
        target: &str,
        before: &Endpoints,
        compiled: &mut Compiled,
    ) -> Result<(), String> {
        let theirs = compiled.clusters.get(target).cloned();
        let (Some(theirs), Some(found)) = (theirs, before.get(target)) else {
            return Err(format!("there is no {target}"));
        };
        let Some(own) = compiled.clusters.get_mut(self.name) else {
            return Ok(());
        };
        match (&own.tls, &theirs.tls) {
            (None, None) if !own.has_tls() && !theirs.has_tls() => {}
            (Some(_), Some(more)) => {
                let more = more.clone();
                let own = Arc::make_mut(own);
                if let Some(tls) = &mut own.tls {
                    add_names(tls, more);
                }
            }
            _ => {
                return Err(format!(
                    "{target} is called with mTLS or without, unlike this one"
                ));
            }
        }
        let Some(held) = compiled.endpoints.get_mut(self.name) else {
            return Ok(());
        };
        let held = Arc::make_mut(held);
        let all = held
            .localities
            .iter()
            .flat_map(|locality| &locality.endpoints);
        let seen: BTreeSet<_> = all.map(|endpoint| endpoint.address).collect();
        for locality in &found.localities {
            let mut locality = locality.clone();
            locality.priority = self.priority;
            locality
                .endpoints
                .retain(|endpoint| !seen.contains(&endpoint.address));
            if !locality.endpoints.is_empty() {
                held.localities.push(locality);
            }
        }
        let is_used = held.localities.iter().any(|l| l.priority == self.priority);
        // Failover is by this order then, not by where clients are.
        compiled.placed.remove(self.name);
        // Priorities have no gaps.
        self.priority += u32::from(is_used);
        Ok(())
    }
}

fn add_names(tls: &mut UpstreamTls, more: UpstreamTls) {
    for name in more.subject_alt_names {
        if !tls.subject_alt_names.contains(&name) {
            tls.subject_alt_names.push(name);
        }
    }
}

fn subsets(
    object: &Object,
    spec: &ServiceResolver,
    service: &ServiceInfo,
    around: &Surroundings<'_>,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    for (name, declared) in &spec.subsets {
        let filter = match declared
            .filter
            .as_deref()
            .filter(|text| !text.trim().is_empty())
        {
            None => None,
            Some(text) => match text.parse::<Filter>() {
                Ok(filter) => Some(filter),
                Err(message) => {
                    let field = format!("spec.subsets.{name}.filter");
                    let help = "write for example Service.Meta.version == v1";
                    findings.push(object.diagnose(BAD_VALUE, &field, message, help));
                    // Without its filter it would be everything.
                    continue;
                }
            },
        };
        let is_member = |workload: &&Workload| {
            let is_passing = workload.health == HealthStatus::Healthy;
            filter
                .as_ref()
                .is_none_or(|filter| filter.has(&workload.labels))
                && (is_passing || !declared.only_passing)
        };
        let members: Vec<_> = service.workloads.iter().filter(is_member).collect();
        for port in &service.ports {
            let all = cluster_name(port.number, "", &service.fqdn);
            let own = cluster_name(port.number, name, &service.fqdn);
            let Some(all) = compiled.clusters.get(all.as_str()) else {
                continue;
            };
            let is_mtls = all.tls.is_some();
            let cluster = Cluster {
                name: own.as_str().into(),
                discovery: Discovery::Eds(own.as_str().into()),
                tls: is_mtls.then(|| upstream_tls(service, port, name, around.options)),
                socket_matches: Vec::new(),
                ..Cluster::clone(all)
            };
            compiled
                .clusters
                .insert(own.as_str().into(), Arc::new(cluster));
            let held = endpoints(&own, &members, port.number);
            compiled
                .endpoints
                .insert(own.as_str().into(), Arc::new(held));
        }
    }
}

/// Applies limits and balancing to all clusters of the service.
fn policies(
    object: &Object,
    spec: &ServiceResolver,
    service: &ServiceInfo,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let mut wrong = |field: &str, message: String| {
        findings.push(object.diagnose(BAD_VALUE, field, message, ""));
    };
    let timeout = match spec.connect_timeout.as_deref().map(value::duration) {
        Some(Ok(timeout)) if !timeout.is_zero() => Some(timeout),
        Some(Err(message)) => {
            wrong("spec.connectTimeout", message);
            None
        }
        _ => None,
    };
    let balancer = spec.load_balancer.as_ref().and_then(|balancer| {
        lb_policy(balancer).unwrap_or_else(|message| {
            wrong("spec.loadBalancer.policy", message);
            None
        })
    });
    let places = spec.prioritize_by_locality.as_ref();
    let is_by_place = match places.and_then(|places| places.mode.as_deref()) {
        None | Some("" | "none") => false,
        Some("failover") => true,
        Some(other) => {
            let message = format!("{other:?} is not failover or none");
            wrong("spec.prioritizeByLocality.mode", message);
            false
        }
    };
    if timeout.is_none() && balancer.is_none() && !is_by_place {
        return;
    }
    let named = spec.subsets.keys().map(String::as_str).chain([""]);
    for subset in named {
        for port in &service.ports {
            let name = cluster_name(port.number, subset, &service.fqdn);
            let Some(cluster) = compiled.clusters.get_mut(name.as_str()) else {
                continue;
            };
            let cluster = Arc::make_mut(cluster);
            cluster.connect_timeout = timeout.unwrap_or(cluster.connect_timeout);
            if let Some(balancer) = &balancer {
                cluster.lb_policy = balancer.clone();
            }
            if let Some(all) = compiled
                .endpoints
                .get(name.as_str())
                .filter(|_| is_by_place)
            {
                let placed = Placed::by(Setting::nearest(), ClusterEndpoints::clone(all));
                let name = name.as_str().into();
                compiled.placed.insert(name, Arc::new(placed));
            }
        }
    }
}

fn lb_policy(declared: &ResolverBalancer) -> Result<Option<LbPolicy>, String> {
    Ok(Some(match declared.policy.as_deref() {
        None | Some("") => return Ok(None),
        Some("random") => LbPolicy::Random,
        Some("round_robin") => LbPolicy::RoundRobin,
        Some("least_request") => {
            let choices = declared.least_request_config.as_ref();
            let choices = choices.and_then(|config| config.choice_count).unwrap_or(2);
            LbPolicy::least_request(choices.max(2))
        }
        Some("ring_hash") => {
            let (default, sizes) = (RingHash::default(), declared.ring_hash_config.as_ref());
            let least = sizes.and_then(|sizes| sizes.minimum_ring_size);
            let most = sizes.and_then(|sizes| sizes.maximum_ring_size);
            let ring = RingHash {
                minimum_ring_size: least.unwrap_or(default.minimum_ring_size),
                maximum_ring_size: most.unwrap_or(default.maximum_ring_size),
            };
            if ring.minimum_ring_size > ring.maximum_ring_size {
                return Err("the smallest ring is larger than the largest".to_owned());
            }
            LbPolicy::RingHash(ring)
        }
        Some("maglev") => LbPolicy::Maglev {
            table_size: mesh_core::config::MAGLEV_TABLE_SIZE_DEFAULT,
        },
        Some(other) => return Err(format!("{other:?} is not known")),
    }))
}

/// What requests have in common that go to one endpoint.
pub(super) fn hash_policies(
    context: &mut Context<'_>,
    object: &Object,
    declared: &ResolverBalancer,
) -> Vec<HashPolicy> {
    let mut policies = Vec::new();
    for (index, hash) in declared.hash_policies.iter().enumerate() {
        match source(hash) {
            Ok(source) => policies.push(HashPolicy {
                source,
                terminal: hash.terminal,
            }),
            Err((part, message)) => {
                let field = format!("spec.loadBalancer.hashPolicies[{index}].{part}");
                context.wrong(object, &field, &message);
            }
        }
    }
    policies
}

fn source(declared: &ResolverHash) -> Result<HashSource, (&'static str, String)> {
    if declared.source_ip {
        return Ok(HashSource::SourceIp);
    }
    let name = declared.field_value.clone().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ("fieldValue", "it has no name".to_owned()))?;
    match declared.field.as_deref() {
        Some("header") => Ok(HashSource::Header {
            name: name.to_ascii_lowercase(),
            rewrite: None,
        }),
        Some("query_parameter") => Ok(HashSource::QueryParameter(name)),
        Some("cookie") => {
            let config = declared.cookie_config.clone().unwrap_or_default();
            let ttl = match (config.ttl.as_deref().map(value::duration), config.session) {
                (Some(Ok(ttl)), _) => Some(ttl),
                (Some(Err(message)), _) => return Err(("cookieConfig.ttl", message)),
                // It lives as long as the client: a time to live of zero.
                (None, true) => Some(std::time::Duration::ZERO),
                (None, false) => None,
            };
            Ok(HashSource::Cookie {
                name,
                ttl,
                path: config.path.unwrap_or_default(),
                attributes: Vec::new(),
            })
        }
        _ => Err((
            "field",
            "write header, cookie or query_parameter".to_owned(),
        )),
    }
}
