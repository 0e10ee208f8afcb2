//! Instances and checks in Consul's words.

use serde_json::{Value, json};

use super::{DATACENTER, NODE};
use crate::registry::{CheckState, CheckStatus, Registration, UNNAMED, table::Entry};

/// Whether Consul would show it: one that deregistered is only there for EDS.
pub(super) fn is_shown(entry: &Entry) -> bool {
    entry.drained_at.is_none()
}

/// The port without a name, or the first.
fn port(registration: &Registration) -> u16 {
    let ports = &registration.ports;
    let port = ports.get(UNNAMED).or_else(|| ports.values().next());
    port.copied().unwrap_or_default()
}

/// The status of an instance, with maintenance.
pub(super) fn status(entry: &Entry) -> CheckStatus {
    match entry.maintenance {
        Some(_) => CheckStatus::Critical,
        None => entry.status(),
    }
}

pub(super) fn service(entry: &Entry) -> Value {
    let registration = &entry.registration;
    json!({
        "ID": registration.id,
        "Service": registration.service,
        "Tags": registration.tags,
        "Meta": registration.meta,
        "Port": port(registration),
        "Address": registration.address,
        "Weights": weights(registration),
        "EnableTagOverride": registration.enable_tag_override,
        "Datacenter": DATACENTER,
        "Namespace": registration.namespace,
        "CreateIndex": entry.create_index,
        "ModifyIndex": entry.modify_index,
    })
}

fn weights(registration: &Registration) -> Value {
    let weights = registration.weights;
    json!({"Passing": weights.passing, "Warning": weights.warning})
}

pub(super) fn node() -> Value {
    json!({"ID": "", "Node": NODE, "Address": "127.0.0.1", "Datacenter": DATACENTER, "Meta": {}})
}

pub(super) fn catalog(entry: &Entry) -> Value {
    let registration = &entry.registration;
    json!({
        "ID": "",
        "Node": NODE,
        "Address": registration.address,
        "Datacenter": DATACENTER,
        "NodeMeta": {},
        "ServiceID": registration.id,
        "ServiceName": registration.service,
        "ServiceAddress": registration.address,
        "ServicePort": port(registration),
        "ServiceTags": registration.tags,
        "ServiceMeta": registration.meta,
        "ServiceWeights": weights(registration),
        "ServiceEnableTagOverride": registration.enable_tag_override,
        "CreateIndex": entry.create_index,
        "ModifyIndex": entry.modify_index,
    })
}

/// All checks of an instance, with the one that maintenance is in Consul.
pub(super) fn checks(entry: &Entry) -> Vec<(CheckStatus, Value)> {
    let own = entry.checks.iter().map(|state| {
        let value = check(entry, state);
        (state.status, value)
    });
    let maintenance = entry.maintenance.as_ref().map(|reason| {
        let id = format!("_service_maintenance:{}", entry.registration.id);
        let output = match reason.is_empty() {
            true => "Maintenance mode is enabled for this service, but no reason was provided.",
            false => reason,
        };
        let mut value = common(entry, &id, "Service Maintenance Mode");
        value["Status"] = json!(CheckStatus::Critical.as_str());
        value["Notes"] = json!(output);
        value["Output"] = json!("");
        value["Type"] = json!("maintenance");
        (CheckStatus::Critical, value)
    });
    own.chain(maintenance).collect()
}

fn check(entry: &Entry, state: &CheckState) -> Value {
    let spec = &state.spec;
    let mut value = common(entry, &spec.id, &spec.name);
    value["Status"] = json!(state.status.as_str());
    value["Notes"] = json!(spec.notes);
    value["Output"] = json!(state.output);
    value["Type"] = json!(spec.kind.as_str());
    if let Some(schedule) = spec.kind.schedule() {
        value["Interval"] = json!(format!("{:?}", schedule.interval));
        value["Timeout"] = json!(format!("{:?}", schedule.timeout));
    }
    value
}

fn common(entry: &Entry, id: &str, name: &str) -> Value {
    let registration = &entry.registration;
    json!({
        "Node": NODE,
        "CheckID": id,
        "Name": name,
        "ServiceID": registration.id,
        "ServiceName": registration.service,
        "ServiceTags": registration.tags,
        "Definition": {},
        "CreateIndex": entry.create_index,
        "ModifyIndex": entry.modify_index,
    })
}
