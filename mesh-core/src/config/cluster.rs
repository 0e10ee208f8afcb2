//! Clusters: a group of replicas with one policy (xDS CDS; gRFC A27, A32).

use std::{sync::Arc, time::Duration};

use super::{
    CommonLbConfig, ConnectionOptions, HealthCheck, LbMetadata, LbPolicy, OutlierDetection,
    SocketMatch, Subsets, UpstreamTls,
};
use crate::name::{ClusterName, EndpointsName, SecretName};

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
    /// The first of these that an endpoint's labels match holds for it instead of
    /// [`tls`](Self::tls). Default none.
    pub socket_matches: Vec<SocketMatch>,
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
            socket_matches: Vec::new(),
        }
    }

    /// TLS for an endpoint with `labels`; `None` is plaintext.
    pub fn tls_of(&self, labels: Option<&LbMetadata>) -> Option<&UpstreamTls> {
        let mut matches = self.socket_matches.iter();
        match matches.find(|socket| socket.is_match(labels)) {
            Some(socket) => socket.tls.as_ref(),
            None => self.tls.as_ref(),
        }
    }

    /// The cluster as it is for an endpoint with `hostname` and `labels`: with one socket, and the name
    /// that is sent. The same pointer where it is the same for all endpoints.
    pub fn of_endpoint(
        self: &Arc<Self>,
        hostname: Option<&str>,
        labels: Option<&LbMetadata>,
    ) -> Arc<Self> {
        let sends_host = self.tls.as_ref().is_some_and(|tls| tls.auto_host_sni);
        if self.socket_matches.is_empty() && !sends_host {
            return Arc::clone(self);
        }
        let mut tls = self.tls_of(labels).cloned();
        if let Some(tls) = &mut tls {
            tls.sni = tls.server_name(hostname).map(str::to_owned);
            tls.auto_host_sni = false;
        }
        Arc::new(Self {
            tls,
            socket_matches: Vec::new(),
            ..Self::clone(self)
        })
    }

    /// Names of the secrets that are to be fetched for connections to any endpoint.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let matches = self.socket_matches.iter();
        let matches = matches.filter_map(|socket| socket.tls.as_ref());
        self.tls
            .iter()
            .chain(matches)
            .flat_map(UpstreamTls::secrets)
    }

    /// Whether any endpoint may be connected to by TLS.
    pub fn has_tls(&self) -> bool {
        let mut matches = self.socket_matches.iter();
        self.tls.is_some() || matches.any(|socket| socket.tls.is_some())
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// EDS, by `service_name`, or by the cluster's own name where the resource has none.
    Eds(EndpointsName),
    /// All addresses of these hosts (STRICT_DNS).
    StrictDns(Vec<DnsHost>),
    /// The addresses of one host, which are one endpoint for gRPC (LOGICAL_DNS; gRFC A37).
    LogicalDns(DnsHost),
}

/// A host by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsHost {
    /// Its name, or an address.
    pub name: String,
    /// The port to connect to, not 0.
    pub port: u16,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrustSource;

    #[test]
    fn an_endpoint_has_the_socket_of_its_labels_and_the_name_of_its_host() {
        let plain = Arc::new(Cluster::new("c"));
        assert!(Arc::ptr_eq(
            &plain,
            &plain.of_endpoint(Some("a.example"), None)
        ));

        let mut tls = UpstreamTls::new(TrustSource::System);
        tls.sni = Some("declared.example".into());
        tls.auto_host_sni = true;
        let labels = LbMetadata::from([("tlsMode".to_owned(), "istio".into())]);
        let mut cluster = Cluster::new("c");
        cluster.tls = Some(tls.clone());
        let outside = Arc::new(cluster.clone());
        cluster.tls = None;
        cluster.socket_matches = vec![SocketMatch {
            name: "mtls".into(),
            labels: labels.clone(),
            tls: Some(tls),
        }];
        let mixed = Arc::new(cluster);
        let sni = |cluster: &Arc<Cluster>, host, labels| {
            let cluster = cluster.of_endpoint(host, labels);
            cluster
                .tls
                .as_ref()
                .map(|tls| tls.sni.clone().expect("a name"))
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            sni(&outside, Some("a.example:443"), None),
            name("a.example")
        );
        assert_eq!(sni(&outside, None, None), name("declared.example"));
        assert_eq!(
            sni(&mixed, Some("a.example"), Some(&labels)),
            name("a.example")
        );
        assert_eq!(sni(&mixed, Some("a.example"), None), None);
    }
}
