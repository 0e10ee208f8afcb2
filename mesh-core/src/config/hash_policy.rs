//! What requests have in common that should go to the same endpoint (Envoy
//! `RouteAction.hash_policy`; gRFC A42).

use std::time::Duration;

use super::RegexRewrite;

/// One part of a request's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Whether the parts behind it are left out when there is a hash.
    pub terminal: bool,
}

/// What is hashed. A request without it has no hash from this part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// A header's values, joined with `,`; `-bin` headers have none (gRFC A42).
    Header {
        /// Lower-case name.
        name: String,
        /// What becomes of the value before.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
        /// How long one lives that is made for a request without; `None` makes none.
        ttl: Option<Duration>,
        /// Path of the cookie that is made.
        path: String,
        /// Further attributes of it, each with its value, which may be empty.
        attributes: Vec<(String, String)>,
    },
    /// A query parameter's first value, as it is written.
    QueryParameter(String),
    /// The client's address.
    SourceIp,
    /// The channel that the call is made on (`io.grpc.channel_id`).
    Channel,
    /// Something that cannot be known here: no hash.
    Unknown,
}
