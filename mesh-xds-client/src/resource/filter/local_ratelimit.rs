//! Rate limits of this process (Envoy `LocalRateLimit`).
//!
//! Deviations: buckets of each connection, and a share of a limit of several processes, are refused.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValueOption, RuntimeFractionalPercent},
        extensions::{
            common::ratelimit::v3::LocalRateLimitDescriptor,
            filters::http::local_ratelimit::v3::LocalRateLimit as RateLimitProto,
        },
        r#type::v3::TokenBucket as BucketProto,
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    DYNAMIC_DESCRIPTORS_DEFAULT, DYNAMIC_DESCRIPTORS_MAX, FilterConfig, FilterOverride, Fraction,
    HeaderChanges, LocalRateLimit, RateLimitDescriptor, TokenBucket,
};

use super::{BOTH, FilterType, rate_limit};
use crate::resource::{
    path::Sink,
    route::{Side, headers},
    value::{self, duration, is, parse, uint32},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<RateLimitProto>,
    is_override: is::<RateLimitProto>,
    sides: BOTH,
    decode,
    decode_override,
};

/// Envoy's bound.
const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// `DRAFT_VERSION_03`.
const X_RATELIMIT_DRAFT_03: i32 = 1;
/// `VhRateLimitsOptions::INCLUDE`, `IGNORE`.
const VH_INCLUDE: i32 = 1;
const VH_IGNORE: i32 = 2;

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: RateLimitProto = parse(sink, any)?;
    decode_limit(sink, &proto).map(FilterConfig::LocalRateLimit)
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    let proto: RateLimitProto = parse(sink, any)?;
    sink.refuse(
        "token_bucket",
        proto.token_bucket.is_none(),
        "is missing; a route's limit needs one",
    );
    let limit = decode_limit(sink, &proto)?;
    Some(FilterOverride::with(FilterConfig::LocalRateLimit(limit)))
}

fn decode_limit(sink: &mut Sink, proto: &RateLimitProto) -> Option<Arc<LocalRateLimit>> {
    sink.refuse("stat_prefix", proto.stat_prefix.is_empty(), "is missing");
    let unsupported = "is not supported: a bucket is the process's";
    sink.refuse(
        "local_rate_limit_per_downstream_connection",
        proto.local_rate_limit_per_downstream_connection,
        unsupported,
    );
    sink.refuse(
        "local_cluster_rate_limit",
        proto.local_cluster_rate_limit.is_some(),
        unsupported,
    );
    sink.refuse(
        "vh_rate_limits",
        matches!(proto.vh_rate_limits, VH_INCLUDE | VH_IGNORE),
        "is not supported; write rate_limits into the filter",
    );
    let token_bucket = match &proto.token_bucket {
        Some(bucket) => Some(sink.field("token_bucket", |sink| decode_bucket(sink, bucket))?),
        None => None,
    };
    let status = match &proto.status {
        // As Envoy does: less than 400 is taken for the default.
        Some(status) if (400..=599).contains(&status.code) => status.code as u16,
        _ => 429,
    };
    let dynamic = uint32(proto.max_dynamic_descriptors.as_ref());
    let max_dynamic_descriptors = dynamic.unwrap_or(DYNAMIC_DESCRIPTORS_DEFAULT);
    if !(1..=DYNAMIC_DESCRIPTORS_MAX).contains(&max_dynamic_descriptors) {
        let reason = format!("must be 1 to {DYNAMIC_DESCRIPTORS_MAX}");
        sink.error_at::<()>("max_dynamic_descriptors", reason);
    }
    let always = proto.always_consume_default_token_bucket.as_ref();
    Some(Arc::new(LocalRateLimit {
        stat_prefix: proto.stat_prefix.clone(),
        token_bucket,
        filter_enabled: share(sink, "filter_enabled", proto.filter_enabled.as_ref()),
        filter_enforced: share(sink, "filter_enforced", proto.filter_enforced.as_ref()),
        status,
        rate_limited_as_resource_exhausted: proto.rate_limited_as_resource_exhausted,
        response_headers: changes(
            sink,
            "response_headers_to_add",
            &proto.response_headers_to_add,
            true,
        ),
        request_headers_when_not_enforced: changes(
            sink,
            "request_headers_to_add_when_not_enforced",
            &proto.request_headers_to_add_when_not_enforced,
            false,
        ),
        descriptors: sink.each("descriptors", &proto.descriptors, decode_descriptor),
        rate_limits: rate_limit::all(sink, "rate_limits", &proto.rate_limits),
        stage: proto.stage,
        always_consume_default_token_bucket: always.is_none_or(|value| value.value),
        max_dynamic_descriptors,
        x_ratelimit_headers: proto.enable_x_ratelimit_headers == X_RATELIMIT_DRAFT_03,
        retry_after_header: proto.enable_retry_after_header,
    }))
}

fn changes(
    sink: &mut Sink,
    field: &str,
    protos: &[HeaderValueOption],
    is_response: bool,
) -> HeaderChanges {
    HeaderChanges {
        remove: Vec::new(),
        add: sink.each(field, protos, |sink, proto| {
            headers::value(sink, proto, is_response)
        }),
    }
}

/// A share without a default value is 100 % in Envoy's runtime; an absent one none.
fn share(
    sink: &mut Sink,
    field: &str,
    proto: Option<&RuntimeFractionalPercent>,
) -> Option<Fraction> {
    let proto = proto?;
    sink.field(field, |sink| match &proto.default_value {
        Some(value) => sink.field("default_value", |sink| value::fraction(sink, value)),
        None => sink.error_at("default_value", "is missing"),
    })
}

fn decode_bucket(sink: &mut Sink, proto: &BucketProto) -> Option<TokenBucket> {
    sink.refuse("max_tokens", proto.max_tokens == 0, "must not be 0");
    let tokens_per_fill = uint32(proto.tokens_per_fill.as_ref()).unwrap_or(1);
    sink.refuse("tokens_per_fill", tokens_per_fill == 0, "must not be 0");
    let Some(interval) = &proto.fill_interval else {
        return sink.error_at("fill_interval", "is missing");
    };
    let fill_interval = duration(sink, "fill_interval", Some(interval))?;
    if fill_interval < FILL_INTERVAL_MIN {
        return sink.error_at("fill_interval", "must be 50ms or more");
    }
    Some(TokenBucket {
        max_tokens: proto.max_tokens,
        tokens_per_fill,
        fill_interval,
    })
}

fn decode_descriptor(
    sink: &mut Sink,
    proto: &LocalRateLimitDescriptor,
) -> Option<RateLimitDescriptor> {
    sink.refuse("entries", proto.entries.is_empty(), "must not be empty");
    sink.refuse("shadow_mode", proto.shadow_mode, "is not supported");
    let entries = sink.each("entries", &proto.entries, |sink, entry| {
        match entry.key.as_str() {
            "" => sink.error_at("key", "is missing"),
            key => Some((Arc::from(key), Arc::from(entry.value.as_str()))),
        }
    });
    let Some(bucket) = &proto.token_bucket else {
        return sink.error_at("token_bucket", "is missing");
    };
    Some(RateLimitDescriptor {
        entries,
        token_bucket: sink.field("token_bucket", |sink| decode_bucket(sink, bucket))?,
    })
}
