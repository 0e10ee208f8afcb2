//! Sessions that stick to an endpoint (gRFC A55; Envoy `StatefulSession`).

use std::time::Duration;

use http::HeaderName;

/// Sessions that stick to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSession {
    /// What callers keep, and send back.
    pub state: SessionState,
    /// Whether a request fails when the endpoint of its session cannot be used (Envoy `strict`).
    pub strict: bool,
}

/// What callers keep of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// A cookie, which names the endpoint and its cluster (Envoy `CookieBasedSessionState`).
    Cookie(SessionCookieConfig),
    /// A header of the response with the endpoint's address in base64, which callers send back in their
    /// requests (Envoy `HeaderBasedSessionState`).
    Header(HeaderName),
}

/// A session's cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionCookieConfig {
    /// The cookie's name.
    pub name: String,
    /// How long callers keep it; `None` or zero: as long as they run.
    pub ttl: Option<Duration>,
    /// Where it holds: requests whose path is this or below; empty for all.
    pub path: String,
    /// Further attributes, each with its value, which may be empty.
    pub attributes: Vec<(String, String)>,
}
