//! Policies that Envoy and gRPC do not have, and those of the application (gRFC A52 custom policies).
//!
//! Stage 3. In `load_balancing_policy`, as an `xds.type.v3.TypedStruct`: its `type_url` ends in the
//! policy's name, its `value` is the settings. `mesh.v1.PeakEwma` and `mesh.v1.Prequal` are ours; any
//! other name is one that the application has given to `MeshBuilder::lb_policy`. Durations are text such
//! as `1.5s`, as in JSON.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::cluster::v3::LoadBalancingPolicy,
    google::protobuf::{Any, Struct, UInt32Value},
};
use mesh_core::config::{LbPolicy, PeakEwma, Prequal};
use prost::Name;
use serde_json::Value;

use super::{lb_metadata, path::Sink, value::parse};

/// `xds.type.v3.TypedStruct`, which `envoy-types` leaves out.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TypedStruct {
    /// What the value is; the part after the last slash counts.
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    /// The settings.
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Struct>,
}

/// `RandomSubsetting` by the client's place instead of chance, see
/// [`Subsetting::Deterministic`](mesh_core::config::Subsetting::Deterministic).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeterministicSubsetting {
    /// How many endpoints a client uses at least; above 0.
    #[prost(message, optional, tag = "1")]
    pub(super) subset_size: Option<UInt32Value>,
    /// The policy among them.
    #[prost(message, optional, tag = "2")]
    pub(super) child_policy: Option<LoadBalancingPolicy>,
}

impl Name for DeterministicSubsetting {
    const NAME: &'static str = "DeterministicSubsetting";
    const PACKAGE: &'static str = "mesh.v1";

    fn type_url() -> String {
        "type.googleapis.com/mesh.v1.DeterministicSubsetting".to_owned()
    }
}

impl Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "xds.type.v3";

    fn type_url() -> String {
        "type.googleapis.com/xds.type.v3.TypedStruct".to_owned()
    }
}

/// The outer `None` is a policy that is not supported, the inner one an error.
pub(super) fn decode(sink: &mut Sink, any: &Any) -> Option<Option<LbPolicy>> {
    let Some(typed) = parse::<TypedStruct>(sink, any) else {
        return Some(None);
    };
    let name = typed.type_url.rsplit('/').next().unwrap_or_default();
    let settings = typed.value.as_ref();
    let settings = settings.map_or(Value::Null, |value| lb_metadata::object(value, 0));
    Some(sink.field("value", |sink| match name {
        "" => sink.error("the type_url names no policy"),
        "mesh.v1.PeakEwma" => peak_ewma(sink, &settings),
        "mesh.v1.Prequal" => prequal(sink, &settings),
        name => Some(LbPolicy::Custom {
            name: name.to_owned(),
            config: match settings {
                Value::Null => "{}".to_owned(),
                settings => settings.to_string(),
            },
        }),
    }))
}

fn peak_ewma(sink: &mut Sink, settings: &Value) -> Option<LbPolicy> {
    let defaults = PeakEwma::default();
    known(sink, settings, &["decay", "default_rtt", "failure_penalty"]);
    let mut time = |name, default| duration(sink, settings, name, default);
    let decay = time("decay", defaults.decay);
    let default_rtt = time("default_rtt", defaults.default_rtt);
    let failure_penalty = time("failure_penalty", defaults.failure_penalty);
    Some(LbPolicy::PeakEwma(PeakEwma {
        decay: decay?,
        default_rtt: default_rtt?,
        failure_penalty: failure_penalty?,
    }))
}

fn prequal(sink: &mut Sink, settings: &Value) -> Option<LbPolicy> {
    let defaults = Prequal::default();
    let names = ["choice_count", "rif_quantile", "max_age", "failure_penalty"];
    known(sink, settings, &names);
    let choice_count = match settings.get("choice_count").map(Value::as_f64) {
        None => defaults.choice_count,
        Some(Some(count)) if (2.0..=16.0).contains(&count) => count as u32,
        Some(_) => return sink.error_at("choice_count", "must be 2 to 16"),
    };
    let rif_quantile = match settings.get("rif_quantile").map(Value::as_f64) {
        None => defaults.rif_quantile,
        Some(Some(share)) if (0.0..=1.0).contains(&share) => share,
        Some(_) => return sink.error_at("rif_quantile", "must be 0 to 1"),
    };
    let max_age = duration(sink, settings, "max_age", defaults.max_age);
    let penalty = defaults.failure_penalty;
    let failure_penalty = duration(sink, settings, "failure_penalty", penalty);
    Some(LbPolicy::Prequal(Prequal {
        choice_count,
        rif_quantile,
        max_age: max_age?,
        failure_penalty: failure_penalty?,
    }))
}

/// Refuses settings that nobody reads.
fn known(sink: &mut Sink, settings: &Value, names: &[&str]) {
    for name in settings
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
    {
        let is_known = names.contains(&name.as_str());
        sink.refuse(
            name,
            !is_known,
            &format!("is not one of {}", names.join(", ")),
        );
    }
}

fn duration(sink: &mut Sink, settings: &Value, name: &str, default: Duration) -> Option<Duration> {
    let Some(value) = settings.get(name) else {
        return Some(default);
    };
    let seconds = value
        .as_str()
        .and_then(|text| text.strip_suffix('s')?.parse().ok());
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match time.filter(|time| !time.is_zero()) {
        Some(time) => Some(time),
        None => sink.error_at(
            name,
            format!("{value} is not a time above 0, such as \"1.5s\""),
        ),
    }
}
