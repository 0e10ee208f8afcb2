//! Sessions that stick to an endpoint by a cookie (gRFC A55; Envoy `StatefulSession`).

use std::time::Duration;

/// A session kept in a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSession {
    /// The cookie's name.
    pub name: String,
    /// How long callers keep it; `None` or zero: as long as they run.
    pub ttl: Option<Duration>,
    /// Where it holds: requests whose path is this or below; empty for all.
    pub path: String,
    /// Further attributes, each with its value, which may be empty.
    pub attributes: Vec<(String, String)>,
    /// Whether a request fails when the endpoint of its session cannot be used (Envoy `strict`).
    pub strict: bool,
}
