//! Listeners: what a client dials, and what a server accepts (xDS LDS; gRFC A27, A36).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    ChainMatch, DownstreamTls, ForwardClientCert, HttpFilter, HttpLimits, PathNormalization,
    RouteConfig,
};
use crate::name::{ListenerName, RouteConfigName};

/// A listener resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Resource name.
    pub name: ListenerName,
    /// Client or server side.
    pub kind: ListenerKind,
}

/// Which side a [`Listener`] is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// For a client (`api_listener`).
    Api(ApiListener),
    /// For a server (`filter_chains`).
    Inbound(InboundListener),
}

/// What a client that dials the listener's name does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiListener {
    /// Where the routes come from.
    pub routes: RouteSource,
    /// Limit of a stream's life, `None` for no limit
    /// (`common_http_protocol_options.max_stream_duration`).
    pub max_stream_duration: Option<Duration>,
    /// Limit of a stream without data in either direction, for routes that say none; `None` for no
    /// limit (`stream_idle_timeout`).
    pub stream_idle_timeout: Option<Duration>,
    /// What happens to requests on their way, in order (gRFC A39).
    pub filters: Arc<[HttpFilter]>,
    /// What the router that ends the filters does with headers.
    pub router: RouterOptions,
}

/// What a client that reads its callers' headers does with them (Envoy `Router`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterOptions {
    /// Whether servers are not told how long they are waited for (`suppress_envoy_headers`).
    pub suppress_envoy_headers: bool,
    /// Whether what another hop promised in `x-envoy-expected-rq-timeout-ms` is the timeout
    /// (`respect_expected_rq_timeout`).
    pub respect_expected_rq_timeout: bool,
    /// Headers of callers that are answered with 400 when they cannot be read.
    pub strict_headers: StrictHeaders,
}

/// A set of callers' headers (`Router.strict_check_headers`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StrictHeaders(u8);

impl StrictHeaders {
    /// Those that can be in a set.
    pub const NAMES: [&str; 5] = [
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-max-retries",
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
    ];

    /// Adds a header; false for one that cannot be in a set.
    #[must_use]
    pub fn insert(&mut self, name: &str) -> bool {
        let place = Self::NAMES.iter().position(|known| *known == name);
        self.0 |= place.map_or(0, |place| 1 << place);
        place.is_some()
    }

    /// The headers of the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let names = Self::NAMES.into_iter().enumerate();
        names.filter_map(move |(place, name)| (self.0 & 1 << place != 0).then_some(name))
    }
}

/// Where a listener's routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSource {
    /// A resource of its own (RDS).
    Rds(RouteConfigName),
    /// Written into the listener.
    Inline(Arc<RouteConfig>),
}

/// What a server does with connections on one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundListener {
    /// The address the server must listen on; `None` when any will do.
    pub address: Option<SocketAddr>,
    /// One is chosen for each connection by [`choose_chain`](super::choose_chain); none closes it.
    pub filter_chains: Vec<FilterChain>,
}

/// How connections of one kind are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChain {
    /// For people.
    pub name: String,
    /// Which connections.
    pub transport: TransportMatch,
    /// Which of those.
    pub matches: ChainMatch,
    /// TLS settings; `None` is plaintext.
    pub tls: Option<DownstreamTls>,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
    /// What is done to paths before anything looks at them.
    pub path_normalization: PathNormalization,
    /// How long connections and streams may take, and how large heads may be.
    pub limits: HttpLimits,
    /// What happens to requests before the application, in order (gRFC A39, A41).
    pub filters: Vec<HttpFilter>,
    /// Routes; a request without a route is refused.
    pub routes: RouteSource,
}

/// Which connections a [`FilterChain`] takes (`filter_chain_match.transport_protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportMatch {
    /// All.
    Any,
    /// Those that do not begin with a TLS record.
    RawBuffer,
    /// Those that begin with a TLS record.
    Tls,
}
