//! Our own balancer policies, applied to clusters that are made already.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use mesh_core::{
    ClusterName,
    config::{
        AdaptiveConcurrency, Cluster, ClusterEndpoints, FilterConfig, HttpFilter, LbPolicy,
        PeakEwma, Prequal, Subsetting, ZoneAware,
    },
};

use super::{
    CompileOptions, Compiled,
    balance::{Wrong, duration},
    destination_rules::named,
    locality::Placed,
    own::OwnCluster,
    scoped::{Audience, ClientMatch},
    services::{self, ServiceInfo},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{BalancerPolicy, ClientSelector, Object, ObjectSet, Spec},
};

/// Name of the filter in listeners of clients.
const ADAPTIVE_FILTER: &str = "envoy.filters.http.adaptive_concurrency";

/// Applies all of them, the narrower ones last.
pub(super) fn apply(
    objects: &ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let mut policies: Vec<_> = objects
        .values()
        .filter_map(|object| match &object.spec {
            Spec::BalancerPolicy(policy) => Some((object, policy)),
            _ => None,
        })
        .collect();
    policies.sort_by_key(|(_, policy)| {
        let has_clients = policy.workload_selector.is_some();
        (policy.subset.is_some(), policy.port.is_some(), has_clients)
    });
    for (object, policy) in policies {
        let said = Said::read(policy, &mut |field, message| {
            let field = format!("spec.{field}");
            findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
        });
        let listed = policy.hosts.iter().enumerate();
        let listed = listed.map(|(index, host)| (format!("spec.hosts[{index}]"), host));
        let own = (!policy.host.is_empty() || policy.hosts.is_empty())
            .then(|| ("spec.host".to_owned(), &policy.host));
        for (field, host) in own.into_iter().chain(listed) {
            let named = named(host, object, services, options);
            if named.is_empty() {
                findings.push(services::unknown_host(object, &field, host));
            }
            for (service, _) in named {
                compiled.made_of(&service.fqdn, &object.key);
                said.apply(object, policy, service, compiled, findings);
            }
        }
    }
}

/// What a policy says.
struct Said {
    balancer: Option<LbPolicy>,
    threshold: Option<u32>,
    /// How much more than its share a priority takes.
    factor: Option<u32>,
    subset_size: Option<u32>,
    subsetting: Option<Subsetting>,
    zone_aware: Option<ZoneAware>,
    max_connections: Option<u32>,
    adaptive: Option<AdaptiveConcurrency>,
}

