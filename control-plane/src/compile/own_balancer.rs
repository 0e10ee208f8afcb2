//! The balancer that a policy of our own names.

use std::time::Duration;

use mesh_core::config::{
    ClientSideWrr, LbPolicy, OriginalDst, PeakEwma, Prequal, WEIGHT_UPDATE_PERIOD_MIN,
};

use super::balance::{Wrong, duration};
use crate::model::{BalancerPolicy, ClientSideWrrSpec, PeakEwmaSpec, PrequalSpec};

/// `None` where it names none, or says of it what cannot be.
pub(super) fn read(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<LbPolicy> {
    let named = [
        ("peakEwma", policy.peak_ewma.is_some()),
        ("prequal", policy.prequal.is_some()),
        (
            "clientSideWeightedRoundRobin",
            policy.client_side_weighted_round_robin.is_some(),
        ),
    ];
    let mut named = named.into_iter().filter(|(_, is_named)| *is_named);
    if let Some((followed, _)) = named.next() {
        for (name, _) in named {
            wrong(name, format!("there is a {followed}, which is followed"));
        }
    }
    if let Some(spec) = &policy.peak_ewma {
        return Some(LbPolicy::PeakEwma(peak_ewma(spec, wrong)));
    }
    if let Some(spec) = &policy.prequal {
        return prequal(spec, wrong).map(LbPolicy::Prequal);
    }
    let spec = policy.client_side_weighted_round_robin.as_ref()?;
    client_side_wrr(spec, wrong).map(LbPolicy::ClientSideWeightedRoundRobin)
}

/// How requests name the address that they go to, where they do.
pub(super) fn original_dst(policy: &BalancerPolicy, wrong: &mut Wrong<'_>) -> Option<OriginalDst> {
    const FIELD: &str = "originalDestination";
    let spec = policy.original_destination.as_ref()?;
    let own = OriginalDst::default();
    let http_header = match &spec.http_header {
        None => None,
        Some(name) => match name.parse() {
            Ok(name) => Some(name),
            Err(_) => {
                let field = format!("{FIELD}.httpHeader");
                wrong(&field, format!("{name:?} is no name of a header"));
                return None;
            }
        },
    };
    if spec.port_override == Some(0) {
        let field = format!("{FIELD}.portOverride");
        wrong(&field, "0 is not 1 to 65535".to_owned());
        return None;
    }
    let field = format!("{FIELD}.cleanupInterval");
    let interval = time(&field, spec.cleanup_interval.as_ref(), wrong);
    Some(OriginalDst {
        http_header,
        port_override: spec.port_override,
        cleanup_interval: interval.unwrap_or(own.cleanup_interval),
    })
}

/// A time above 0, if one is said.
fn time(field: &str, text: Option<&String>, wrong: &mut Wrong<'_>) -> Option<Duration> {
    let read = duration(field, text?, wrong)?;
    if read.is_zero() {
        wrong(field, "must be longer than 0s".to_owned());
    }
    Some(read).filter(|read| !read.is_zero())
}

fn peak_ewma(spec: &PeakEwmaSpec, wrong: &mut Wrong<'_>) -> PeakEwma {
    let own = PeakEwma::default();
    let mut time = |field: &str, text: &Option<String>, default| {
        time(&format!("peakEwma.{field}"), text.as_ref(), wrong).unwrap_or(default)
    };
    PeakEwma {
        decay: time("decay", &spec.decay, own.decay),
        default_rtt: time("defaultRtt", &spec.default_rtt, own.default_rtt),
        failure_penalty: time("failurePenalty", &spec.failure_penalty, own.failure_penalty),
    }
}

fn prequal(spec: &PrequalSpec, wrong: &mut Wrong<'_>) -> Option<Prequal> {
    let own = Prequal::default();
    let mut time = |field: &str, text: &Option<String>| {
        time(&format!("prequal.{field}"), text.as_ref(), wrong)
    };
    let max_age = time("maxAge", &spec.max_age).unwrap_or(own.max_age);
    let penalty = time("failurePenalty", &spec.failure_penalty);
    let oob_reporting_period = time("oobReportingPeriod", &spec.oob_reporting_period);
    let choice_count = spec.choice_count.unwrap_or(own.choice_count);
    let rif_quantile = spec.rif_quantile.unwrap_or(own.rif_quantile);
    if !(2..=16).contains(&choice_count) {
        wrong(
            "prequal.choiceCount",
            format!("{choice_count} is not 2 to 16"),
        );
        return None;
    }
    if !(0.0..=1.0).contains(&rif_quantile) {
        wrong(
            "prequal.rifQuantile",
            format!("{rif_quantile} is not 0 to 1"),
        );
        return None;
    }
    Some(Prequal {
        choice_count,
        rif_quantile,
        max_age,
        failure_penalty: penalty.unwrap_or(own.failure_penalty),
        oob_reporting_period,
    })
}

fn client_side_wrr(spec: &ClientSideWrrSpec, wrong: &mut Wrong<'_>) -> Option<ClientSideWrr> {
    const FIELD: &str = "clientSideWeightedRoundRobin";
    let own = ClientSideWrr::default();
    let mut time = |field: &str, text: &Option<String>| {
        time(&format!("{FIELD}.{field}"), text.as_ref(), wrong)
    };
    let expiration = time("weightExpirationPeriod", &spec.weight_expiration_period);
    let update = time("weightUpdatePeriod", &spec.weight_update_period);
    let oob_reporting_period = time("oobReportingPeriod", &spec.oob_reporting_period);
    // No blackout is one that is said.
    let blackout = spec.blackout_period.as_ref();
    let blackout =
        blackout.and_then(|text| duration(&format!("{FIELD}.blackoutPeriod"), text, wrong));
    let penalty = spec
        .error_utilization_penalty
        .unwrap_or(own.error_utilization_penalty);
    if !(0.0..=f64::from(f32::MAX)).contains(&penalty) {
        let field = format!("{FIELD}.errorUtilizationPenalty");
        wrong(&field, format!("{penalty} is not 0 or more"));
        return None;
    }
    let update = update.unwrap_or(own.weight_update_period);
    Some(ClientSideWrr {
        blackout_period: blackout.unwrap_or(own.blackout_period),
        weight_expiration_period: expiration.unwrap_or(own.weight_expiration_period),
        weight_update_period: update.max(WEIGHT_UPDATE_PERIOD_MIN),
        error_utilization_penalty: penalty,
        metric_names_for_computing_utilization: spec.metric_names_for_computing_utilization.clone(),
        oob_reporting_period,
    })
}
