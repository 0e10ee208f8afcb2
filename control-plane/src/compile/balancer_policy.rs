//! Our own balancer policies, applied to clusters that are made already.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{Cluster, LbPolicy, PeakEwma, Prequal};

use super::{
    CompileOptions, Compiled,
    balance::{Wrong, duration},
    services::{self, ServiceInfo},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{BalancerPolicy, Object, ObjectSet, Spec},
};

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
    policies.sort_by_key(|(_, policy)| (policy.subset.is_some(), policy.port.is_some()));
    for (object, policy) in policies {
        let namespace = &object.key.namespace;
        let found = services::find(services, &policy.host, namespace, &options.cluster_domain);
        let Some(service) = found else {
            findings.push(services::unknown_host(object, "spec.host", &policy.host));
            continue;
        };
        compiled.made_of(&service.fqdn, &object.key);
        apply_one(object, policy, service, compiled, findings);
    }
}

fn apply_one(
    object: &Object,
    policy: &BalancerPolicy,
    service: &ServiceInfo,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let mut wrong = |field: &str, message: String| {
        let field = format!("spec.{field}");
        findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
    };
    let balancer = balancer(policy, &mut wrong);
    let threshold = policy.panic_threshold.filter(|percent| {
        let is_percent = *percent <= 100;
        if !is_percent {
            wrong("panicThreshold", format!("{percent} is not 0 to 100"));
        }
        is_percent
    });
    let factor = policy.overprovisioning_factor.filter(|factor| {
        let is_enough = *factor >= 100;
        if !is_enough {
            wrong(
                "overprovisioningFactor",
                format!("{factor} is less than 100"),
            );
        }
        is_enough
    });
    let change = |cluster: &mut Arc<Cluster>| {
        let cluster = Arc::make_mut(cluster);
        if let Some(balancer) = &balancer {
            cluster.lb_policy = balancer.clone();
        }
        let held = &mut cluster.common_lb_config.healthy_panic_threshold;
        *held = threshold.or(*held);
    };
    let mut is_known = false;
    let suffix = format!("|{}", service.fqdn);
    let is_meant = |name: &str| {
        let mut parts = name.split('|').skip(1);
        let (port, subset) = (parts.next(), parts.next());
        name.ends_with(&suffix)
            && policy.port.is_none_or(|own| port == Some(&own.to_string()))
            && policy
                .subset
                .as_deref()
                .is_none_or(|own| subset == Some(own))
    };
    for (name, cluster) in compiled.clusters.iter_mut() {
        if is_meant(name.as_str()) {
            is_known = true;
            change(cluster);
        }
    }
    let own = compiled.own_clusters.iter_mut();
    for own in own
        .filter(|(name, _)| is_meant(name.as_str()))
        .flat_map(|(_, own)| own)
    {
        change(&mut own.cluster);
        if let Some(placed) = own.endpoints.as_mut().filter(|_| factor.is_some()) {
            Arc::make_mut(placed).spill_over(factor);
        }
    }
    if factor.is_some() {
        let endpoints = compiled.endpoints.iter_mut();
        for (_, endpoints) in endpoints.filter(|(name, _)| is_meant(name.as_str())) {
            Arc::make_mut(endpoints).overprovisioning_factor = factor;
        }
        let placed = compiled.placed.iter_mut();
        for (_, placed) in placed.filter(|(name, _)| is_meant(name.as_str())) {
            Arc::make_mut(placed).spill_over(factor);
        }
    }
    if !is_known {
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
