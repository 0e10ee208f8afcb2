//! Clusters: a group of replicas with one policy (xDS CDS; gRFC A27, A32).

use std::time::Duration;

use super::{
    CommonLbConfig, ConnectionOptions, HealthCheck, LbPolicy, OutlierDetection, Subsets,
    UpstreamTls,
};
use crate::name::{ClusterName, EndpointsName};

/// Default of [`Cluster::connect_timeout`] (Envoy `Cluster.connect_timeout`).
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Resource name.
    pub name: ClusterName,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// How one endpoint is chosen.
    pub lb_policy: LbPolicy,
    /// What is the same for all policies.
    pub common_lb_config: CommonLbConfig,
    /// Subsets of the endpoints, which routes ask for by metadata. Default none.
    pub subsets: Option<Subsets>,
    /// Passive health. Default none.
    pub outlier_detection: Option<OutlierDetection>,
    /// Active health. Default none.
    pub health_checks: Vec<HealthCheck>,
    /// Limits on load.
    pub circuit_breakers: CircuitBreakers,
    /// Limit of TCP connect and TLS handshake together. Default [`DEFAULT_CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How connections are kept.
    pub connection: ConnectionOptions,
    /// Which HTTP version to speak.
    pub http_version: HttpVersion,
    /// TLS settings; `None` is plaintext.
    pub tls: Option<UpstreamTls>,
}

impl Cluster {
    /// A cluster that takes its endpoints from EDS by its own name, and all else by default.
    pub fn new(name: impl Into<ClusterName>) -> Self {
        let name = name.into();
        Self {
            discovery: Discovery::Eds(name.as_str().into()),
            name,
            lb_policy: LbPolicy::default(),
            common_lb_config: CommonLbConfig::default(),
            subsets: None,
            outlier_detection: None,
            health_checks: Vec::new(),
            circuit_breakers: CircuitBreakers::default(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connection: ConnectionOptions::default(),
            http_version: HttpVersion::ByRequest,
            tls: None,
        }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// EDS, by `service_name`, or by the cluster's own name where the resource has none.
    Eds(EndpointsName),
}

/// Which HTTP version a cluster's endpoints speak (`HttpProtocolOptions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/2 for gRPC requests, HTTP/1.1 for the others.
    ByRequest,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Limits on a cluster's load (gRFC A32; Envoy `CircuitBreakers.Thresholds`, priority DEFAULT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreakers {
    /// Requests in flight from this process. Default 1024; `u32::MAX` is no limit.
    pub max_requests: u32,
    /// Connections to all endpoints together; each one that is used may have at least one. Default
    /// 1024; `u32::MAX` is no limit.
    pub max_connections: u32,
    /// Requests that wait for a connection. Default 1024; `u32::MAX` is no limit.
    pub max_pending_requests: u32,
    /// Retries in flight; with it there is no [`retry_budget`](Self::retry_budget). Default none:
    /// the budget is the limit.
    pub max_retries: Option<u32>,
    /// Connections to one endpoint; not 0 (gRFC A105 `per_host_thresholds.max_connections`).
    /// Default none: as many HTTP/1.1 connections as [`max_connections`](Self::max_connections)
    /// leaves, and [`HTTP2_CONNECTIONS_MAX`] of HTTP/2.
    pub max_connections_per_host: Option<u32>,
    /// Limit on retries.
    pub retry_budget: RetryBudget,
}

/// HTTP/2 connections to one endpoint at most, however many
/// [`CircuitBreakers::max_connections_per_host`] allows (gRFC A105).
pub const HTTP2_CONNECTIONS_MAX: u32 = 10;

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_connections: 1024,
            max_pending_requests: 1024,
            max_retries: None,
            max_connections_per_host: None,
            retry_budget: RetryBudget::default(),
        }
    }
}

/// How many retries there may be (Envoy `Thresholds.RetryBudget`; see
/// [`Circuit`](crate::health::Circuit) for how the share is counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries for each hundred requests, 0 to 100. Default 20.
    pub percent: u32,
    /// Retries in flight that are always allowed. Default 3.
    pub min_retry_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            min_retry_concurrency: 3,
        }
    }
}
