//! Cross-origin requests (Envoy `Cors`, `CorsPolicy`).
//!
//! Deviation: the policy of routes is what overrides say; the older fields `cors` of virtual hosts and
//! routes are reported.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy as PolicyProto},
    google::protobuf::{Any, BoolValue},
};
use mesh_core::config::{CorsPolicy, FilterConfig, FilterOverride};

use super::{FilterType, SERVERS};
use crate::resource::{
    path::Sink,
    report::report,
    route::{Side, matcher},
    value::{self, is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<Cors>,
    is_override: is::<PolicyProto>,
    sides: SERVERS,
    decode: |_, _, _| Some(FilterConfig::Cors(None)),
    decode_override,
};

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    let proto: PolicyProto = parse(sink, any)?;
    report!(sink, proto, [shadow_enabled]);
    let enabled = match &proto.filter_enabled {
        Some(share) => sink.field("filter_enabled.default_value", |sink| {
            match &share.default_value {
                Some(value) => value::fraction(sink, value),
                None => sink.error("is missing"),
            }
        }),
        None => None,
    };
    let flag = |value: &Option<BoolValue>| value.as_ref().map(|value| value.value);
    let policy = CorsPolicy {
        allow_origins: sink.each(
            "allow_origin_string_match",
            &proto.allow_origin_string_match,
            matcher::string,
        ),
        allow_methods: proto.allow_methods.clone(),
        allow_headers: proto.allow_headers.clone(),
        expose_headers: proto.expose_headers.clone(),
        max_age: proto.max_age.clone(),
        allow_credentials: flag(&proto.allow_credentials),
        allow_private_network_access: flag(&proto.allow_private_network_access),
        forward_not_matching_preflights: flag(&proto.forward_not_matching_preflights),
        enabled,
    };
    for (name, value) in [
        ("allow_methods", &policy.allow_methods),
        ("allow_headers", &policy.allow_headers),
        ("expose_headers", &policy.expose_headers),
        ("max_age", &policy.max_age),
    ] {
        let is_bad = http::HeaderValue::from_str(value).is_err();
        sink.refuse(name, is_bad, "is not the value of a header");
    }
    let policy = FilterConfig::Cors(Some(Arc::new(policy)));
    Some(FilterOverride::with(policy))
}
