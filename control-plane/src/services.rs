//! Every instance of every service, whoever declared it, as `/v1/services` shows it.

use mesh_core::config::HealthStatus;

use crate::{
    compile::{Compiled, Workload},
    registry::{InstanceReport, Registry, word},
};

/// Instances that registered, and those that are declared, by service; of one service (`NAMESPACE/NAME`
/// or `NAME`) if that is wanted.
pub fn list(
    registry: &Registry,
    compiled: Option<&Compiled>,
    wanted: Option<&str>,
) -> Vec<InstanceReport> {
    let mut found = registry.report();
    let services = compiled
        .into_iter()
        .flat_map(|compiled| compiled.services.values());
    for service in services {
        let name = format!("{}/{}", service.namespace, service.name);
        let declared = service.workloads.iter().filter(|w| !w.is_registered());
        found.extend(declared.map(|workload| declared_instance(&name, workload)));
    }
    found.retain(|instance| {
        let name = instance.service.split_once('/').map(|(_, name)| name);
        wanted.is_none_or(|wanted| instance.service == wanted || name == Some(wanted))
    });
    found.sort_by(|one, other| {
        (&one.service, &one.id, &one.address).cmp(&(&other.service, &other.id, &other.address))
    });
    found
}

fn declared_instance(service: &str, workload: &Workload) -> InstanceReport {
    let mut addresses: Vec<_> = workload
        .addresses
        .values()
        .map(ToString::to_string)
        .collect();
    addresses.dedup();
    let health = workload.health();
    InstanceReport {
        service: service.to_owned(),
        id: String::new(),
        address: addresses.join(","),
        source: "file".to_owned(),
        health: word(health).to_owned(),
        reason: match health {
            HealthStatus::Healthy | HealthStatus::Unknown => String::new(),
            _ => "its object says so".to_owned(),
        },
        weight: workload.weight(),
        checks: Vec::new(),
        lease_left: None,
    }
}
