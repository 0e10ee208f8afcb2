//! What happens to requests on their way, where no route says it.

use serde::Deserialize;

use crate::model::{HeadersSpec, Selector};

object! {
    /// Filters of servers, or of the clients of a host.
    FilterPolicy {
        /// The servers: workloads of the namespace. Without it and a host, all of them.
        selector: Option<Selector>,
        /// The clients: those of this host, instead of servers.
        host: Option<String>,
        /// Headers that are changed, of requests and responses.
        headers: Option<HeadersSpec>,
        /// Requests are held back until their bodies are there.
        buffer: Option<BufferSpec>,
        /// Requests of a session go to one endpoint; with a host alone.
        session: Option<SessionSpec>,
    }
}
object! {
    /// Requests are held back until their bodies are there.
    BufferSpec {
        /// A longer body is refused, with 413.
        max_request_bytes: u32,
    }
}
object! {
    /// Requests of a session go to one endpoint; by one of `cookie` and `header`.
    SessionSpec {
        /// Callers keep a cookie.
        cookie: Option<SessionCookieSpec>,
        /// Callers send back this header of the response.
        header: Option<String>,
        /// Whether a request fails when the endpoint of its session is gone. Default false.
        strict: bool,
    }
}
object! {
    /// A session's cookie.
    SessionCookieSpec {
        /// Name.
        name: String,
        /// How long callers keep it; default as long as they run.
        ttl: Option<String>,
        /// Where it holds; default `/`.
        path: Option<String>,
    }
}
