//! What is asked: agent, catalog and health, with blocking queries.
//!
//! `index` and `wait` wait for a change (<https://developer.hashicorp.com/consul/api-docs/features/blocking>):
//! the answer comes when the index is another one, or after the wait and up to a sixteenth of it more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use mesh_core::rng::{Rng as _, SplitMix64};
use serde_json::{Value, json};

use super::{DATACENTER, NODE, Refused, agent::Parameters, show};
use crate::{
    registry::{
        CheckStatus, Registry, Unknown,
        table::{Entry, Table},
    },
    value,
};

/// `wait` where there is none.
const WAIT: Duration = Duration::from_secs(300);
/// The longest `wait`.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// A wait is longer by up to this part of it, so that those who began together do not end together.
const WAIT_JITTER: u32 = 16;

type By = BTreeMap<String, String>;

/// Refuses what would ask for something else than is answered.
fn understood(by: &By) -> Result<(), Refused> {
    for name in [
        "filter",
        "near",
        "node-meta",
        "peer",
        "sg",
        "merge-central-config",
    ] {
        if by.contains_key(name) {
            let message = format!("{name}: it is not supported: leave it out and choose from all");
            return Err(Refused::bad(message));
        }
    }
    match by.get("dc").map(String::as_str) {
        None | Some("" | DATACENTER) => Ok(()),
        Some(_) => Err(Refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "No path to datacenter".to_owned(),
        )),
    }
}

/// Answers at once, or when what `index_of` says is not what the client has.
async fn blocking(
    registry: &Registry,
    by: &By,
    index_of: impl Fn(&Table) -> u64,
    answer: impl Fn(&Table) -> Value,
) -> Result<Response, Refused> {
    understood(by)?;
    let index = by.get("index").map(|text| text.parse::<u64>());
    let index = index
        .transpose()
        .map_err(|_| Refused::bad("Invalid index"))?
        .filter(|index| *index > 0);
    if let Some(index) = index {
        let wait = by.get("wait").map(|text| value::duration(text));
        let wait = wait
            .transpose()
            .map_err(|_| Refused::bad("Invalid wait time"))?;
        let wait = wait
            .filter(|wait| !wait.is_zero())
            .unwrap_or(WAIT)
            .min(WAIT_MAX);
        let jitter = (wait / WAIT_JITTER).mul_f64(SplitMix64::new(index).unit());
        registry.changed(&index_of, index, wait + jitter).await;
    }
    let table = registry.table();
    let (index, body) = (index_of(&table), answer(&table));
    drop(table);
    let mut headers = HeaderMap::new();
    headers.insert("x-consul-index", HeaderValue::from(index));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    Ok((headers, Json(body)).into_response())
}

fn shown(table: &Table) -> impl Iterator<Item = &Entry> {
    table.entries.values().filter(|entry| show::is_shown(entry))
}

/// Those of a name, and of a tag and a namespace where these are asked for.
fn named<'t>(table: &'t Table, name: &'t str, by: &'t By) -> impl Iterator<Item = &'t Entry> {
    shown(table).filter(move |entry| {
        let registration = &entry.registration;
        registration.service == name
            && by
                .get("tag")
                .is_none_or(|tag| registration.tags.contains(tag))
            && by.get("ns").is_none_or(|ns| registration.namespace == *ns)
    })
}

/// Whether a flag is there: `?passing`, `?passing=1` and `?passing=true` are.
fn flag(by: &By, name: &str) -> bool {
    by.get(name)
        .is_some_and(|value| !matches!(value.as_str(), "0" | "f" | "false"))
}

pub(super) async fn itself() -> Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({"Config": {"Datacenter": DATACENTER, "NodeName": NODE, "Version": version}}))
}

pub(super) async fn agent_services(
    State(registry): State<Registry>,
    Query(by): Parameters,
) -> Result<Json<Value>, Refused> {
    understood(&by)?;
    let table = registry.table();
    let all = shown(&table).map(|entry| (entry.registration.id.clone(), show::service(entry)));
    Ok(Json(Value::Object(all.collect())))
}

pub(super) async fn agent_service(
    State(registry): State<Registry>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refused> {
    let table = registry.table();
    let entry = table.entries.get(&id).filter(|entry| show::is_shown(entry));
    let entry = entry.ok_or(Unknown::Instance(id))?;
    Ok(Json(show::service(entry)))
}

pub(super) async fn agent_checks(
    State(registry): State<Registry>,
    Query(by): Parameters,
) -> Result<Json<Value>, Refused> {
    understood(&by)?;
    let table = registry.table();
    let all = shown(&table)
        .flat_map(show::checks)
        .filter_map(|(_, check)| {
            let id = check["CheckID"].as_str()?.to_owned();
            Some((id, check))
        });
    Ok(Json(Value::Object(all.collect())))
}

pub(super) async fn catalog_services(
    State(registry): State<Registry>,
    Query(by): Parameters,
) -> Result<Response, Refused> {
    let answer = |table: &Table| {
        let mut services = BTreeMap::<&str, BTreeSet<&str>>::new();
        for entry in shown(table) {
            let tags = entry.registration.tags.iter().map(String::as_str);
            services
                .entry(&entry.registration.service)
                .or_default()
                .extend(tags);
        }
        json!(services)
    };
    blocking(&registry, &by, Table::index, answer).await
}

pub(super) async fn catalog_service(
    State(registry): State<Registry>,
    Path(name): Path<String>,
    Query(by): Parameters,
) -> Result<Response, Refused> {
    let answer = |table: &Table| named(table, &name, &by).map(show::catalog).collect();
    blocking(&registry, &by, |table| table.index_of(&name), answer).await
}

pub(super) async fn health_service(
    State(registry): State<Registry>,
    Path(name): Path<String>,
    Query(by): Parameters,
) -> Result<Response, Refused> {
    let answer = |table: &Table| {
        let wanted = named(table, &name, &by)
            .filter(|entry| !flag(&by, "passing") || show::status(entry) == CheckStatus::Passing);
        let row = |entry| {
            let checks = show::checks(entry).into_iter().map(|(_, check)| check);
            json!({
                "Node": show::node(),
                "Service": show::service(entry),
                "Checks": checks.collect::<Vec<_>>(),
            })
        };
        wanted.map(row).collect()
    };
    blocking(&registry, &by, |table| table.index_of(&name), answer).await
}

pub(super) async fn health_checks(
    State(registry): State<Registry>,
    Path(name): Path<String>,
    Query(by): Parameters,
) -> Result<Response, Refused> {
    let answer = |table: &Table| {
        let all = named(table, &name, &by).flat_map(show::checks);
        all.map(|(_, check)| check).collect()
    };
    blocking(&registry, &by, |table| table.index_of(&name), answer).await
}

pub(super) async fn health_state(
    State(registry): State<Registry>,
    Path(state): Path<String>,
    Query(by): Parameters,
) -> Result<Response, Refused> {
    let wanted = match state.as_str() {
        "any" => None,
        word => Some(CheckStatus::from_word(word).ok_or_else(|| {
            Refused::bad(format!("{word:?} is not any, passing, warning or critical"))
        })?),
    };
    let answer = |table: &Table| {
        let all = shown(table).flat_map(show::checks);
        let of_state = all.filter(|(status, _)| wanted.is_none_or(|wanted| *status == wanted));
        of_state.map(|(_, check)| check).collect()
    };
    blocking(&registry, &by, Table::index, answer).await
}
