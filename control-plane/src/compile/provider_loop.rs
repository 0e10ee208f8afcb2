//! CUSTOM policies that are about the servers of their own provider.
//!
//! Such a server asks itself before it answers a question: no question is answered, and with that everything
//! is refused that the provider decides about. It is served as it was written, and said.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    config::{Principal, Rbac, RbacAction, RbacPolicy},
};

use super::{
    authorization::Authorization,
    security::{Judged, Scoped},
    services::{ServiceInfo, Workload},
};
use crate::{
    diagnostic::{ASKS_ITSELF, Diagnostic, Severity},
    model::Object,
};

/// The method that providers are asked by (Envoy's `service.auth.v3.Authorization`).
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A warning where `policy`, compiled from `object`, is about questions to its provider.
pub(super) fn find(
    object: &Object,
    policy: &Scoped<Authorization>,
    services: &BTreeMap<String, ServiceInfo>,
    root_namespace: &str,
) -> Option<Diagnostic> {
    let (name, provider) = policy.value.provider.as_ref()?;
    let host = provider.authority.as_ref()?;
    let service = services.values().find(|service| service.fqdn == *host)?;
    let is_about = |workload: &Workload| {
        let judged = Judged {
            namespace: workload.namespace.clone(),
            labels: workload.labels.clone(),
            services: [host.clone()].into(),
        };
        policy.is_for(root_namespace, &judged) && matches(&policy.value.rules, host, workload)
    };
    // Servers that are not there yet are told by their namespace alone.
    let unknown = Workload {
        namespace: service.namespace.clone(),
        ..Workload::default()
    };
    let mut workloads = service.workloads.iter();
    let is_about_one = match service.workloads.is_empty() {
        true => is_about(&unknown),
        false => workloads.any(is_about),
    };
    is_about_one.then(|| {
        let message = format!(
            "is about the servers of {host}, which is its provider {name:?}: they ask themselves before they \
             answer, and refuse everything that it decides about"
        );
        let help = "leave them out with a selector, or with a rule that has \
                    notPaths: [\"/envoy.service.auth.v3.Authorization/*\"]";
        Diagnostic {
            severity: Severity::Warning,
            ..object.diagnose(ASKS_ITSELF, "spec.provider.name", message, help)
        }
    })
}

/// Whether a rule takes a question to a server, whoever asks it.
fn matches(rules: &[RbacPolicy], host: &str, workload: &Workload) -> bool {
    let rules = rules.iter().enumerate().map(|(index, rule)| {
        let rule = RbacPolicy {
            principals: vec![Principal::Any],
            ..rule.clone()
        };
        (index.to_string(), rule)
    });
    let deny = Authorizer::compile([&Rbac::new(RbacAction::Deny, rules.collect())]);
    let grpc = HeaderValue::from_static("application/grpc");
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, grpc)]);
    let nowhere = ([0, 0, 0, 0], 0).into();
    let known = workload.addresses.values().copied();
    let mut addresses = known.chain(workload.addresses.is_empty().then_some(nowhere));
    addresses.any(|destination| {
        let question = AuthzRequest {
            principals: &[],
            authenticated: false,
            method: "POST",
            path: CHECK,
            authority: host,
            headers: &headers,
            source: destination.ip(),
            destination,
            server_name: "",
            metadata: None,
            details: Default::default(),
        };
        !deny.decide(&question).allowed
    })
}
