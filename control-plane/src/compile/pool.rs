//! Connections of a cluster, from `connectionPool` of a DestinationRule.

use std::time::Duration;

use mesh_core::config::{Cluster, HTTP2_KEEPALIVE_MIN, Http2Keepalive, HttpVersion, TcpKeepalive};

use super::balance::{Wrong, duration};
use crate::model::{ConnectionPool, PingSpec};

/// Most requests on one HTTP/2 connection (Envoy).
const CONCURRENT_STREAMS_MAX: u32 = (1 << 31) - 1;

/// Time between pings, where the rule does not say.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A ping that is not answered in this time ends the connection (gRPC's default).
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Random part of the interval (Envoy's default).
const PING_JITTER_PERCENT: u32 = 15;

pub(super) fn apply(spec: &ConnectionPool, cluster: &mut Cluster, wrong: &mut Wrong<'_>) {
    if let Some(tcp) = &spec.tcp {
        let text = tcp.connect_timeout.as_deref();
        if let Some(timeout) = longer_than_nothing("tcp.connectTimeout", text, wrong) {
            cluster.connect_timeout = timeout;
        }
        if let Some(limit) = more_than_nothing("tcp.maxConnections", tcp.max_connections, wrong) {
            cluster.circuit_breakers.max_connections = limit;
        }
        let text = tcp.max_connection_duration.as_deref();
        cluster.connection.max_connection_duration =
            longer_than_nothing("tcp.maxConnectionDuration", text, wrong);
        let text = tcp.idle_timeout.as_deref();
        cluster.connection.idle_timeout =
            text.and_then(|text| duration("tcp.idleTimeout", text, wrong));
        if let Some(spec) = &tcp.tcp_keepalive {
            let mut keepalive = TcpKeepalive {
                probes: spec.probes,
                ..TcpKeepalive::default()
            };
            let text = spec.time.as_deref();
            if let Some(time) = whole_seconds("tcp.tcpKeepalive.time", text, wrong) {
                keepalive.time = time;
            }
            let text = spec.interval.as_deref();
            if let Some(interval) = whole_seconds("tcp.tcpKeepalive.interval", text, wrong) {
                keepalive.interval = interval;
            }
            cluster.connection.tcp_keepalive = Some(keepalive);
        }
    }
    let Some(http) = &spec.http else { return };
    let breakers = &mut cluster.circuit_breakers;
    breakers.max_requests = http.http2_max_requests.unwrap_or(breakers.max_requests);
    let pending = http.http1_max_pending_requests;
    breakers.max_pending_requests = pending.unwrap_or(breakers.max_pending_requests);
    breakers.max_retries = http.max_retries;
    let connection = &mut cluster.connection;
    // 0 is no limit.
    let requests = http.max_requests_per_connection;
    connection.max_requests_per_connection = requests.filter(|limit| *limit > 0);
    if let Some(text) = http.idle_timeout.as_deref() {
        connection.idle_timeout = duration("http.idleTimeout", text, wrong);
    }
    match http.max_concurrent_streams {
        None => {}
        Some(limit @ 1..=CONCURRENT_STREAMS_MAX) => {
            connection.http2.max_concurrent_streams = Some(limit);
        }
        Some(limit) => {
            let message = format!("{limit} is not 1 to {CONCURRENT_STREAMS_MAX}");
            wrong("http.maxConcurrentStreams", message);
        }
    }
    if let Some(spec) = &http.http2_keep_alive {
        cluster.connection.http2.keepalive = Some(pings(spec, wrong));
    }
    match http.h2_upgrade_policy.as_deref() {
        None | Some("DEFAULT" | "DO_NOT_UPGRADE") => {}
        Some("UPGRADE") => cluster.http_version = HttpVersion::Http2,
        Some(other) => {
            let message = format!("{other:?} is not DEFAULT, DO_NOT_UPGRADE or UPGRADE");
            wrong("http.h2UpgradePolicy", message);
        }
    }
    if http.use_client_protocol == Some(true) {
        cluster.http_version = HttpVersion::ByRequest;
    }
}

fn pings(spec: &PingSpec, wrong: &mut Wrong<'_>) -> Http2Keepalive {
    let mut time = |field: &str, text: Option<&str>| {
        let field = format!("http.http2KeepAlive.{field}");
        let time = duration(&field, text?, wrong)?;
        if time < HTTP2_KEEPALIVE_MIN {
            wrong(&field, format!("must be {HTTP2_KEEPALIVE_MIN:?} or longer"));
            return None;
        }
        Some(time)
    };
    let timeout = time("timeout", spec.timeout.as_deref());
    let interval = time("interval", spec.interval.as_deref());
    Http2Keepalive {
        interval: interval.unwrap_or(PING_INTERVAL),
        timeout: timeout.unwrap_or(PING_TIMEOUT),
        interval_jitter_percent: PING_JITTER_PERCENT,
    }
}

fn more_than_nothing(field: &str, value: Option<u32>, wrong: &mut Wrong<'_>) -> Option<u32> {
    if value == Some(0) {
        wrong(field, "must be more than 0".to_owned());
    }
    value.filter(|value| *value > 0)
}

fn longer_than_nothing(field: &str, text: Option<&str>, wrong: &mut Wrong<'_>) -> Option<Duration> {
    let time = duration(field, text?, wrong)?;
    if time.is_zero() {
        wrong(field, "must be longer than 0s".to_owned());
        return None;
    }
    Some(time)
}

/// The kernel counts seconds.
fn whole_seconds(field: &str, text: Option<&str>, wrong: &mut Wrong<'_>) -> Option<Duration> {
    let time = longer_than_nothing(field, text, wrong)?;
    if time < Duration::from_secs(1) {
        wrong(field, "must be 1s or longer".to_owned());
        return None;
    }
    Some(time)
}
