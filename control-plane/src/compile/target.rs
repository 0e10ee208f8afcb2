//! Which workloads a policy is about: those that a selector selects, or those of services.

use std::collections::BTreeSet;

use super::{
    security::{Scoped, scoped},
    services,
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{Object, Selector, TargetRef},
};

/// The full name of a service, by what an object calls it.
pub(super) type Names<'n> = dyn Fn(&Object, &str) -> Option<String> + 'n;

/// `value` for the workloads that the object is about.
pub(super) fn select<T>(
    object: &Object,
    selector: Option<&Selector>,
    (target_ref, target_refs): (Option<&TargetRef>, &[TargetRef]),
    names: &Names<'_>,
    findings: &mut Vec<Diagnostic>,
    value: T,
) -> Scoped<T> {
    let labels = selector.cloned().unwrap_or_default().match_labels;
    let mut found = scoped(object, labels, value);
    let refs: Vec<_> = target_ref.into_iter().chain(target_refs).collect();
    if refs.is_empty() {
        return found;
    }
    if selector.is_some() {
        // Both are asked for, so that the policy holds for all that either selects: nobody knows
        // which of them was meant.
        let message = "selector and targetRefs exclude each other: the whole namespace is meant";
        findings.push(object.diagnose(BAD_VALUE, "spec.selector", message, "write one of them"));
        found.labels.clear();
        return found;
    }
    let mut services = BTreeSet::new();
    for (index, target) in refs.iter().enumerate() {
        let is_own = target.namespace.as_ref();
        if is_own.is_some_and(|namespace| *namespace != object.key.namespace) {
            let field = format!("spec.targetRefs[{index}].namespace");
            let message = "a policy is about services of its own namespace: all of them are meant";
            findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
            return found;
        }
        match names(object, &target.name) {
            Some(name) => _ = services.insert(name),
            None => {
                let field = format!("spec.targetRefs[{index}].name");
                findings.push(services::unknown_host(object, &field, &target.name));
            }
        }
    }
    found.services = Some(services);
    found
}
