//! Hedge policies: Envoy's, and what is ours in the route's metadata.
//!
//! Stage 3.

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::{
    envoy::config::route::v3::{HedgePolicy as HedgeProto, Route as RouteProto},
    google::protobuf::{Struct, value::Kind},
};
use mesh_core::{
    config::{Fraction, HEDGE_ATTEMPTS_MAX, HedgeDelay, HedgePolicy, Percentile, RouteAction},
    route::Feature,
};

use crate::resource::{
    path::Sink,
    value::{self, uint32},
};

pub(super) fn policy(sink: &mut Sink, proto: &HedgeProto) -> Option<HedgePolicy> {
    sink.pending("hedge_policy", Feature::Hedge, true);
    sink.field("hedge_policy", |sink| {
        let initial_requests = uint32(proto.initial_requests.as_ref()).unwrap_or(1);
        sink.refuse("initial_requests", initial_requests == 0, "must not be 0");
        let chance = match &proto.additional_request_chance {
            Some(chance) => sink.field("additional_request_chance", |sink| {
                value::fraction(sink, chance)
            }),
            None => Some(Fraction::NONE),
        };
        Some(HedgePolicy {
            initial_requests,
            additional_request_chance: chance?,
            on_per_try_timeout: proto.hedge_on_per_try_timeout,
            ..HedgePolicy::default()
        })
    })
}

/// Adds what the route's metadata says ([`HedgePolicy::METADATA`]) to its action. What is not known
/// there is refused: whoever writes it means us.
pub(super) fn from_metadata(sink: &mut Sink, proto: &RouteProto, action: &mut RouteAction) {
    let metadata = proto.metadata.as_ref();
    let ours = metadata.and_then(|data| data.filter_metadata.get(HedgePolicy::METADATA));
    let (Some(ours), RouteAction::Forward(forward)) = (ours, action) else {
        return;
    };
    let hedge = &mut forward.extras.get_or_insert_default().hedge;
    let path = format!("metadata.filter_metadata[{:?}]", HedgePolicy::METADATA);
    sink.field(&path, |sink| {
        read(sink, ours, hedge.get_or_insert_default());
    });
}

fn read(sink: &mut Sink, ours: &Struct, hedge: &mut HedgePolicy) {
    let mut delay = None;
    let mut percentile = None;
    let mut min = Duration::ZERO;
    let sorted: BTreeMap<_, _> = ours.fields.iter().collect();
    for (name, value) in sorted {
        let Some(Kind::NumberValue(number)) = value.kind else {
            sink.error_at::<()>(name, "must be a number");
            continue;
        };
        let is_valid = match name.as_str() {
            "delay_ms" => set(&mut delay, millis(number)),
            "min_delay_ms" => millis(number).map(|limit| min = limit).is_some(),
            "percentile" => set(&mut percentile, Percentile::new(number)),
            "attempts_max" => {
                hedge.attempts_max = number as u32;
                (1.0..=f64::from(HEDGE_ATTEMPTS_MAX)).contains(&number)
            }
            _ => {
                sink.error_at::<()>(name, "is not known to this version");
                true
            }
        };
        sink.refuse(name, !is_valid, "is out of range");
    }
    hedge.delay = match (delay, percentile) {
        (Some(_), Some(_)) => {
            sink.error::<()>("delay_ms and percentile exclude each other");
            None
        }
        (Some(delay), None) => Some(HedgeDelay::Fixed(delay)),
        (None, Some(percentile)) => Some(HedgeDelay::Percentile { percentile, min }),
        (None, None) => None,
    };
}

/// Whether there is something to set.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    *place = value;
    place.is_some()
}

/// `None` for what is no duration.
fn millis(millis: f64) -> Option<Duration> {
    // Whole nanoseconds, which a number holds exactly for a quarter of a year.
    let nanos = (millis * 1e6).round();
    (0.0..9e15)
        .contains(&nanos)
        .then(|| Duration::from_nanos(nanos as u64))
}
