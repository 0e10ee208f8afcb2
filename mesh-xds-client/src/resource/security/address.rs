//! Ranges of addresses (Envoy `core.v3.CidrRange`).
//!
//! Stage 3.

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use mesh_core::config::IpRange;

use crate::resource::path::Sink;

/// A range; no length is a length of 0, which is every address of the family (gRFC A41).
pub(crate) fn range(sink: &mut Sink, proto: &CidrRange) -> Option<IpRange> {
    let Ok(address) = proto.address_prefix.parse() else {
        let reason = format!("{:?} is not an IP address", proto.address_prefix);
        return sink.error_at("address_prefix", reason);
    };
    let length = proto.prefix_len.as_ref().map_or(0, |value| value.value);
    match IpRange::new(address, length) {
        Ok(range) => Some(range),
        Err(reason) => sink.error_at("prefix_len", reason),
    }
}
