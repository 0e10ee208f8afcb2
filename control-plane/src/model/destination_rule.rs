//! Istio's DestinationRule: how a host is called.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A map of labels.
type Labels = BTreeMap<String, String>;

object! {
    /// Policy of a host.
    DestinationRule {
        /// Name, short or full.
        host: String,
        /// Policy of all.
        traffic_policy: Option<TrafficPolicy>,
        /// Parts by label.
        subsets: Vec<Subset>,
        /// Namespaces whose clients see it; none is all.
        export_to: Vec<String>,
        /// Clients that follow it; none is all.
        workload_selector: Option<ClientSelector>,
    }
}
impl DestinationRule {
    /// A rule that says nothing but that its host is called with mTLS.
    pub(crate) fn with_mtls(host: String) -> Self {
        let mode = "ISTIO_MUTUAL".to_owned();
        let traffic_policy = Some(TrafficPolicy {
            tls: Some(TlsSpec {
                mode,
                ..TlsSpec::default()
            }),
            ..TrafficPolicy::default()
        });
        Self {
            host,
            traffic_policy,
            ..Self::default()
        }
    }
}

object! {
    /// A part of a host.
    Subset {
        /// Name.
        name: String,
        /// Labels of its endpoints.
        labels: Labels,
        /// Policy instead of the host's.
        traffic_policy: Option<TrafficPolicy>,
    }
}
object! {
    /// Clients by label.
    ClientSelector {
        /// Labels that they have.
        match_labels: Labels,
    }
}
object! {
    /// Policy.
    TrafficPolicy {
        /// Balancing.
        load_balancer: Option<LoadBalancer>,
        /// Limits.
        connection_pool: Option<ConnectionPool>,
        /// Limit on retries.
        retry_budget: Option<BudgetSpec>,
        /// When endpoints are ejected.
        outlier_detection: Option<OutlierSpec>,
        /// TLS.
        tls: Option<TlsSpec>,
        /// Policies of single ports, each instead of what is here.
        port_level_settings: Vec<PortPolicy>,
    }
}
object! {
    /// Policy of a port; what it does not say has its default.
    PortPolicy {
        /// Which.
        port: PortNumber,
        /// Balancing.
        load_balancer: Option<LoadBalancer>,
        /// Limits.
        connection_pool: Option<ConnectionPool>,
        /// When endpoints are ejected.
        outlier_detection: Option<OutlierSpec>,
        /// TLS.
        tls: Option<TlsSpec>,
    }
}
object! {
    /// A port.
    PortNumber {
        /// Number.
        number: u16,
    }
}
object! {
    /// Balancing.
    LoadBalancer {
        /// `ROUND_ROBIN`, `LEAST_REQUEST` or `RANDOM`.
        simple: Option<String>,
        /// The same endpoint for what has something in common.
        consistent_hash: Option<ConsistentHash>,
        /// What places mean.
        locality_lb_setting: Option<LocalityLbSpec>,
        /// A growing share for new endpoints.
        warmup: Option<Warmup>,
        /// The old name of `warmup.duration`.
        warmup_duration_secs: Option<String>,
    }
}
object! {
    /// What requests have in common; one of the first four.
    ConsistentHash {
        /// A header.
        http_header_name: Option<String>,
        /// A cookie, which is made where there is none.
        http_cookie: Option<HashCookie>,
        /// The address of who asks.
        use_source_ip: Option<bool>,
        /// A query parameter.
        http_query_parameter_name: Option<String>,
        /// On a ring, which is the default.
        ring_hash: Option<RingHashSpec>,
        /// By a table.
        maglev: Option<MaglevSpec>,
        /// The old name of `ringHash.minimumRingSize`.
        minimum_ring_size: Option<u32>,
    }
}
object! {
    /// A cookie.
    HashCookie {
        /// Name.
        name: String,
        /// Path.
        path: Option<String>,
        /// Life of one that is made; `0s` is the session's. None is made without.
        ttl: Option<String>,
        /// Further attributes of the cookie that is made.
        attributes: Vec<CookieAttributeSpec>,
    }
}
object! {
    /// An attribute of a cookie.
    CookieAttributeSpec {
        /// Name.
        name: String,
        /// Value, which may be empty.
        value: String,
    }
}
object! {
    /// Size of a ring.
    RingHashSpec {
        /// Fewest entries; default 1024.
        minimum_ring_size: Option<u32>,
    }
}
object! {
    /// Size of a table.
    MaglevSpec {
        /// A prime, at most 5000011; default 65537.
        table_size: Option<u32>,
    }
}
object! {
    /// What places mean; one of `distribute`, `failover` and `failoverPriority`.
    LocalityLbSpec {
        /// Whether they mean anything; default true.
        enabled: Option<bool>,
        /// Shares of places by where the client is.
        distribute: Vec<Distribute>,
        /// The region that is next when that of the client cannot be used.
        failover: Vec<Failover>,
        /// Labels that an endpoint and its client have in common, the most important first.
        failover_priority: Vec<String>,
    }
}
object! {
    /// Shares of places.
    Distribute {
        /// Where the client is: `REGION/ZONE/SUB_ZONE`, with `*` for any.
        from: String,
        /// Percentages by place; their sum is 100.
        to: BTreeMap<String, u32>,
    }
}
object! {
    /// The region that is next.
    Failover {
        /// The client's.
        from: String,
        /// The next.
        to: String,
    }
}
object! {
    /// A growing share for new endpoints.
    Warmup {
        /// After this time an endpoint has all of its share.
        duration: Option<String>,
        /// Where the share starts, in percent; default 10.
        minimum_percent: Option<f64>,
        /// How fast it grows at first; default 1.
        aggression: Option<f64>,
    }
}
object! {
    /// When endpoints are ejected.
    OutlierSpec {
        /// Failures in a row; default 5, 0 is off.
        #[serde(rename = "consecutive5xxErrors")]
        consecutive_5xx_errors: Option<u32>,
        /// Responses 502, 503 and 504 in a row; default off.
        consecutive_gateway_errors: Option<u32>,
        /// The old name of `consecutive5xxErrors`.
        consecutive_errors: Option<u32>,
        /// Whether failures without a response are counted by themselves.
        split_external_local_origin_errors: bool,
        /// Failures without a response in a row; default 5, 0 is off.
        consecutive_local_origin_failures: Option<u32>,
        /// How often ejections end; default 10s.
        interval: Option<String>,
        /// Shortest ejection; default 30s.
        base_ejection_time: Option<String>,
        /// Most endpoints ejected at a time; default 10.
        max_ejection_percent: Option<u32>,
        /// Below this percentage of healthy endpoints all are used; default 0.
        min_health_percent: Option<u32>,
    }
}
object! {
    /// Limits.
    ConnectionPool {
        /// Of connections.
        tcp: Option<TcpSettings>,
        /// Of requests.
        http: Option<HttpSettings>,
    }
}
object! {
    /// Limits of connections.
    TcpSettings {
        /// Connections to all endpoints together.
        max_connections: Option<u32>,
        /// Limit of connecting.
        connect_timeout: Option<String>,
        /// Probes of the kernel.
        tcp_keepalive: Option<KeepaliveSpec>,
        /// Longest life.
        max_connection_duration: Option<String>,
        /// Longest life without a request, where `http.idleTimeout` does not say.
        idle_timeout: Option<String>,
    }
}
object! {
    /// Probes of the kernel.
    KeepaliveSpec {
        /// Probes without an answer that end the connection.
        probes: Option<u32>,
        /// Idle time before the first.
        time: Option<String>,
        /// Time between two.
        interval: Option<String>,
    }
}
object! {
    /// Limits of requests.
    HttpSettings {
        /// Requests that wait for a connection.
        http1_max_pending_requests: Option<u32>,
        /// Requests in flight.
        http2_max_requests: Option<u32>,
        /// Requests of a connection before it ends; 0 is no limit.
        max_requests_per_connection: Option<u32>,
        /// Retries in flight; `retryBudget` wins.
        max_retries: Option<u32>,
        /// Longest life of a connection without a request; `0s` is no limit.
        idle_timeout: Option<String>,
        /// `UPGRADE` speaks HTTP/2 to all endpoints.
        h2_upgrade_policy: Option<String>,
        /// Whether endpoints are spoken to as the client speaks.
        use_client_protocol: Option<bool>,
        /// Requests in flight on one HTTP/2 connection.
        max_concurrent_streams: Option<u32>,
        /// Pings of HTTP/2 connections.
        #[serde(rename = "http2KeepAlive")]
        http2_keep_alive: Option<PingSpec>,
    }
}
object! {
    /// Pings of HTTP/2 connections.
    PingSpec {
        /// Time between two; default 30s.
        interval: Option<String>,
        /// A connection ends that does not answer in this time; default 20s.
        timeout: Option<String>,
    }
}
object! {
    /// Limit on retries.
    BudgetSpec {
        /// Retries for each hundred requests; default 20.
        percent: Option<f64>,
        /// Retries in flight that are always allowed; default 3.
        min_retry_concurrency: Option<u32>,
    }
}
object! {
    /// TLS towards a host.
    TlsSpec {
        /// `DISABLE`, `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
        mode: String,
        /// The name that is sent; default the host, and inside the mesh that of the cluster.
        sni: Option<String>,
        /// One of the server's names must be one of these; default the name that is sent, and inside
        /// the mesh those of the accounts.
        subject_alt_names: Vec<String>,
        /// File at the clients with the roots; default the system's roots.
        ca_certificates: Option<String>,
        /// File at the clients with their certificate, for `MUTUAL`.
        client_certificate: Option<String>,
        /// File at the clients with its key.
        private_key: Option<String>,
    }
}
