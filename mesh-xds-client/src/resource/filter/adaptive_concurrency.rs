//! A limit of requests at a time that follows their latency (Envoy `AdaptiveConcurrency`).

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        extensions::filters::http::adaptive_concurrency::v3::{
            AdaptiveConcurrency as ConcurrencyProto, GradientControllerConfig,
            adaptive_concurrency::ConcurrencyControllerConfig,
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Any, Duration as DurationProto},
};
use mesh_core::config::{AdaptiveConcurrency, FilterConfig, FilterOverride, Fraction};

use super::{BOTH, FilterType};
use crate::resource::{
    path::Sink,
    report::report,
    route::Side,
    value::{duration, is, parse, uint32},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<ConcurrencyProto>,
    is_override: is::<ConcurrencyProto>,
    sides: BOTH,
    decode,
    decode_override,
};

/// Envoy's bound of the interval of measurements.
const MIN_RTT_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// As in Envoy a route cannot say anything about it but that it is off.
fn decode_override(sink: &mut Sink, _: Side, _: &Any) -> Option<FilterOverride> {
    sink.error("a route cannot override it, only disable it")
}

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: ConcurrencyProto = parse(sink, any)?;
    let Some(ConcurrencyControllerConfig::GradientControllerConfig(gradient)) =
        &proto.concurrency_controller_config
    else {
        return sink.error_at("gradient_controller_config", "is missing");
    };
    let mut config = sink.field("gradient_controller_config", |sink| {
        decode_gradient(sink, gradient)
    })?;
    let enabled = proto.enabled.as_ref();
    let default = enabled.and_then(|flag| flag.default_value.as_ref());
    config.enabled = default.is_none_or(|value| value.value);
    config.status = match &proto.concurrency_limit_exceeded_status {
        Some(status) if (400..=599).contains(&status.code) => status.code as u16,
        _ => 503,
    };
    Some(FilterConfig::AdaptiveConcurrency(Arc::new(config)))
}

fn decode_gradient(
    sink: &mut Sink,
    proto: &GradientControllerConfig,
) -> Option<AdaptiveConcurrency> {
    let Some(limits) = &proto.concurrency_limit_params else {
        return sink.error_at("concurrency_limit_params", "is missing");
    };
    let Some(min_rtt) = &proto.min_rtt_calc_params else {
        return sink.error_at("min_rtt_calc_params", "is missing");
    };
    let update = sink.field("concurrency_limit_params", |sink| {
        report!(sink, limits, [min_concurrency_limit]);
        interval(
            sink,
            "concurrency_update_interval",
            limits.concurrency_update_interval.as_ref(),
        )
    });
    let measure = sink.field("min_rtt_calc_params", |sink| {
        sink.refuse(
            "fixed_value",
            min_rtt.fixed_value.is_some(),
            "is not supported; measure with interval",
        );
        interval(sink, "interval", min_rtt.interval.as_ref())
    });
    let mut config = AdaptiveConcurrency::new(update?, measure?);
    let percentile = percent(
        sink,
        "sample_aggregate_percentile",
        proto.sample_aggregate_percentile.as_ref(),
    );
    config.sample_aggregate_percentile = percentile.unwrap_or(config.sample_aggregate_percentile);
    let limit = uint32(limits.max_concurrency_limit.as_ref());
    config.max_concurrency_limit = limit.unwrap_or(config.max_concurrency_limit);
    let count = uint32(min_rtt.request_count.as_ref());
    config.min_rtt_request_count = count.unwrap_or(config.min_rtt_request_count);
    let least = uint32(min_rtt.min_concurrency.as_ref());
    config.min_concurrency = least.unwrap_or(config.min_concurrency);
    sink.field("min_rtt_calc_params", |sink| {
        let jitter = percent(sink, "jitter", min_rtt.jitter.as_ref());
        config.min_rtt_jitter = jitter.unwrap_or(config.min_rtt_jitter);
        let buffer = percent(sink, "buffer", min_rtt.buffer.as_ref());
        config.min_rtt_buffer = buffer.unwrap_or(config.min_rtt_buffer);
        for (name, value) in [
            ("request_count", config.min_rtt_request_count),
            ("min_concurrency", config.min_concurrency),
        ] {
            sink.refuse(name, value == 0, "must not be 0");
        }
    });
    let zero = config.max_concurrency_limit == 0;
    sink.refuse(
        "concurrency_limit_params.max_concurrency_limit",
        zero,
        "must not be 0",
    );
    Some(config)
}

fn interval(sink: &mut Sink, name: &str, proto: Option<&DurationProto>) -> Option<Duration> {
    if proto.is_none() {
        return sink.error_at(name, "is missing");
    }
    let interval = duration(sink, name, proto)?;
    if interval < MIN_RTT_INTERVAL_MIN {
        return sink.error_at(name, "must be 1ms or more");
    }
    Some(interval)
}

fn percent(sink: &mut Sink, name: &str, proto: Option<&Percent>) -> Option<Fraction> {
    let value = proto?.value;
    if !(0.0..=100.0).contains(&value) {
        return sink.error_at(name, format!("{value} is not 0 to 100"));
    }
    Fraction::new((value * 10_000.0).round() as u32, 1_000_000)
}