impl Said {
    fn read(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Self {
        let mut number = |field: &str, value: Option<u32>, range: RangeInclusive<u32>| {
            let value = value?;
            if !range.contains(&value) {
                let (least, most) = (range.start(), range.end());
                wrong(field, format!("{value} is not {least} to {most}"));
            }
            Some(value).filter(|value| range.contains(value))
        };
        let factor = policy.overprovisioning_factor;
        Self {
            threshold: number("panicThreshold", policy.panic_threshold, 0..=100),
            factor: number("overprovisioningFactor", factor, 100..=u32::MAX),
            subset_size: number("subsetSize", policy.subset_size, 1..=u32::MAX),
            max_connections: number(
                "maxConnectionsPerEndpoint",
                policy.max_connections_per_endpoint,
                1..=u32::MAX,
            ),
            subsetting: subsetting(policy, wrong),
            zone_aware: zone_aware(policy, wrong),
            balancer: balancer(policy, wrong),
            adaptive: adaptive(policy, wrong),
        }
    }

    fn change(&self, cluster: &mut Arc<Cluster>) {
        let cluster = Arc::make_mut(cluster);
        if let Some(balancer) = &self.balancer {
            cluster.lb_policy = balancer.clone();
        }
        let common = &mut cluster.common_lb_config;
        common.healthy_panic_threshold = self.threshold.or(common.healthy_panic_threshold);
        common.subset_size = self.subset_size.or(common.subset_size);
        common.subsetting = self.subsetting.unwrap_or(common.subsetting);
        if self.zone_aware.is_some() {
            common.zone_aware = self.zone_aware;
            // The one or the other.
            common.locality_weighted = false;
        }
        let breakers = &mut cluster.circuit_breakers;
        breakers.max_connections_per_host =
            self.max_connections.or(breakers.max_connections_per_host);
    }

    fn apply(
        &self,
        object: &Object,
        policy: &BalancerPolicy,
        service: &ServiceInfo,
        compiled: &mut Compiled,
        findings: &mut Vec<Diagnostic>,
    ) {
        let has_labels = |clients: &&ClientSelector| !clients.match_labels.is_empty();
        let clients = policy.workload_selector.as_ref().filter(has_labels);
        let of_service = policy.port.is_none() && policy.subset.is_none() && clients.is_none();
        if let Some(adaptive) = &self.adaptive {
            if of_service {
                let config = FilterConfig::AdaptiveConcurrency(Arc::new(adaptive.clone()));
                let filters = vec![HttpFilter::new(ADAPTIVE_FILTER, config)];
                compiled
                    .client_filters
                    .insert(service.fqdn.clone(), filters);
            } else {
                let message = "it holds for all requests to a host";
                let help = "write it into a policy without port, subset and workloadSelector";
                let field = "spec.adaptiveConcurrency";
                findings.push(object.diagnose(BAD_VALUE, field, message, help));
            }
        }
        let suffix = format!("|{}", service.fqdn);
        let is_meant = |name: &ClusterName| {
            let mut parts = name.as_str().split('|').skip(1);
            let (port, subset) = (parts.next(), parts.next());
            let own = policy.subset.as_deref();
            name.as_str().ends_with(&suffix)
                && policy.port.is_none_or(|own| port == Some(&own.to_string()))
                && own.is_none_or(|own| subset == Some(own))
        };
        let meant = compiled.clusters.keys().filter(|name| is_meant(name));
        let meant: Vec<_> = meant.cloned().collect();
        for name in &meant {
            match clients {
                None => self.for_all(name, compiled),
                Some(clients) => {
                    let clients = ClientMatch {
                        audience: Audience::namespace(&object.key.namespace),
                        labels: clients.match_labels.clone(),
                    };
                    compiled.entangled.insert(service.fqdn.clone());
                    self.for_some(&clients, name, compiled);
                }
            }
        }
        if meant.is_empty() {
            let (field, message) = match policy.subset {
                Some(_) => (
                    "spec.subset",
                    "the host has no such subset, or not at this port",
                ),
                None => ("spec.port", "the host has no such port"),
            };
            findings.push(object.diagnose(UNKNOWN_REFERENCE, field, message, "mend it"));
        }
    }

    /// Changes a cluster for all clients.
    fn for_all(&self, name: &ClusterName, compiled: &mut Compiled) {
        if let Some(cluster) = compiled.clusters.get_mut(name) {
            self.change(cluster);
        }
        for own in compiled.own_clusters.get_mut(name).into_iter().flatten() {
            self.change(&mut own.cluster);
            if let Some(placed) = own.endpoints.as_mut().filter(|_| self.factor.is_some()) {
                Arc::make_mut(placed).spill_over(self.factor);
            }
        }
        if self.factor.is_some() {
            if let Some(endpoints) = compiled.endpoints.get_mut(name.as_str()) {
                Arc::make_mut(endpoints).overprovisioning_factor = self.factor;
            }
            if let Some(placed) = compiled.placed.get_mut(name.as_str()) {
                Arc::make_mut(placed).spill_over(self.factor);
            }
        }
    }

    /// Adds a cluster for some clients, for each that they would get without it.
    fn for_some(&self, clients: &ClientMatch, name: &ClusterName, compiled: &mut Compiled) {
        let Some(cluster) = compiled.clusters.get(name) else {
            return;
        };
        let for_all = OwnCluster {
            clients: clients.clone(),
            cluster: Arc::clone(cluster),
            endpoints: None,
            hash: compiled.hashing.get(name).cloned(),
        };
        let placed = compiled.placed.get(name.as_str());
        let all = compiled.endpoints.get(name.as_str());
        let placed = placed.cloned().or_else(|| {
            let all = ClusterEndpoints::clone(all?);
            Some(Arc::new(Placed::nowhere(all)))
        });
        let held = compiled.own_clusters.entry(name.clone()).or_default();
        let some = held.iter().filter_map(|own| {
            Some(OwnCluster {
                clients: clients.and(&own.clients)?,
                ..own.clone()
            })
        });
        let added = some.chain([for_all]).map(|mut own| {
            self.change(&mut own.cluster);
            if self.factor.is_some() {
                own.endpoints = own.endpoints.or_else(|| placed.clone());
                if let Some(placed) = &mut own.endpoints {
                    Arc::make_mut(placed).spill_over(self.factor);
                }
            }
            own
        });
        let added: Vec<_> = added.collect();
        held.splice(0..0, added);
    }
}

/// How often an adaptive limit is calculated, unless the policy says (Envoy's example).
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);
/// How often the latency without load is measured, unless the policy says (Envoy's example).
const MIN_RTT_INTERVAL: Duration = Duration::from_secs(60);

