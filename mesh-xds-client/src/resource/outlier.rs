//! `OutlierDetection` to [`OutlierDetection`] (gRFC A50; Envoy).
//!
//! Stage 3. A field that is absent has Envoy's default.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::cluster::v3::OutlierDetection as Proto,
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use mesh_core::config::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};

use super::{
    path::Sink,
    report::report,
    value::{duration, uint32},
};

pub(super) fn decode(sink: &mut Sink, proto: &Proto) -> Option<OutlierDetection> {
    report!(
        sink,
        proto,
        [
            always_eject_one_host,
            detect_degraded_hosts,
            monitors,
            successful_active_health_check_uneject_host,
        ]
    );
    let defaults = OutlierDetection::default();
    let interval = period(sink, "interval", proto.interval.as_ref(), defaults.interval)?;
    if interval.is_zero() {
        return sink.error_at("interval", "must not be zero");
    }
    let base = proto.base_ejection_time.as_ref();
    let base = period(
        sink,
        "base_ejection_time",
        base,
        defaults.base_ejection_time,
    );
    let longest = proto.max_ejection_time.as_ref();
    let longest = period(
        sink,
        "max_ejection_time",
        longest,
        defaults.max_ejection_time,
    );
    let jitter = proto.max_ejection_time_jitter.as_ref();
    let jitter = period(sink, "max_ejection_time_jitter", jitter, Duration::ZERO);
    let mut percent =
        |name: &str, value: Option<&UInt32Value>, default| match uint32(value).unwrap_or(default) {
            percent @ 0..=100 => Some(percent),
            percent => sink.error_at(name, format!("{percent} is not 0 to 100")),
        };
    macro_rules! percent {
        ($field:ident, $default:expr) => {
            percent(stringify!($field), proto.$field.as_ref(), $default)
        };
    }
    let consecutive = |threshold: Option<&UInt32Value>, enforcing| Consecutive {
        threshold: uint32(threshold).unwrap_or(5),
        enforcing,
    };
    let max_ejection_percent = percent!(max_ejection_percent, 10);
    let enforcing_5xx = percent!(enforcing_consecutive_5xx, 100);
    let enforcing_gateway = percent!(enforcing_consecutive_gateway_failure, 0);
    let enforcing_local = percent!(enforcing_consecutive_local_origin_failure, 100);
    let rate = percent!(enforcing_success_rate, 100);
    let rate_local = percent!(enforcing_local_origin_success_rate, 100);
    let share = percent!(enforcing_failure_percentage, 0);
    let share_local = percent!(enforcing_failure_percentage_local_origin, 0);
    let threshold = percent!(failure_percentage_threshold, 85);
    let number = |value: Option<&UInt32Value>, default: u32| uint32(value).unwrap_or(default);
    Some(OutlierDetection {
        interval,
        base_ejection_time: base?,
        max_ejection_time: longest?,
        max_ejection_time_jitter: jitter?,
        max_ejection_percent: max_ejection_percent?,
        consecutive_5xx: consecutive(proto.consecutive_5xx.as_ref(), enforcing_5xx?),
        consecutive_gateway_failure: consecutive(
            proto.consecutive_gateway_failure.as_ref(),
            enforcing_gateway?,
        ),
        consecutive_local_origin_failure: consecutive(
            proto.consecutive_local_origin_failure.as_ref(),
            enforcing_local?,
        ),
        split_external_local_origin_errors: proto.split_external_local_origin_errors,
        success_rate: SuccessRate {
            stdev_factor: number(proto.success_rate_stdev_factor.as_ref(), 1900),
            enforcing: rate?,
            enforcing_local_origin: rate_local?,
            minimum_hosts: number(proto.success_rate_minimum_hosts.as_ref(), 5),
            request_volume: number(proto.success_rate_request_volume.as_ref(), 100),
        },
        failure_percentage: FailurePercentage {
            threshold: threshold?,
            enforcing: share?,
            enforcing_local_origin: share_local?,
            minimum_hosts: number(proto.failure_percentage_minimum_hosts.as_ref(), 5),
            request_volume: number(proto.failure_percentage_request_volume.as_ref(), 50),
        },
        single_probe: false,
    })
}

fn period(
    sink: &mut Sink,
    name: &str,
    value: Option<&DurationProto>,
    default: Duration,
) -> Option<Duration> {
    match value {
        None => Some(default),
        Some(_) => duration(sink, name, value),
    }
}
