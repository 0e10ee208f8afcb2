//! Balancing, slow start and passive health, from a DestinationRule.
//!
//! As Istio has them: success rates do not eject, kinds of failures in a row that are set to 0 do not
//! either, and without `minHealthPercent` there is no panic.

use std::time::Duration;

use mesh_core::config::{
    Cluster, Consecutive, Discovery, HashPolicy, LbPolicy, OriginalDst, OutlierDetection, SlowStart,
};

use super::{
    clusters::default_lb,
    hashing::consistent_hash,
    locality::{self, Setting},
};
use crate::{
    model::{LoadBalancer, OutlierSpec},
    value,
};

/// Takes the field and what is wrong there.
pub(super) type Wrong<'w> = dyn FnMut(&str, String) + 'w;

/// Applies a balancer; what it asks of routes, and of endpoints.
pub(super) fn apply(
    spec: &LoadBalancer,
    cluster: &mut Cluster,
    wrong: &mut Wrong<'_>,
) -> (Option<HashPolicy>, Option<Setting>) {
    match spec.simple.as_deref() {
        None | Some("UNSPECIFIED") => {}
        Some("ROUND_ROBIN") => cluster.lb_policy = LbPolicy::RoundRobin,
        Some("LEAST_REQUEST" | "LEAST_CONN") => cluster.lb_policy = default_lb(),
        Some("RANDOM") => cluster.lb_policy = LbPolicy::Random,
        Some("PASSTHROUGH") => {
            cluster.discovery = Discovery::OriginalDst(OriginalDst::default());
        }
        Some(other) => wrong("simple", format!("{other} is not supported")),
    }
    let mut hash = None;
    if let Some(hashing) = &spec.consistent_hash
        && let Some((balancer, policy)) = consistent_hash(hashing, wrong)
    {
        if spec.simple.is_some() {
            wrong(
                "simple",
                "there is a consistentHash, which is followed".to_owned(),
            );
        }
        cluster.lb_policy = balancer;
        hash = Some(policy);
    }
    if let Some(slow_start) = slow_start(spec, wrong) {
        cluster.common_lb_config.slow_start = Some(slow_start);
    }
    let setting = spec.locality_lb_setting.as_ref();
    let setting = setting.and_then(|spec| locality::setting(spec, wrong));
    cluster.common_lb_config.locality_weighted |= matches!(setting, Some(Setting::Distribute(_)));
    (hash, setting)
}

fn slow_start(spec: &LoadBalancer, wrong: &mut Wrong<'_>) -> Option<SlowStart> {
    let warmup = spec.warmup.as_ref();
    let (field, window) = match warmup.and_then(|warmup| warmup.duration.as_deref()) {
        Some(window) => ("warmup.duration", window),
        None => ("warmupDurationSecs", spec.warmup_duration_secs.as_deref()?),
    };
    let window = duration(field, window, wrong).filter(|window| !window.is_zero())?;
    let mut slow_start = SlowStart::new(window);
    match warmup.and_then(|warmup| warmup.minimum_percent) {
        None => {}
        Some(percent) if (0.0..=100.0).contains(&percent) => {
            slow_start.min_weight_percent = percent;
        }
        Some(percent) => {
            let field = "warmup.minimumPercent";
            wrong(field, format!("{percent} is not 0 to 100"));
        }
    }
    match warmup.and_then(|warmup| warmup.aggression) {
        None => {}
        Some(aggression) if aggression.is_finite() && aggression > 0.0 => {
            slow_start.aggression = aggression;
        }
        Some(aggression) => {
            let field = "warmup.aggression";
            wrong(field, format!("{aggression} is not above 0"));
        }
    }
    Some(slow_start)
}

pub(super) fn apply_outliers(spec: &OutlierSpec, cluster: &mut Cluster, wrong: &mut Wrong<'_>) {
    let mut config = OutlierDetection::default();
    config.success_rate.enforcing = 0;
    config.success_rate.enforcing_local_origin = 0;
    let any = spec.consecutive_5xx_errors.or(spec.consecutive_errors);
    set(&mut config.consecutive_5xx, any);
    let gateway = spec.consecutive_gateway_errors;
    set(&mut config.consecutive_gateway_failure, gateway);
    config.split_external_local_origin_errors = spec.split_external_local_origin_errors;
    let local = spec.consecutive_local_origin_failures;
    set(&mut config.consecutive_local_origin_failure, local);
    for (field, text, place) in [
        ("interval", &spec.interval, &mut config.interval),
        (
            "baseEjectionTime",
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
            let field = "maxEjectionPercent";
            wrong(field, format!("{percent} is not 0 to 100"));
        }
    }
    match spec.min_health_percent {
        None => {}
        Some(percent @ 0..=100) => {
            cluster.common_lb_config.healthy_panic_threshold = Some(percent);
        }
        Some(percent) => {
            let field = "minHealthPercent";
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

pub(super) fn duration(field: &str, text: &str, wrong: &mut Wrong<'_>) -> Option<Duration> {
    match value::duration(text) {
        Ok(duration) => Some(duration),
        Err(message) => {
            wrong(field, message);
            None
        }
    }
}
