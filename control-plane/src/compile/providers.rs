//! Who decides about requests besides the mesh (`extensionProviders` of MeshPolicies).
//!
//! A provider that cannot be used, or whose name stands for two, closes what policies give it to
//! decide.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT, ExtAuthz};

use super::{
    clusters::cluster_name,
    services::{self, ServiceInfo},
};
use crate::{
    diagnostic::{BAD_VALUE, DUPLICATE, Diagnostic, FAILS_CLOSED},
    model::{ExtAuthzGrpc, MeshPolicy, Object},
    value,
};

/// How long a provider may take to decide where nobody says: Istio's ten minutes would keep callers
/// of a provider that hangs for as long.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Providers by name; `None` for one that cannot be used.
pub(super) type Providers = BTreeMap<String, Option<Arc<ExtAuthz>>>;

/// Adds what an object declares.
pub(super) fn add(
    providers: &mut Providers,
    object: &Object,
    spec: &MeshPolicy,
    services: &BTreeMap<String, ServiceInfo>,
    cluster_domain: &str,
    findings: &mut Vec<Diagnostic>,
) {
    for (index, declared) in spec.extension_providers.iter().enumerate() {
        let field = format!("spec.extensionProviders[{index}]");
        let mut found = None;
        match &declared.envoy_ext_authz_grpc {
            Some(grpc) => match compile(object, grpc, services, cluster_domain) {
                Ok(provider) => found = Some(Arc::new(provider)),
                Err((part, message)) => {
                    let field = format!("{field}.envoyExtAuthzGrpc.{part}");
                    let help = "what policies give it to decide is closed";
                    findings.push(object.diagnose(FAILS_CLOSED, &field, message, help));
                }
            },
            None => {
                let help = "write envoyExtAuthzGrpc; until then what it has to decide is closed";
                let message = "says not who decides".to_owned();
                findings.push(object.diagnose(FAILS_CLOSED, &field, message, help));
            }
        }
        if declared.name.is_empty() {
            let field = format!("{field}.name");
            findings.push(object.diagnose(BAD_VALUE, &field, "is missing".to_owned(), ""));
            continue;
        }
        match providers.get_mut(&declared.name) {
            Some(held) if *held == found => {}
            Some(held) => {
                *held = None;
                let field = format!("{field}.name");
                let message = format!("{:?} is declared twice, differently", declared.name);
                let help = "what it has to decide is closed until one of them goes";
                findings.push(object.diagnose(DUPLICATE, &field, message, help));
            }
            None => _ = providers.insert(declared.name.clone(), found),
        }
    }
}

fn compile(
    object: &Object,
    spec: &ExtAuthzGrpc,
    services: &BTreeMap<String, ServiceInfo>,
    cluster_domain: &str,
) -> Result<ExtAuthz, (&'static str, String)> {
    let own = object.key.namespace.as_str();
    let (namespace, host) = spec.service.split_once('/').unwrap_or((own, &spec.service));
    let service = services::find(services, host, namespace, cluster_domain)
        .ok_or_else(|| ("service", format!("there is no service {:?}", spec.service)))?;
    if !service.ports.iter().any(|port| port.number == spec.port) {
        let message = format!("{} has no port {}", service.fqdn, spec.port);
        return Err(("port", message));
    }
    let timeout = match &spec.timeout {
        Some(text) => value::duration(text).map_err(|message| ("timeout", message))?,
        None => TIMEOUT_DEFAULT,
    };
    if timeout.is_zero() {
        return Err(("timeout", "must be greater than 0".to_owned()));
    }
    let status_on_error = match spec.status_on_error.as_deref() {
        None => EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT,
        Some(text) => {
            let status = text.parse().ok().filter(|code| (200..600).contains(code));
            status.ok_or_else(|| ("statusOnError", format!("{text:?} is not 200 to 599")))?
        }
    };
    Ok(ExtAuthz {
        timeout,
        status_on_error,
        failure_mode_allow: spec.fail_open,
        authority: Some(service.fqdn.clone()),
        ..ExtAuthz::new(cluster_name(spec.port, "", &service.fqdn))
    })
}
