//! The HTTP endpoint for operators: health, metrics, and what the control plane knows.
//!
//! Read-only; nothing here changes state, and no answer holds a key or a token.

use std::{fmt, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde_json::Value;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// The media type Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers with the present state as JSON.
pub type View = Arc<dyn Fn() -> Value + Send + Sync>;

/// What the endpoint shows.
#[derive(Clone)]
pub struct AdminState {
    /// Served at `/metrics`.
    pub metrics: Metrics,
    /// Whether `/readyz` says yes.
    pub ready: watch::Receiver<bool>,
    /// Served at `/v1/diagnostics`.
    pub diagnostics: View,
    /// Served at `/v1/clients`.
    pub clients: View,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState")
            .field("ready", &*self.ready.borrow())
            .finish_non_exhaustive()
    }
}

/// The routes `/healthz`, `/readyz`, `/metrics`, `/v1/diagnostics` and `/v1/clients`.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(
            "/v1/diagnostics",
            get(async |state: State<AdminState>| Json((state.diagnostics)())),
        )
        .route(
            "/v1/clients",
            get(async |state: State<AdminState>| Json((state.clients)())),
        )
        .with_state(state)
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
            diagnostics: Arc::new(|| serde_json::json!([{"code": "X"}])),
            clients: Arc::new(|| serde_json::json!([])),
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
        ] {
            assert_eq!(status(path).await, StatusCode::OK, "{path}");
        }
    }
}
