//! The HTTP endpoint for operators: health, metrics, and what the control plane knows.
//!
//! Read-only but for the registry's part, where services register; no answer holds a key or a token.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::{
    cache::Version,
    diagnostic::Diagnostic,
    metrics::Metrics,
    registry::{Registry, consul},
    server::{Clients, Progress},
    value,
};

/// The media type Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long `/v1/wait` waits unless it is told.
const WAIT: Duration = Duration::from_secs(30);
/// The longest that it can be told to.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Clients or resources in one answer; the others are counted.
const LISTED_MAX: usize = 1_000;

/// What the endpoint shows.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// Served at `/metrics`.
    pub metrics: Metrics,
    /// Whether `/readyz` says yes.
    pub ready: watch::Receiver<bool>,
    /// Served at `/v1/diagnostics`.
    pub diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    /// Served at `/v1/clients`, `/v1/resources` and `/v1/wait`.
    pub clients: Clients,
    /// Services register there by Consul's API.
    pub registry: Registry,
}

/// The routes `/healthz`, `/readyz`, `/metrics`, `/v1/diagnostics`, `/v1/clients`, `/v1/resources`
/// and `/v1/wait`.
pub fn router(state: AdminState) -> Router {
    let registry = consul::router(state.registry.clone());
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/diagnostics", get(diagnostics))
        .route("/v1/clients", get(clients))
        .route("/v1/resources", get(resources))
        .route("/v1/wait", get(wait))
        .with_state(state)
        .merge(registry)
}

type Parameters = Query<BTreeMap<String, String>>;

async fn diagnostics(State(state): State<AdminState>) -> impl IntoResponse {
    let mut found = state
        .diagnostics
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    found.extend(state.clients.withheld());
    found.extend(state.registry.diagnostics());
    Json(found)
}

/// `?node=` selects by a part of the node id, `?class=` by class.
async fn clients(State(state): State<AdminState>, Query(by): Parameters) -> impl IntoResponse {
    let mut found = state.clients.list();
    found.retain(|client| {
        by.get("node")
            .is_none_or(|node| client.node.contains(&**node))
            && by.get("class").is_none_or(|class| client.class == *class)
    });
    found.truncate(LISTED_MAX);
    Json(found)
}

/// `?type=` and `?name=` select resources, `?object=` those that an object has a part in, for
/// example `VirtualService default/greeter`.
async fn resources(State(state): State<AdminState>, Query(by): Parameters) -> impl IntoResponse {
    let mut found = state.clients.resources(|kind, name, objects| {
        by.get("type").is_none_or(|wanted| kind == wanted)
            && by.get("name").is_none_or(|wanted| name == wanted)
            && by
                .get("object")
                .is_none_or(|wanted| objects.contains(wanted))
    });
    let all = found.len();
    found.truncate(LISTED_MAX);
    Json(json!({"resources": found, "all": all}))
}

/// `?version=` is what to wait for, as `control-plane version` prints it, else the newest; and
/// `?timeout=` how long. 200: every client has it; 409: some refuse a part; 504: some did not
/// answer; 404: there was no such version.
async fn wait(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let timeout = match by.get("timeout").map(|text| value::duration(text)) {
        None => WAIT,
        Some(Ok(timeout)) => timeout.min(WAIT_MAX),
        Some(Err(message)) => {
            let message = json!({"error": format!("timeout: {message}")});
            return (StatusCode::BAD_REQUEST, Json(message)).into_response();
        }
    };
    let version = by.get("version").map(|text| Version::of_client(text));
    let waited = state.clients.wait(version, Instant::now() + timeout).await;
    let status = match waited.progress {
        Progress::Done => StatusCode::OK,
        Progress::Refused => StatusCode::CONFLICT,
        Progress::Waiting => StatusCode::GATEWAY_TIMEOUT,
        Progress::Unknown => StatusCode::NOT_FOUND,
    };
    (status, Json(waited)).into_response()
}

async fn ready(State(state): State<AdminState>) -> impl IntoResponse {
    if *state.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode())
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use crate::registry::MemoryStore;

    #[tokio::test]
    async fn readiness_follows_the_state() {
        let (ready, is_ready) = watch::channel(false);
        let state = AdminState {
            metrics: Metrics::new(),
            ready: is_ready,
            diagnostics: Arc::default(),
            clients: Clients::default(),
            registry: Registry::open(MemoryStore::default()).unwrap(),
        };
        let status = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router(state.clone())
                .oneshot(request)
                .await
                .unwrap()
                .status()
        };
        assert_eq!(status("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        ready.send_replace(true);
        for path in [
            "/healthz",
            "/readyz",
            "/metrics",
            "/v1/diagnostics",
            "/v1/clients",
            "/v1/resources",
        ] {
            assert_eq!(status(path).await, StatusCode::OK, "{path}");
        }
        let nothing = status("/v1/wait?timeout=1ms").await;
        assert_eq!(nothing, StatusCode::NOT_FOUND, "nothing was published");
        assert_eq!(
            status("/v1/wait?timeout=soon").await,
            StatusCode::BAD_REQUEST
        );
    }
}
