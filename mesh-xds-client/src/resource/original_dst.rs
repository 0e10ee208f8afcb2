//! Clusters whose requests name their addresses (`ORIGINAL_DST`).
//!
//! Stage 3. As Envoy has them, but for the address of the caller's connection, which there is none of: a
//! request without a header goes where its URI says.

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster as ClusterProto,
    cluster::{LbConfig, LbPolicy},
};
use mesh_core::config::{CLEANUP_INTERVAL_DEFAULT, ORIGINAL_DST_HEADER, OriginalDst};

use super::{path::Sink, report::report, value::duration};

/// What the requests say, which nobody else may beside them (Envoy).
pub(super) fn decode(sink: &mut Sink, proto: &ClusterProto) -> Option<OriginalDst> {
    if proto.lb_policy() != LbPolicy::ClusterProvided {
        let reason = "must be CLUSTER_PROVIDED for a cluster of type ORIGINAL_DST";
        return sink.error_at("lb_policy", reason);
    }
    report!(
        sink,
        proto,
        [
            dns_failure_refresh_rate,
            dns_jitter,
            dns_lookup_family,
            dns_refresh_rate,
            respect_dns_ttl
        ]
    );
    sink.refuse(
        "load_assignment",
        proto.load_assignment.is_some(),
        "must not be set for a cluster of type ORIGINAL_DST",
    );
    let interval = proto.cleanup_interval.as_ref();
    let cleanup_interval = match interval {
        None => CLEANUP_INTERVAL_DEFAULT,
        Some(_) => duration(sink, "cleanup_interval", interval)?,
    };
    if cleanup_interval.is_zero() {
        return sink.error_at("cleanup_interval", "must not be zero");
    }
    let mut config = OriginalDst {
        cleanup_interval,
        ..OriginalDst::default()
    };
    let Some(LbConfig::OriginalDstLbConfig(proto)) = &proto.lb_config else {
        return Some(config);
    };
    sink.field("original_dst_lb_config", |sink| {
        report!(sink, proto, [metadata_key]);
        config.port_override = match proto.upstream_port_override {
            None => None,
            Some(port) => match u16::try_from(port.value) {
                Ok(port) if port != 0 => Some(port),
                _ => return sink.error_at("upstream_port_override", "must be 1 to 65535"),
            },
        };
        let name = match proto.http_header_name.as_str() {
            _ if !proto.use_http_header => return Some(config),
            "" => ORIGINAL_DST_HEADER,
            name => match name.parse() {
                Ok(name) => name,
                Err(_) => return sink.error_at("http_header_name", "is no header name"),
            },
        };
        config.http_header = Some(name);
        Some(config)
    })
}
