//! A subset of Consul's HTTP API: agent services and checks, catalog, health, blocking queries.
//!
//! The whole registry is one agent, on one node: ids are one in all of it. What Consul can be asked and
//! this cannot is refused by name, not passed over. <https://developer.hashicorp.com/consul/api-docs>

mod agent;
mod body;
mod query;
mod show;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, put},
};

use super::{Registry, Unknown};

/// The datacenter that everything is in.
pub const DATACENTER: &str = "dc1";
/// The node that everything is on.
pub const NODE: &str = "mesh";
/// Largest body that is read.
pub const BODY_MAX: usize = 256 * 1024;

/// The routes, below `/v1`.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/v1/agent/self", get(query::itself))
        .route("/v1/agent/services", get(query::agent_services))
        .route("/v1/agent/service/{id}", get(query::agent_service))
        .route("/v1/agent/checks", get(query::agent_checks))
        .route("/v1/agent/service/register", put(agent::register))
        .route("/v1/agent/service/deregister/{id}", put(agent::deregister))
        .route(
            "/v1/agent/service/maintenance/{id}",
            put(agent::maintenance),
        )
        .route("/v1/agent/check/pass/{id}", put(agent::pass))
        .route("/v1/agent/check/warn/{id}", put(agent::warn))
        .route("/v1/agent/check/fail/{id}", put(agent::fail))
        .route("/v1/agent/check/update/{id}", put(agent::update))
        .route("/v1/catalog/services", get(query::catalog_services))
        .route("/v1/catalog/service/{name}", get(query::catalog_service))
        .route("/v1/health/service/{name}", get(query::health_service))
        .route("/v1/health/checks/{name}", get(query::health_checks))
        .route("/v1/health/state/{state}", get(query::health_state))
        .route(
            "/v1/status/leader",
            get(async || axum::Json("127.0.0.1:8300")),
        )
        .with_state(registry)
}

/// Something that is not done, in Consul's way: a status and a line of text.
#[derive(Debug)]
struct Refused(StatusCode, String);

impl Refused {
    fn bad(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        let message = format!("the registration cannot be kept: {error}");
        Self(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<Unknown> for Refused {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Instance(id) => Self(
                StatusCode::NOT_FOUND,
                format!(
                    "Unknown service ID {id:?}. Ensure that the service ID is passed, not the \
                     service name."
                ),
            ),
            Unknown::Check(id) => Self(
                StatusCode::NOT_FOUND,
                format!(
                    "Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name."
                ),
            ),
            Unknown::NotTold(id) => Self::bad(format!(
                "CheckID {id:?} does not have associated TTL: it is done by the control plane"
            )),
        }
    }
}
