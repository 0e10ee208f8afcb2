//! Hedge policies in the metadata of routes.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::core::v3::Metadata,
    google::protobuf::{Struct, Value, value},
};
use mesh_core::config::{HedgeDelay, HedgePolicy, Percentile};

use super::{
    route::{forward, with},
    *,
};

fn of(fields: &[(&str, f64)]) -> Any {
    let fields = fields.iter().map(|(name, number)| {
        let kind = Some(value::Kind::NumberValue(*number));
        ((*name).to_owned(), Value { kind })
    });
    let fields = Struct {
        fields: fields.collect(),
    };
    with(|route| {
        route.metadata = Some(Metadata {
            filter_metadata: [(HedgePolicy::METADATA.to_owned(), fields)].into(),
            ..Metadata::default()
        });
    })
}

fn decoded(fields: &[(&str, f64)]) -> HedgePolicy {
    let extras = forward(of(fields)).extras.expect("a policy");
    extras.hedge.expect("a policy")
}

#[test]
fn what_is_ours_is_read_from_the_metadata() {
    let fixed = decoded(&[("delay_ms", 20.5), ("attempts_max", 2.0)]);
    let expected = HedgePolicy {
        delay: Some(HedgeDelay::Fixed(Duration::from_micros(20_500))),
        attempts_max: 2,
        ..HedgePolicy::default()
    };
    assert_eq!(fixed, expected);
    let percentile = decoded(&[("percentile", 99.5), ("min_delay_ms", 5.0)]);
    let expected = HedgeDelay::Percentile {
        percentile: Percentile::new(99.5).unwrap(),
        min: Duration::from_millis(5),
    };
    assert_eq!(percentile.delay, Some(expected));
}

#[test]
fn what_is_not_known_or_out_of_range_there_is_refused() {
    for fields in [
        &[("delay", 1.0)][..],
        &[("delay_ms", -1.0)],
        &[("percentile", 100.0)],
        &[("attempts_max", 6.0)],
        &[("attempts_max", 0.0)],
        &[("delay_ms", 1.0), ("percentile", 50.0)],
    ] {
        let place = "virtual_hosts[0].routes[0].metadata.filter_metadata[\"mesh.v1.HedgePolicy\"]";
        refused(Kind::Route, of(fields), place);
    }
}
