//! AuthorizationPolicy: what it is about, and its rules.
//!
//! A broken ALLOW rule allows nothing, a broken DENY rule refuses everything, and a policy whose
//! action, provider or target is not known closes what it selects. With `CUSTOM` a broken rule gives
//! everything to the provider.

use std::sync::Arc;

use mesh_core::config::{ExtAuthz, RbacAction, RbacPolicy};

use super::{
    CompileOptions,
    providers::Providers,
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
    /// Who decides about what the rules match, with the provider's name; `action` is `DENY` then, which
    /// is what becomes of it where nobody can be asked.
    pub(super) provider: Option<(String, Arc<ExtAuthz>)>,
    /// What the rules would do is reported, and nothing is done.
    pub(super) is_dry_run: bool,
}

pub(super) fn compile(
    object: &Object,
    spec: &AuthorizationPolicy,
    (options, providers): (&CompileOptions, &Providers),
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
    let mut provider = None;
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => RbacAction::Allow,
        Some("DENY") => RbacAction::Deny,
        Some("AUDIT") => RbacAction::Log,
        Some("CUSTOM") => {
            let name = spec.provider.as_ref().map(|provider| &provider.name);
            match name.map(|name| (name, providers.get(name))) {
                Some((name, Some(Some(held)))) => {
                    provider = Some((name.clone(), Arc::clone(held)));
                    RbacAction::Deny
                }
                found => {
                    let message = match found {
                        Some((name, Some(None))) => format!("provider {name:?} cannot be used"),
                        Some((name, _)) => format!("there is no provider {name:?}"),
                        None => "is missing".to_owned(),
                    };
                    let message = format!("{message}: its target is closed");
                    let help = "declare it in the extensionProviders of a MeshPolicy";
                    let field = "spec.provider.name";
                    findings.push(object.diagnose(FAILS_CLOSED, field, message, help));
                    return compiled;
                }
            }
        }
        Some(other) => {
            let help = "write ALLOW, DENY, AUDIT or CUSTOM";
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
    let mut is_dry_run = dry_run.is_some_and(|value| value == "true");
    if is_dry_run && provider.is_some() {
        let message = "has no effect on CUSTOM: the provider decides".to_owned();
        let field = format!("metadata.annotations[{DRY_RUN:?}]");
        findings.push(object.diagnose(BAD_VALUE, &field, message, "take it away"));
        is_dry_run = false;
    }
    compiled.value = Authorization {
        action,
        rules,
        provider,
        is_dry_run,
    };
    compiled
}

/// Refuses everything, whatever other policies allow: nobody knows what this one would refuse.
pub(super) fn closed_for_all() -> Authorization {
    Authorization {
        action: RbacAction::Deny,
        rules: vec![anything()],
        provider: None,
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