fn adaptive(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<AdaptiveConcurrency> {
    let spec = policy.adaptive_concurrency.as_ref()?;
    let mut time = |field: &str, text: Option<&String>, default| {
        let field = format!("adaptiveConcurrency.{field}");
        match text.and_then(|text| duration(&field, text, wrong)) {
            Some(time) if time < Duration::from_millis(1) => {
                wrong(&field, "must be 1ms or longer".to_owned());
                default
            }
            Some(time) => time,
            None => default,
        }
    };
    let update = time(
        "updateInterval",
        spec.update_interval.as_ref(),
        UPDATE_INTERVAL,
    );
    let measure = spec.min_rtt_interval.as_ref();
    let measure = time("minRttInterval", measure, MIN_RTT_INTERVAL);
    let mut limit = AdaptiveConcurrency::new(update, measure);
    for (field, value, held) in [
        (
            "minRttRequests",
            spec.min_rtt_requests,
            &mut limit.min_rtt_request_count,
        ),
        (
            "minConcurrency",
            spec.min_concurrency,
            &mut limit.min_concurrency,
        ),
        (
            "maxConcurrency",
            spec.max_concurrency,
            &mut limit.max_concurrency_limit,
        ),
    ] {
        match value {
            Some(0) => wrong(
                &format!("adaptiveConcurrency.{field}"),
                "must be more than 0".to_owned(),
            ),
            Some(value) => *held = value,
            None => {}
        }
    }
    if limit.min_concurrency > limit.max_concurrency_limit {
        let message = "the lowest limit is higher than the highest".to_owned();
        wrong("adaptiveConcurrency.minConcurrency", message);
        return None;
    }
    Some(limit)
}

fn subsetting(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<Subsetting> {
    let is_deterministic = policy.deterministic_subset?;
    if policy.subset_size.is_none() {
        let message = "there is no subsetSize".to_owned();
        wrong("deterministicSubset", message);
    }
    Some(match is_deterministic {
        true => Subsetting::Deterministic,
        false => Subsetting::Random,
    })
}

fn zone_aware(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<ZoneAware> {
    let spec = policy.zone_aware.as_ref()?;
    let has_own = policy.peak_ewma.is_some() || policy.prequal.is_some();
    if has_own || policy.subset_size.is_some() {
        let message = "zones count for round robin, least request and random over all endpoints";
        wrong("zoneAware", message.to_owned());
        return None;
    }
    let defaults = ZoneAware::default();
    let routing_enabled = match spec.routing_enabled {
        None => defaults.routing_enabled,
        Some(percent) if (0.0..=100.0).contains(&percent) => percent,
        Some(percent) => {
            let field = "zoneAware.routingEnabled";
            wrong(field, format!("{percent} is not 0 to 100"));
            defaults.routing_enabled
        }
    };
    let size = spec.min_cluster_size.map(u64::from);
    Some(ZoneAware {
        routing_enabled,
        min_cluster_size: size.unwrap_or(defaults.min_cluster_size),
        fail_traffic_on_panic: spec.fail_traffic_on_panic.unwrap_or(false),
        ..defaults
    })
}

fn balancer(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<LbPolicy> {
    if policy.peak_ewma.is_some() && policy.prequal.is_some() {
        wrong(
            "prequal",
            "there is a peakEwma, which is followed".to_owned(),
        );
    }
    let mut time = |field: &str, text: Option<&String>, default| {
        let read = text.and_then(|text| duration(field, text, wrong));
        match read {
            Some(time) if time.is_zero() => {
                wrong(field, "must be longer than 0s".to_owned());
                default
            }
            Some(time) => time,
            None => default,
        }
    };
    if let Some(spec) = &policy.peak_ewma {
        let own = PeakEwma::default();
        return Some(LbPolicy::PeakEwma(PeakEwma {
            decay: time("peakEwma.decay", spec.decay.as_ref(), own.decay),
            default_rtt: time(
                "peakEwma.defaultRtt",
                spec.default_rtt.as_ref(),
                own.default_rtt,
            ),
            failure_penalty: time(
                "peakEwma.failurePenalty",
                spec.failure_penalty.as_ref(),
                own.failure_penalty,
            ),
        }));
    }
    let spec = policy.prequal.as_ref()?;
    let own = Prequal::default();
    let max_age = time("prequal.maxAge", spec.max_age.as_ref(), own.max_age);
    let penalty = spec.failure_penalty.as_ref();
    let failure_penalty = time("prequal.failurePenalty", penalty, own.failure_penalty);
    let choice_count = spec.choice_count.unwrap_or(own.choice_count);
    let rif_quantile = spec.rif_quantile.unwrap_or(own.rif_quantile);
    if !(2..=16).contains(&choice_count) {
        wrong(
            "prequal.choiceCount",
            format!("{choice_count} is not 2 to 16"),
        );
        return None;
    }
    if !(0.0..=1.0).contains(&rif_quantile) {
        wrong(
            "prequal.rifQuantile",
            format!("{rif_quantile} is not 0 to 1"),
        );
        return None;
    }
    Some(LbPolicy::Prequal(Prequal {
        choice_count,
        rif_quantile,
        max_age,
        failure_penalty,
    }))
}
