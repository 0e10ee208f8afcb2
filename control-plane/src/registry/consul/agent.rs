//! What changes: registering, deregistering, telling checks, maintenance.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, Path, Query, State},
    http::Extensions,
};
use serde::Deserialize;

use super::{Refused, body};
use crate::{
    audit,
    ca::ConnectionPeer,
    registry::{CheckStatus, Registry},
};

/// `?key=value`.
pub(super) type Parameters = Query<BTreeMap<String, String>>;

/// `PUT /v1/agent/service/register`.
pub(super) async fn register(
    State(registry): State<Registry>,
    Query(by): Parameters,
    extensions: Extensions,
    text: Bytes,
) -> Result<(), Refused> {
    let mut registration = body::registration(&text, address(&extensions)).map_err(Refused::bad)?;
    if let Some(namespace) = by.get("ns") {
        registration.namespace.clone_from(namespace);
    }
    // `replace-existing-checks` is so in any case: a registration says all of its checks.
    let object = format!(
        "{}/{} {}",
        registration.namespace, registration.service, registration.id
    );
    let done = registry.register(registration).await;
    let who = principal(&extensions);
    let action = (who.as_str(), "instance.register");
    registry.audit().outcome(action, &object, &done);
    Ok(done?)
}

/// Where a request comes from.
fn address(extensions: &Extensions) -> Option<IpAddr> {
    let plain = extensions.get::<ConnectInfo<SocketAddr>>();
    let secure = extensions.get::<ConnectionPeer>();
    secure
        .map(|peer| peer.address.ip())
        .or_else(|| Some(plain?.0.ip()))
}

/// Who asks: an identity where the connection proves one, else an address.
fn principal(extensions: &Extensions) -> String {
    let peer = extensions.get::<ConnectionPeer>();
    let identity = peer.and_then(|peer| peer.identity.as_ref());
    audit::principal(identity, address(extensions))
}

/// `PUT /v1/agent/service/deregister/:id`.
pub(super) async fn deregister(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    extensions: Extensions,
) -> Result<(), Refused> {
    let done = registry.deregister(&id).await?;
    let who = principal(&extensions);
    let action = (who.as_str(), "instance.deregister");
    registry.audit().outcome(action, &id, &done);
    Ok(done?)
}

/// `PUT /v1/agent/service/maintenance/:id?enable=true&reason=`.
pub(super) async fn maintenance(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    Query(by): Parameters,
    extensions: Extensions,
) -> Result<(), Refused> {
    let reason = match by.get("enable").map(String::as_str) {
        // What Go reads as a boolean.
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => {
            Some(by.get("reason").cloned().unwrap_or_default())
        }
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => None,
        Some(other) => {
            return Err(Refused::bad(format!(
                "enable: {other:?} is not true or false"
            )));
        }
        None => return Err(Refused::bad("Missing value for enable")),
    };
    let done = registry.maintain(&id, reason).await?;
    let who = principal(&extensions);
    let action = (who.as_str(), "instance.maintenance");
    registry.audit().outcome(action, &id, &done);
    Ok(done?)
}

/// `PUT /v1/agent/check/pass/:id?note=`.
pub(super) async fn pass(
    registry: State<Registry>,
    id: Path<String>,
    by: Parameters,
) -> Result<(), Refused> {
    tell(&registry, &id, CheckStatus::Passing, &by)
}

/// `PUT /v1/agent/check/warn/:id?note=`.
pub(super) async fn warn(
    registry: State<Registry>,
    id: Path<String>,
    by: Parameters,
) -> Result<(), Refused> {
    tell(&registry, &id, CheckStatus::Warning, &by)
}

/// `PUT /v1/agent/check/fail/:id?note=`.
pub(super) async fn fail(
    registry: State<Registry>,
    id: Path<String>,
    by: Parameters,
) -> Result<(), Refused> {
    tell(&registry, &id, CheckStatus::Critical, &by)
}

fn tell(
    registry: &Registry,
    id: &str,
    status: CheckStatus,
    by: &Parameters,
) -> Result<(), Refused> {
    let note = by.get("note").map_or("", String::as_str);
    Ok(registry.tell(id, status, note)?)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    status: String,
    #[serde(default)]
    output: String,
}

/// `PUT /v1/agent/check/update/:id` with `{"Status", "Output"}`.
pub(super) async fn update(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    text: Bytes,
) -> Result<(), Refused> {
    let wrong = |error| Refused::bad(format!("Request decode failed: {error}"));
    let Update { status, output } = serde_json::from_slice(&text).map_err(wrong)?;
    let known = CheckStatus::from_word(&status);
    let status = known.ok_or_else(|| {
        let wanted = "passing, warning or critical";
        Refused::bad(format!("Invalid check status {status:?}: write {wanted}"))
    })?;
    Ok(registry.tell(&id, status, &output)?)
}
