//! Hedge policies of routes: what xDS has fields for, and what it has not.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{core::v3::Metadata, route::v3::HedgePolicy as ProtoHedgePolicy},
    google::protobuf::{Struct, Value, value::Kind},
};
use mesh_core::config::{HedgeDelay, HedgePolicy, Route, RouteAction};

use super::{route::percent, uint32};

/// What xDS has fields for.
pub(super) fn policy(config: &HedgePolicy) -> ProtoHedgePolicy {
    ProtoHedgePolicy {
        initial_requests: Some(uint32(config.initial_requests)),
        additional_request_chance: Some(percent(config.additional_request_chance)),
        hedge_on_per_try_timeout: config.on_per_try_timeout,
    }
}

/// The rest, in the route's metadata.
pub(super) fn metadata(route: &Route) -> Option<Metadata> {
    let RouteAction::Forward(forward) = &route.action else {
        return None;
    };
    let policy = forward.extras.as_ref()?.hedge?;
    let mut fields = vec![("attempts_max", f64::from(policy.attempts_max))];
    match policy.delay {
        None => {}
        Some(HedgeDelay::Fixed(delay)) => fields.push(("delay_ms", millis(delay))),
        Some(HedgeDelay::Percentile { percentile, min }) => {
            fields.push(("percentile", percentile.percent()));
            fields.push(("min_delay_ms", millis(min)));
        }
    }
    let fields = fields.into_iter().map(|(name, number)| {
        let kind = Some(Kind::NumberValue(number));
        (name.to_owned(), Value { kind })
    });
    let fields = Struct {
        fields: fields.collect(),
    };
    Some(Metadata {
        filter_metadata: [(HedgePolicy::METADATA.to_owned(), fields)].into(),
        ..Metadata::default()
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
