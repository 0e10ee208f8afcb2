//! Which connections a server's filter chain takes (gRFC A36).
//!
//! Every criterion of Envoy's that it implements itself is honoured; what is not known to be said
//! exactly is refused, as a chain that is taken for other connections than meant could admit what it
//! should not. Deviation from gRPC: chains by `destination_port`, `server_names`,
//! `application_protocols` and `transport_protocol` "tls" are served instead of dropped.

use envoy_types::pb::envoy::config::{
    core::v3::CidrRange,
    listener::v3::{FilterChainMatch, filter_chain_match::ConnectionSourceType},
};
use mesh_core::config::{ChainMatch, IpRange, SourceType, TransportMatch};

use super::path::Sink;

/// The match of a chain; without one it takes every connection.
pub(super) fn decode(
    sink: &mut Sink,
    proto: Option<&FilterChainMatch>,
) -> Option<(TransportMatch, ChainMatch)> {
    let Some(proto) = proto else {
        return Some((TransportMatch::Any, ChainMatch::default()));
    };
    for (name, is_set) in [
        ("address_suffix", !proto.address_suffix.is_empty()),
        ("suffix_len", proto.suffix_len.is_some()),
        (
            "direct_source_prefix_ranges",
            !proto.direct_source_prefix_ranges.is_empty(),
        ),
    ] {
        sink.refuse(name, is_set, "is not supported");
    }
    let destination_port = proto
        .destination_port
        .as_ref()
        .and_then(|port| sink.field("destination_port", |sink| port_of(sink, port.value)));
    let source_ports = sink.each("source_ports", &proto.source_ports, |sink, port| {
        port_of(sink, *port)
    });
    let matches = ChainMatch {
        is_default: false,
        destination_port,
        destination_ranges: sink.each("prefix_ranges", &proto.prefix_ranges, range),
        server_names: sink.each("server_names", &proto.server_names, server_name),
        application_protocols: proto.application_protocols.clone(),
        source_type: source_type(sink, proto.source_type)?,
        source_ranges: sink.each("source_prefix_ranges", &proto.source_prefix_ranges, range),
        source_ports,
    };
    let transport = match proto.transport_protocol.as_str() {
        "" => TransportMatch::Any,
        "raw_buffer" => TransportMatch::RawBuffer,
        "tls" => TransportMatch::Tls,
        other => {
            return sink.error_at("transport_protocol", format!("{other:?} is not supported"));
        }
    };
    Some((transport, matches))
}

fn port_of(sink: &mut Sink, port: u32) -> Option<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Some(port),
        _ => sink.error("must be 1 to 65535"),
    }
}

fn range(sink: &mut Sink, proto: &CidrRange) -> Option<IpRange> {
    let Ok(address) = proto.address_prefix.parse() else {
        let reason = format!("{:?} is not an IP address", proto.address_prefix);
        return sink.error_at("address_prefix", reason);
    };
    let length = proto.prefix_len.as_ref().map_or(0, |length| length.value);
    match IpRange::new(address, length) {
        Ok(range) => Some(range),
        Err(reason) => sink.error_at("prefix_len", reason),
    }
}

fn server_name(sink: &mut Sink, name: &String) -> Option<String> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        let reason = format!("{name:?} is neither a name nor *.NAME; leave it out for any");
        return sink.error(reason);
    }
    Some(name.to_ascii_lowercase())
}

fn source_type(sink: &mut Sink, number: i32) -> Option<SourceType> {
    match ConnectionSourceType::try_from(number) {
        Ok(ConnectionSourceType::Any) => Some(SourceType::Any),
        Ok(ConnectionSourceType::SameIpOrLoopback) => Some(SourceType::SameIpOrLoopback),
        Ok(ConnectionSourceType::External) => Some(SourceType::External),
        Err(_) => sink.error_at("source_type", format!("{number} is not known")),
    }
}
