//! AuthorizationPolicy: what it is about, and its rules.
//!
//! A broken ALLOW rule allows nothing, a broken DENY rule refuses everything, and a policy whose
//! action or target is not known closes what it selects.

use mesh_core::config::{RbacAction, RbacPolicy};

use super::{
    CompileOptions,
    rules::{Rules, anything},
    security::{Scoped, scoped},
    target::{Names, select},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, FAILS_CLOSED},
    model::{AuthorizationPolicy, Object},
};

/// Istio's annotation of policies that are only reported on.
const DRY_RUN: &str = "istio.io/dry-run";

/// Rules of one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authorization {
    pub(super) action: RbacAction,
    pub(super) rules: Vec<RbacPolicy>,
    /// What the rules would do is reported, and nothing is done.
    pub(super) is_dry_run: bool,
}

pub(super) fn compile(
    object: &Object,
    spec: &AuthorizationPolicy,
    options: &CompileOptions,
    names: &Names<'_>,
    findings: &mut Vec<Diagnostic>,
) -> Scoped<Authorization> {
    let refs = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    let mut compiled = select(
        object,
        spec.selector.as_ref(),
        refs,
        names,
        findings,
        closed_for_all(),
    );
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => RbacAction::Allow,
        Some("DENY") => RbacAction::Deny,
        Some("AUDIT") => RbacAction::Log,
        Some(other) => {
            let help = "write ALLOW, DENY or AUDIT";
            let message = format!("{other:?} is not supported: its target is closed");
            findings.push(object.diagnose(FAILS_CLOSED, "spec.action", message, help));
            return compiled;
        }
    };
    let read = Rules {
        options,
        namespace: &object.key.namespace,
    };
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        match read.compile(rule) {
            Ok(policy) => rules.push(policy),
            Err((part, message)) => {
                let field = format!("spec.rules[{index}].{part}");
                findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
                if action == RbacAction::Deny {
                    rules.push(anything());
                }
            }
        }
    }
    let dry_run = object.metadata.annotations.get(DRY_RUN);
    compiled.value = Authorization {
        action,
        rules,
        is_dry_run: dry_run.is_some_and(|value| value == "true"),
    };
    compiled
}

/// Refuses everything, whatever other policies allow: nobody knows what this one would refuse.
pub(super) fn closed_for_all() -> Authorization {
    Authorization {
        action: RbacAction::Deny,
        rules: vec![anything()],
        is_dry_run: false,
    }
}

/// Closes what a policy of another kind is about.
pub(super) fn closed<T>(policy: &Scoped<T>) -> Scoped<Authorization> {
    Scoped {
        kind: policy.kind,
        name: policy.name.clone(),
        namespace: policy.namespace.clone(),
        labels: policy.labels.clone(),
        services: policy.services.clone(),
        value: closed_for_all(),
    }
}

/// An object's rules for the workloads of its namespace; for objects without a selector.
pub(super) fn closed_namespace(object: &Object) -> Scoped<Authorization> {
    scoped(object, Default::default(), closed_for_all())
}
