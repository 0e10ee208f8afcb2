//! Sessions that stick to an endpoint, by a cookie or a header: Gateway API's `sessionPersistence`
//! (GEP-1619) and `session` of our FilterPolicy.

use std::sync::Arc;

use http::HeaderName;
use mesh_core::config::{FilterConfig, SessionCookieConfig, SessionState, StatefulSession};

use super::route_match::Wrong;
use crate::{
    model::{SessionSpec, gateway::SessionPersistence},
    value,
};

/// Name of the filter, in listeners and routes.
pub const SESSION_FILTER: &str = "envoy.filters.http.stateful_session";
/// Longest name of a session (GEP-1619).
const NAME_MAX: usize = 128;

/// What a rule or a policy says, which `name` is of; the field in an error is below it.
pub(super) fn session(declared: &SessionPersistence, name: &str) -> Result<FilterConfig, Wrong> {
    let name = match declared.session_name.as_deref() {
        None | Some("") => format!("mesh-session-{name}"),
        Some(name) => name.to_owned(),
    };
    let state = match declared.r#type.as_deref() {
        None | Some("Cookie") => SessionState::Cookie(persistent_cookie(declared, name)?),
        Some("Header") => by_header(declared, &name)?,
        Some(other) => {
            let message = format!("{other:?} is not Cookie or Header");
            return Err(("type".to_owned(), message));
        }
    };
    Ok(filter(state, false))
}

fn filter(state: SessionState, strict: bool) -> FilterConfig {
    FilterConfig::StatefulSession(Some(Arc::new(StatefulSession { state, strict })))
}

fn persistent_cookie(
    declared: &SessionPersistence,
    name: String,
) -> Result<SessionCookieConfig, Wrong> {
    let name = cookie_name(name).map_err(|message| ("sessionName".to_owned(), message))?;
    let life = life(declared.absolute_timeout.as_deref());
    let life = life.map_err(|message| ("absoluteTimeout".to_owned(), message))?;
    let cookie = declared.cookie_config.as_ref();
    let wrong = |message| Err(("cookieConfig.lifetimeType".to_owned(), message));
    match cookie.and_then(|cookie| cookie.lifetime_type.as_deref()) {
        None | Some("Session") => {}
        Some("Permanent") if life.is_some() => {}
        Some("Permanent") => {
            return wrong("a permanent cookie needs an absoluteTimeout".to_owned());
        }
        Some(other) => return wrong(format!("{other:?} is not Session or Permanent")),
    }
    Ok(SessionCookieConfig {
        name,
        ttl: life,
        path: "/".to_owned(),
        attributes: Vec::new(),
    })
}

/// A header has no life: nobody but the caller could end it.
fn by_header(declared: &SessionPersistence, name: &str) -> Result<SessionState, Wrong> {
    let wrong = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    if declared.cookie_config.is_some() {
        return wrong("cookieConfig", "a session in a header has no cookie");
    }
    if declared.absolute_timeout.is_some() {
        return wrong(
            "absoluteTimeout",
            "a session in a header does not end by time",
        );
    }
    header(name).map_err(|message| ("sessionName".to_owned(), message))
}

/// What a FilterPolicy says; the field in an error is below `spec`.
pub(super) fn declared(declared: &SessionSpec) -> Result<FilterConfig, Wrong> {
    let at = |field: &'static str| move |message| (field.to_owned(), message);
    let state = match (&declared.cookie, &declared.header) {
        (Some(cookie), None) => {
            let path = cookie.path.clone().unwrap_or_else(|| "/".to_owned());
            if !path.starts_with('/') {
                let message = format!("{path:?} does not begin with /");
                return Err(at("session.cookie.path")(message));
            }
            SessionState::Cookie(SessionCookieConfig {
                name: cookie_name(cookie.name.clone()).map_err(at("session.cookie.name"))?,
                ttl: life(cookie.ttl.as_deref()).map_err(at("session.cookie.ttl"))?,
                path,
                attributes: Vec::new(),
            })
        }
        (None, Some(name)) => header(name).map_err(at("session.header"))?,
        _ => return Err(at("session")("write one of cookie and header".to_owned())),
    };
    Ok(filter(state, declared.strict))
}

fn life(text: Option<&str>) -> Result<Option<std::time::Duration>, String> {
    let life = text.map(value::duration).transpose()?;
    Ok(life.filter(|life| !life.is_zero()))
}

/// RFC 6265 takes the names of cookies from the tokens of HTTP.
fn cookie_name(name: String) -> Result<String, String> {
    match name.len() <= NAME_MAX && http::Method::from_bytes(name.as_bytes()).is_ok() {
        true => Ok(name),
        false => Err(format!("{name:?} is not the name of a cookie")),
    }
}

fn header(name: &str) -> Result<SessionState, String> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    let parsed = parsed.filter(|_| name.len() <= NAME_MAX);
    let parsed = parsed.ok_or_else(|| format!("{name:?} is not the name of a header"))?;
    Ok(SessionState::Header(parsed))
}
