//! Authorisation (gRFC A41).

use envoy_types::pb::{
    envoy::extensions::filters::http::rbac::v3::{Rbac as RbacProto, RbacPerRoute},
    google::protobuf::Any,
};
use mesh_core::config::{FilterConfig, FilterOverride};

use super::{FilterType, SERVERS};
use crate::resource::{
    path::Sink,
    route::Side,
    security::rbac,
    value::{is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<RbacProto>,
    is_override: is::<RbacPerRoute>,
    sides: SERVERS,
    decode,
    decode_override,
};

pub(super) fn is_rbac(any: &Any) -> bool {
    is::<RbacProto>(any) || is::<RbacPerRoute>(any)
}

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: RbacProto = parse(sink, any)?;
    rbac::decode_filter(sink, &proto).map(FilterConfig::Rbac)
}

/// Without rules the filter is off for the route.
fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<RbacPerRoute>(any) {
        return sink.error("must be an RBACPerRoute");
    }
    let proto: RbacPerRoute = parse(sink, any)?;
    let Some(rules) = &proto.rbac else {
        return Some(FilterOverride::off());
    };
    let rules = sink.field("rbac", |sink| rbac::decode_filter(sink, rules))?;
    Some(FilterOverride::with(FilterConfig::Rbac(rules)))
}
