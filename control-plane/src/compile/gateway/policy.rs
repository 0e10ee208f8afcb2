//! Retry budgets of Services (Gateway API's XBackendTrafficPolicy).

use std::{collections::BTreeMap, sync::Arc};

use super::super::{CompileOptions, Compiled, ServiceInfo, routes::passed_over};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{Object, ObjectSet, Spec},
};

/// Default share of retries, in percent (GEP-3388).
const PERCENT: u32 = 20;
/// Default rate of retries that are always allowed (GEP-3388).
const RATE: u32 = 10;

/// Applies all policies to the clusters of their Services. The oldest one holds.
pub(in super::super) fn apply_policies(
    objects: &ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let is_policy = |object: &&Arc<Object>| matches!(object.spec, Spec::BackendTrafficPolicy(_));
    let mut policies: Vec<_> = objects.values().filter(is_policy).collect();
    policies.sort_by_key(|object| {
        let made = object.metadata.creation_timestamp.clone();
        (made.is_none(), made)
    });
    let mut held = BTreeMap::new();
    for object in policies {
        let Spec::BackendTrafficPolicy(spec) = &object.spec else {
            continue;
        };
        for (index, target) in spec.target_refs.iter().enumerate() {
            let field = format!("spec.targetRefs[{index}]");
            if (target.group.as_str(), target.kind.as_str()) != ("", "Service") {
                let message = format!(
                    "{} of the group {:?} is no target",
                    target.kind, target.group
                );
                let help = "refer to a Service, of the group \"\"";
                findings.push(object.diagnose(BAD_VALUE, &format!("{field}.kind"), message, help));
                continue;
            }
            let (name, namespace) = (&target.name, &object.key.namespace);
            let fqdn = format!("{name}.{namespace}.svc.{}", options.cluster_domain);
            if !services.contains_key(&fqdn) {
                let message = format!("there is no Service {namespace}/{name}");
                let field = format!("{field}.name");
                findings.push(object.diagnose(UNKNOWN_REFERENCE, &field, message, "mend the name"));
                continue;
            }
            compiled.made_of(&fqdn, &object.key);
            if let Some(winner) = held.insert(fqdn.clone(), object.key.clone()) {
                findings.push(passed_over(object, &fqdn, &winner));
                held.insert(fqdn, winner);
                continue;
            }
            let Some(constraint) = &spec.retry_constraint else {
                continue;
            };
            let percent = constraint.budget.as_ref().and_then(|budget| budget.percent);
            let percent = percent.unwrap_or(PERCENT);
            if percent > 100 {
                let field = "spec.retryConstraint.budget.percent";
                let message = format!("{percent} is not 0 to 100");
                findings.push(object.diagnose(BAD_VALUE, field, message, ""));
                continue;
            }
            let rate = constraint
                .min_retry_rate
                .as_ref()
                .and_then(|rate| rate.count);
            let suffix = format!("|{fqdn}");
            let own = compiled.own_clusters.iter_mut();
            let own =
                own.flat_map(|(name, all)| all.iter_mut().map(move |own| (name, &mut own.cluster)));
            for (name, cluster) in compiled.clusters.iter_mut().chain(own) {
                if name.as_str().ends_with(&suffix) {
                    let budget = &mut Arc::make_mut(cluster).circuit_breakers.retry_budget;
                    budget.percent = percent;
                    budget.min_retry_concurrency = rate.unwrap_or(RATE);
                }
            }
        }
    }
}
