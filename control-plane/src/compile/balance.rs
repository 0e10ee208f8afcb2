//! Slow start and passive health, from a DestinationRule.
//!
//! As Istio has them: success rates do not eject, kinds of failures in a row that are set to 0 do not
//! either, and without `minHealthPercent` there is no panic.

use std::time::Duration;

use mesh_core::config::{Cluster, Consecutive, OutlierDetection, SlowStart};

use crate::{
    model::{LoadBalancer, OutlierSpec},
    value,
};

/// Takes the field and what is wrong there.
type Wrong<'w> = dyn FnMut(&str, String) + 'w;

pub(super) fn slow_start(spec: &LoadBalancer, wrong: &mut Wrong<'_>) -> Option<SlowStart> {
    let warmup = spec.warmup.as_ref();
    let (field, window) = match warmup.and_then(|warmup| warmup.duration.as_deref()) {
        Some(window) => ("loadBalancer.warmup.duration", window),
        None => (
            "loadBalancer.warmupDurationSecs",
            spec.warmup_duration_secs.as_deref()?,
        ),
    };
    let window = duration(field, window, wrong).filter(|window| !window.is_zero())?;
    let mut slow_start = SlowStart::new(window);
    match warmup.and_then(|warmup| warmup.minimum_percent) {
        None => {}
        Some(percent) if (0.0..=100.0).contains(&percent) => {
            slow_start.min_weight_percent = percent;
        }
        Some(percent) => {
            let field = "loadBalancer.warmup.minimumPercent";
            wrong(field, format!("{percent} is not 0 to 100"));
        }
    }
    match warmup.and_then(|warmup| warmup.aggression) {
        None => {}
        Some(aggression) if aggression.is_finite() && aggression > 0.0 => {
            slow_start.aggression = aggression;
        }
        Some(aggression) => {
            let field = "loadBalancer.warmup.aggression";
            wrong(field, format!("{aggression} is not above 0"));
        }
    }
    Some(slow_start)
}

pub(super) fn apply_outliers(spec: &OutlierSpec, cluster: &mut Cluster, wrong: &mut Wrong<'_>) {
    let mut config = OutlierDetection::default();
    config.success_rate.enforcing = 0;
    config.success_rate.enforcing_local_origin = 0;
    set(&mut config.consecutive_5xx, spec.consecutive_5xx_errors);
    let gateway = spec.consecutive_gateway_errors;
    match (gateway, spec.consecutive_errors) {
        (None, Some(old)) => {
            set(&mut config.consecutive_gateway_failure, Some(old));
            if spec.consecutive_5xx_errors.is_none() {
                config.consecutive_5xx.enforcing = 0;
            }
        }
        (gateway, _) => set(&mut config.consecutive_gateway_failure, gateway),
    }
    config.split_external_local_origin_errors = spec.split_external_local_origin_errors;
    let local = spec.consecutive_local_origin_failures;
    set(&mut config.consecutive_local_origin_failure, local);
    for (field, text, place) in [
        (
            "outlierDetection.interval",
            &spec.interval,
            &mut config.interval,
        ),
        (
            "outlierDetection.baseEjectionTime",
            &spec.base_ejection_time,
            &mut config.base_ejection_time,
        ),
    ] {
        let read = text
            .as_deref()
            .and_then(|text| duration(field, text, wrong));
        match read {
            Some(time) if time.is_zero() => wrong(field, "must be longer than 0s".into()),
            Some(time) => *place = time,
            None => {}
        }
    }
    match spec.max_ejection_percent {
        None => {}
        Some(percent @ 0..=100) => config.max_ejection_percent = percent,
        Some(percent) => {
            let field = "outlierDetection.maxEjectionPercent";
            wrong(field, format!("{percent} is not 0 to 100"));
        }
    }
    match spec.min_health_percent {
        None => {}
        Some(percent @ 0..=100) => {
            cluster.common_lb_config.healthy_panic_threshold = Some(percent);
        }
        Some(percent) => {
            let field = "outlierDetection.minHealthPercent";
            wrong(field, format!("{percent} is not 0 to 100"));
        }
    }
    cluster.outlier_detection = Some(config);
}

/// 0 is off.
fn set(kind: &mut Consecutive, threshold: Option<u32>) {
    match threshold {
        None => {}
        Some(0) => kind.enforcing = 0,
        Some(threshold) => {
            *kind = Consecutive {
                threshold,
                enforcing: 100,
            };
        }
    }
}

fn duration(field: &str, text: &str, wrong: &mut Wrong<'_>) -> Option<Duration> {
    match value::duration(text) {
        Ok(duration) => Some(duration),
        Err(message) => {
            wrong(field, message);
            None
        }
    }
}
