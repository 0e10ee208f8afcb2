//! Requests and connections that are served.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{MetricType, counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    super::{
        code::{Code, Protocol},
        counts::{Counts, Totals},
        local_reply::{LocalReplies, LocalReplyReason, LocalReplyTotals},
    },
    Labels,
    encode::{counter, describe, gauge},
};

/// Label of refusals for want of a matching `ALLOW` policy.
pub const NO_POLICY: &str = "(none allows)";

/// Counters of the serving side.
pub struct ServerMetrics {
    counts: Arc<Counts>,
    replies: Arc<LocalReplies>,
    denied: Family<Labels<1>, Counter>,
    shadow: Family<Labels<2>, Counter>,
    refused_connections: Family<Labels<1>, Counter>,
    connections: Family<Labels<1>, Counter>,
}

impl ServerMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            counts: Arc::default(),
            replies: Arc::default(),
            denied: Family::default(),
            shadow: Family::default(),
            refused_connections: Family::default(),
            connections: Family::default(),
        };
        registry.register_collector(Box::new(ServerSeries {
            counts: Arc::clone(&metrics.counts),
            replies: Arc::clone(&metrics.replies),
        }));
        registry.register(
            "mesh_server_denied",
            "Requests refused by authorisation",
            metrics.denied.clone(),
        );
        registry.register(
            "mesh_server_shadow",
            "What shadow rules of authorisation would have said",
            metrics.shadow.clone(),
        );
        registry.register(
            "mesh_server_refused_connections",
            "Connections refused before any request",
            metrics.refused_connections.clone(),
        );
        registry.register(
            "mesh_server_connections",
            "Connections accepted: mutual_tls, tls (without a certificate of the client), none",
            metrics.connections.clone(),
        );
        metrics
    }

    /// Counts a request as in flight until [`finish`](Self::finish).
    #[inline]
    pub fn start(&self) {
        self.counts.start();
    }

    /// Counts the end of a request that was started, with its latency.
    #[inline]
    pub fn finish(&self, protocol: Protocol, code: Code, latency: Duration) {
        self.counts.finish(protocol, code, latency);
    }

    /// Counts a request that was answered in place of the application.
    pub(crate) fn local_reply(&self, reason: LocalReplyReason, code: Code) {
        self.replies.count(reason, code);
    }

    /// Counts a refusal by authorisation. `policy` is the one that matched, `None` when none did.
    pub fn denied(&self, policy: Option<&str>) {
        let labels = [("policy", policy.unwrap_or(NO_POLICY).to_owned())];
        self.denied.get_or_create_owned(&labels).inc();
    }

    /// Counts what shadow rules would have said.
    pub fn shadow(&self, allowed: bool, policy: Option<&str>) {
        let decision = if allowed { "allowed" } else { "denied" };
        let labels = [
            ("decision", decision.to_owned()),
            ("policy", policy.unwrap_or(NO_POLICY).to_owned()),
        ];
        self.shadow.get_or_create_owned(&labels).inc();
    }

    /// Counts a connection that was accepted, by how it is secured: `mutual_tls`, `tls` or `none`.
    pub fn connection_accepted(&self, security: &str) {
        self.connections
            .get_or_create_owned(&[("connection_security_policy", security.to_owned())])
            .inc();
    }

    /// Counts a connection that was refused before any request.
    pub fn connection_refused(&self, reason: &str) {
        self.refused_connections
            .get_or_create_owned(&[("reason", reason.to_owned())])
            .inc();
    }
}

impl fmt::Debug for ServerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerMetrics")
    }
}

#[derive(Debug)]
struct ServerSeries {
    counts: Arc<Counts>,
    replies: Arc<LocalReplies>,
}

impl Collector for ServerSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut totals = Totals::default();
        self.counts.add_to(&mut totals);
        let encoder = &mut encoder;
        let help = "Served requests by how they ended";
        let mut metric = describe(encoder, "mesh_server_requests", help, MetricType::Counter)?;
        for (code, count) in totals.ended() {
            counter(&mut metric, &[("code", code)], count)?;
        }
        let mut replies = Box::<LocalReplyTotals>::default();
        self.replies.add_to(&mut replies);
        let name = "mesh_server_local_replies";
        let help = "Requests that were answered in place of the application, by why and how";
        let mut metric = describe(encoder, name, help, MetricType::Counter)?;
        for (reason, code, count) in replies.counted() {
            counter(&mut metric, &[("reason", reason), ("code", code)], count)?;
        }
        let help = "Served requests without an end yet";
        let name = "mesh_server_requests_in_flight";
        gauge(
            describe(encoder, name, help, MetricType::Gauge)?,
            totals.in_flight(),
        )?;
        let help = "Duration of served gRPC calls";
        let name = "rpc_server_call_duration";
        totals
            .grpc
            .encode(describe(encoder, name, help, MetricType::Histogram)?)?;
        let help = "Duration of served HTTP requests";
        let name = "http_server_request_duration";
        totals
            .http
            .encode(describe(encoder, name, help, MetricType::Histogram)?)
    }
}
