//! How many requests may pass.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::Selector;

object! {
    /// Limits of servers, or of the clients of a host; each process counts for itself.
    RateLimit {
        /// The servers: workloads of the namespace. Without it and a host, all of them.
        selector: Option<Selector>,
        /// The clients: those of this host, instead of servers.
        host: Option<String>,
        /// All of these hold.
        limits: Vec<RateLimitRule>,
    }
}
object! {
    /// A limit.
    RateLimitRule {
        /// So many requests.
        requests: u32,
        /// In this time; default 1s.
        interval: Option<String>,
        /// So many at once; default as many as `requests`.
        burst: Option<u32>,
        /// Which requests; default all.
        r#match: Option<RateLimitMatch>,
        /// Who has a limit of its own; default nobody.
        per: Option<RateLimitPer>,
    }
}
object! {
    /// Which requests; all parts must match.
    RateLimitMatch {
        /// The path, without its query.
        path: Option<String>,
        /// The beginning of the path.
        path_prefix: Option<String>,
        /// The method.
        method: Option<String>,
        /// Values of headers.
        headers: BTreeMap<String, String>,
    }
}
object! {
    /// What tells apart those who have a limit of their own; one of these.
    RateLimitPer {
        /// The value of this header; requests without it are not counted.
        header: Option<String>,
        /// The name in the caller's certificate; callers without one are not counted.
        client_identity: bool,
        /// The caller's address.
        client_address: bool,
    }
}
