//! HedgePolicy: second attempts of the calls to a service.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{
    HEDGE_ATTEMPTS_MAX, HedgeDelay, HedgePolicy as Hedging, Percentile, RouteAction,
};

use super::{
    CompileOptions, Compiled,
    route_match::Wrong,
    routes::passed_over,
    scoped::Declaration,
    services::{ServiceInfo, find, unknown_host},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{HedgePolicy, Object, ObjectSet, Spec},
    value,
};

/// The least delay of a percentile, unless the policy says another: what is faster is not worth a
/// second attempt.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// Attempts under way at most, unless the policy says another number.
const MAX_ATTEMPTS: u32 = 2;

/// By the service's full name.
pub(super) type Hedges<'o> = BTreeMap<String, (&'o Arc<Object>, Hedging)>;

/// The policy of each service that has one.
pub(super) fn collect<'o>(
    objects: &'o ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) -> Hedges<'o> {
    let mut hedges = Hedges::new();
    for object in objects.values() {
        let Spec::HedgePolicy(spec) = &object.spec else {
            continue;
        };
        let namespace = &object.key.namespace;
        let Some(service) = find(services, &spec.host, namespace, &options.cluster_domain) else {
            findings.push(unknown_host(object, "spec.host", &spec.host));
            continue;
        };
        compiled.made_of(&service.fqdn, &object.key);
        match hedging(spec) {
            Ok(hedging) => match hedges.get(&service.fqdn) {
                Some((winner, _)) => {
                    findings.push(passed_over(object, &service.fqdn, &winner.key));
                }
                None => _ = hedges.insert(service.fqdn.clone(), (object, hedging)),
            },
            Err((field, message)) => {
                findings.push(object.diagnose(BAD_VALUE, &format!("spec.{field}"), message, ""));
            }
        }
    }
    hedges
}

/// Makes the policy that of every route which sends requests somewhere.
pub(super) fn apply(hedging: &Hedging, declarations: &mut [Declaration]) {
    let routes = declarations.iter_mut().flat_map(|d| &mut d.routes);
    for declared in routes {
        if let RouteAction::Forward(forward) = &mut declared.route.action {
            forward.extras.get_or_insert_default().hedge = Some(*hedging);
        }
    }
}

fn hedging(spec: &HedgePolicy) -> Result<Hedging, Wrong> {
    let wrong = |field: &str| {
        let field = field.to_owned();
        move |message: String| (field, message)
    };
    let min = match &spec.min_delay {
        Some(min) => value::duration(min).map_err(wrong("minDelay"))?,
        None => MIN_DELAY,
    };
    let delay = match (&spec.delay, spec.percentile) {
        (Some(_), Some(_)) => {
            let message = "delay and percentile exclude each other".to_owned();
            return Err(wrong("percentile")(message));
        }
        (Some(delay), None) => {
            let delay = value::duration(delay).map_err(wrong("delay"))?;
            Some(HedgeDelay::Fixed(delay))
        }
        (None, Some(percent)) => {
            let percentile = Percentile::new(percent).ok_or_else(|| {
                wrong("percentile")(format!("{percent} is not between 0 and 100"))
            })?;
            Some(HedgeDelay::Percentile { percentile, min })
        }
        (None, None) => None,
    };
    let on_per_try_timeout = spec.on_per_try_timeout.unwrap_or(false);
    if delay.is_none() && !on_per_try_timeout {
        let message = "the policy asks for nothing: set delay, percentile or onPerTryTimeout";
        return Err(wrong("delay")(message.to_owned()));
    }
    if spec.min_delay.is_some() && spec.percentile.is_none() {
        let message = "it is for percentile, which is not set".to_owned();
        return Err(wrong("minDelay")(message));
    }
    let attempts_max = spec.max_attempts.unwrap_or(MAX_ATTEMPTS);
    if !(2..=HEDGE_ATTEMPTS_MAX).contains(&attempts_max) {
        let message = format!("{attempts_max} is not 2 to {HEDGE_ATTEMPTS_MAX}");
        return Err(wrong("maxAttempts")(message));
    }
    Ok(Hedging {
        delay,
        on_per_try_timeout,
        attempts_max,
        ..Hedging::default()
    })
}
