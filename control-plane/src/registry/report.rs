//! What operators are shown of the registry.

use std::time::Instant;

use mesh_core::config::HealthStatus;
use serde::{Deserialize, Serialize};

use super::table::{Entry, Table};
use crate::diagnostic::{Diagnostic, KEPT, Severity};

/// An instance, as `/v1/services` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// `NAMESPACE/NAME` of its service.
    pub service: String,
    /// Its own name; empty for one that is in a file.
    pub id: String,
    /// `IP:PORT`, the ports separated by commas.
    pub address: String,
    /// `http`, `lease`, or the object that it is in.
    pub source: String,
    /// What EDS says of it.
    pub health: String,
    /// Why, where it is not healthy.
    #[serde(default)]
    pub reason: String,
    /// Its share.
    pub weight: u32,
    /// Its checks.
    #[serde(default)]
    pub checks: Vec<CheckReport>,
    /// Seconds that are left of its lease.
    #[serde(default)]
    pub lease_left: Option<f64>,
}

/// A check, as `/v1/services` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Its own name.
    pub id: String,
    /// `ttl`, `http`, `tcp` or `grpc`.
    pub kind: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What it said last.
    pub output: String,
}

/// The word for a health status.
pub(crate) fn word(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Unknown => "unknown",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
        HealthStatus::Draining => "draining",
        HealthStatus::Timeout => "timeout",
        HealthStatus::Degraded => "degraded",
    }
}

pub(super) fn instances(table: &Table, now: Instant) -> Vec<InstanceReport> {
    table
        .entries
        .values()
        .map(|entry| instance(entry, now))
        .collect()
}

fn instance(entry: &Entry, now: Instant) -> InstanceReport {
    let registration = &entry.registration;
    let ports: Vec<_> = registration.ports.values().map(u16::to_string).collect();
    let address = match registration.address.is_ipv6() {
        true => format!("[{}]", registration.address),
        false => registration.address.to_string(),
    };
    let checks = entry.checks.iter().map(|check| CheckReport {
        id: check.spec.id.clone(),
        kind: check.spec.kind.as_str().to_owned(),
        status: check.status.as_str().to_owned(),
        output: check.output.clone(),
    });
    let left = entry.lease_until.filter(|_| entry.drained_at.is_none());
    InstanceReport {
        service: format!("{}/{}", registration.namespace, registration.service),
        id: registration.id.clone(),
        address: format!("{address}:{}", ports.join(",")),
        source: registration.source.to_string(),
        health: word(entry.health()).to_owned(),
        reason: reason(entry),
        weight: entry.weight(),
        checks: checks.collect(),
        lease_left: left.map(|at| at.saturating_duration_since(now).as_secs_f64()),
    }
}

fn reason(entry: &Entry) -> String {
    if entry.drained_at.is_some() {
        return "deregistered".to_owned();
    }
    if let Some(reason) = &entry.maintenance {
        return match reason.is_empty() {
            true => "in maintenance".to_owned(),
            false => format!("in maintenance: {reason}"),
        };
    }
    if entry.is_kept {
        return "kept: too many endpoints of the service were lost at once".to_owned();
    }
    String::new()
}

/// A finding for each service of which endpoints are kept.
pub(super) fn kept(table: &Table) -> Vec<Diagnostic> {
    let mut services = std::collections::BTreeMap::<(&str, &str), Vec<&str>>::new();
    for entry in table.entries.values().filter(|entry| entry.is_kept) {
        let registration = &entry.registration;
        services
            .entry((&registration.namespace, &registration.service))
            .or_default()
            .push(&registration.id);
    }
    let finding = |((namespace, service), ids): ((&str, &str), Vec<&str>)| Diagnostic {
        code: KEPT,
        severity: Severity::Warning,
        file: String::new(),
        line: 0,
        object: format!("service {namespace}/{service}"),
        field: String::new(),
        message: format!(
            "too many endpoints were lost at once, which is likelier the control plane's network \
             than theirs: {} still get requests: {}",
            ids.len(),
            ids.join(", ")
        ),
        help: "mend what checks and leases say; to take one away all the same, PUT \
               /v1/agent/service/deregister/ID"
            .to_owned(),
    };
    services.into_iter().map(finding).collect()
}
