//! Sessions that stick to an endpoint (Gateway API's `sessionPersistence`, GEP-1619), by a cookie.

use std::sync::Arc;

use mesh_core::config::{FilterConfig, StatefulSession};

use super::route_match::Wrong;
use crate::{model::gateway::SessionPersistence, value};

/// Name of the filter, in listeners and routes.
pub const SESSION_FILTER: &str = "envoy.filters.http.stateful_session";
/// Longest name of a cookie (GEP-1619).
const NAME_MAX: usize = 128;

/// What a rule or a policy says, which `name` is of; the field in an error is below it.
pub(super) fn session(declared: &SessionPersistence, name: &str) -> Result<FilterConfig, Wrong> {
    let wrong = |field: &str, message: String| Err((field.to_owned(), message));
    match declared.r#type.as_deref() {
        None | Some("Cookie") => {}
        Some(other) => {
            let message = format!("{other:?} is not supported: write Cookie");
            return wrong("type", message);
        }
    }
    let name = match declared.session_name.as_deref() {
        None | Some("") => format!("mesh-session-{name}"),
        Some(name) => name.to_owned(),
    };
    // RFC 6265 takes the names of cookies from the tokens of HTTP.
    if name.len() > NAME_MAX || http::Method::from_bytes(name.as_bytes()).is_err() {
        let message = format!("{name:?} is not the name of a cookie");
        return wrong("sessionName", message);
    }
    let life = declared.absolute_timeout.as_deref().map(value::duration);
    let life = match life.transpose() {
        Ok(life) => life.filter(|life| !life.is_zero()),
        Err(message) => return wrong("absoluteTimeout", message),
    };
    let cookie = declared.cookie_config.as_ref();
    match cookie.and_then(|cookie| cookie.lifetime_type.as_deref()) {
        None | Some("Session") => {}
        Some("Permanent") if life.is_some() => {}
        Some("Permanent") => {
            let message = "a permanent cookie needs an absoluteTimeout".to_owned();
            return wrong("cookieConfig.lifetimeType", message);
        }
        Some(other) => {
            let message = format!("{other:?} is not Session or Permanent");
            return wrong("cookieConfig.lifetimeType", message);
        }
    }
    Ok(FilterConfig::StatefulSession(Some(Arc::new(
        StatefulSession {
            name,
            ttl: life,
            path: "/".to_owned(),
            attributes: Vec::new(),
            strict: false,
        },
    ))))
}
