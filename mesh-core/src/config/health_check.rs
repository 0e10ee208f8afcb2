//! Active health checks: requests of the mesh's own that ask an endpoint whether it is well (Envoy
//! `core.v3.HealthCheck`).

use std::{ops::Range, time::Duration};

/// A health check of each endpoint of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// A check that takes longer has failed; not 0.
    pub timeout: Duration,
    /// Time from the end of one check to the next; not 0.
    pub interval: Duration,
    /// Time between the checks of an endpoint that has failed some in a row. Default none: as
    /// [`interval`](Self::interval).
    pub unhealthy_interval: Option<Duration>,
    /// The first check of an endpoint waits for a random part of this. Default 0.
    pub initial_jitter: Duration,
    /// Up to this much is added to each interval. Default 0.
    pub interval_jitter: Duration,
    /// Up to this percentage of the interval is added to it as well. Default 0.
    pub interval_jitter_percent: u32,
    /// Checks in a row that fail before a healthy endpoint is unhealthy; not 0. A status that is neither
    /// expected nor retriable makes it so at once.
    pub unhealthy_threshold: u32,
    /// Checks in a row that succeed before an unhealthy endpoint is healthy; not 0. The first check
    /// of all needs one.
    pub healthy_threshold: u32,
    /// Interval while no request was ever sent to the cluster, in Envoy. Here such a cluster has no
    /// checks at all. Default 60 s.
    pub no_traffic_interval: Duration,
    /// Whether checks of one endpoint share a connection. Default `true`.
    pub reuse_connection: bool,
    /// What is asked.
    pub kind: HealthCheckKind,
}

/// Default of [`HealthCheck::no_traffic_interval`] (Envoy).
pub const NO_TRAFFIC_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

impl HealthCheck {
    /// A check with Envoy's defaults for what has some.
    pub fn new(timeout: Duration, interval: Duration, kind: HealthCheckKind) -> Self {
        Self {
            timeout,
            interval,
            unhealthy_interval: None,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 2,
            healthy_threshold: 2,
            no_traffic_interval: NO_TRAFFIC_INTERVAL_DEFAULT,
            reuse_connection: true,
            kind,
        }
    }
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthCheckKind {
    /// An HTTP request.
    Http(HttpHealthCheck),
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked for; empty for the server as a whole.
        service_name: String,
        /// `:authority`; empty for the cluster's name.
        authority: String,
    },
    /// A connection, and bytes.
    Tcp {
        /// What is sent; nothing if empty.
        send: Vec<u8>,
        /// What must come back, one after the other, with anything between them. Nothing: that
        /// there is a connection suffices.
        receive: Vec<Vec<u8>>,
    },
}

/// An HTTP request that asks for health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpHealthCheck {
    /// `host` or `:authority`; empty for the cluster's name.
    pub host: String,
    /// The path.
    pub path: String,
    /// The method. Default GET.
    pub method: http::Method,
    /// More headers.
    pub headers: http::HeaderMap,
    /// Statuses that are healthy. Default 200 alone.
    pub expected_statuses: Vec<Range<u16>>,
    /// Statuses that fail a check, and make an endpoint unhealthy only after `unhealthy_threshold` of
    /// them; all others do at once. Default none.
    pub retriable_statuses: Vec<Range<u16>>,
    /// Whether HTTP/2 is spoken. Default `false`.
    pub is_http2: bool,
}
