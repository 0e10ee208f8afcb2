//! The HTTP endpoint for operators: health, metrics, and what the control plane knows.
//!
//! Read-only; nothing here changes state, and no answer holds a key or a token.

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
    cache::{Version, World},
    diagnostic::Diagnostic,
    explain::{ExplainRequest, explain_compiled},
    metrics::Metrics,
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
    /// Served at `/v1/explain` and `/v1/routes`.
    pub world: watch::Receiver<Option<Arc<World>>>,
}

/// The routes `/healthz`, `/readyz`, `/metrics`, `/v1/diagnostics`, `/v1/clients`, `/v1/resources`,
/// `/v1/wait`, `/v1/explain` and `/v1/routes`.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/diagnostics", get(diagnostics))
        .route("/v1/clients", get(clients))
        .route("/v1/resources", get(resources))
        .route("/v1/wait", get(wait))
        .route("/v1/explain", get(explain))
        .route("/v1/routes", get(routes))
        .with_state(state)
}

type Parameters = Query<BTreeMap<String, String>>;

async fn diagnostics(State(state): State<AdminState>) -> impl IntoResponse {
    let mut found = state
        .diagnostics
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    found.extend(state.clients.withheld());
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

/// What becomes of a request: `?method=` and `?url=`, `?headers=` with one header a line, `?from=`
/// with the client's `NAMESPACE/KEY=VALUE,…`. 404: nothing is served yet.
async fn explain(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let of = |name: &str| by.get(name).map_or("", String::as_str);
    let request = ExplainRequest::parse(of("method"), of("url"), of("headers"), of("from"));
    let request = match request {
        Ok(request) => request,
        Err(message) => {
            let message = json!({"error": message});
            return (StatusCode::BAD_REQUEST, Json(message)).into_response();
        }
    };
    let Some(world) = state.world.borrow().clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    Json(explain_compiled(world.compiled(), &request)).into_response()
}

/// What became of the routes of Gateway API; `?object=` selects one, for example
/// `HTTPRoute default/greeter`.
async fn routes(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let Some(world) = state.world.borrow().clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let all = world.compiled().statuses.values();
    let wanted = all.filter(|status| {
        by.get("object")
            .is_none_or(|object| status.object == *object)
    });
    Json(wanted.collect::<Vec<_>>()).into_response()
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

    #[tokio::test]
    async fn readiness_follows_the_state() {
        let (ready, is_ready) = watch::channel(false);
        let state = AdminState {
            metrics: Metrics::new(),
            ready: is_ready,
            diagnostics: Arc::default(),
            clients: Clients::default(),
            world: watch::channel(None).1,
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
        for path in ["/v1/explain?method=GET&url=http%3A%2F%2Fa%2F", "/v1/routes"] {
            assert_eq!(
                status(path).await,
                StatusCode::NOT_FOUND,
                "nothing is served"
            );
        }
        let nothing = status("/v1/wait?timeout=1ms").await;
        assert_eq!(nothing, StatusCode::NOT_FOUND, "nothing was published");
        assert_eq!(
            status("/v1/wait?timeout=soon").await,
            StatusCode::BAD_REQUEST
        );
    }
}
