//! Policies that are in no xDS extension: as an `xds.type.v3.TypedStruct`, whose `type_url` ends in
//! the policy's name and whose value is its settings (gRFC A52). Ours are `mesh.v1.PeakEwma` and
//! `mesh.v1.Prequal`; any other is one that the application was given.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{LoadBalancingPolicy, load_balancing_policy::Policy},
        core::v3::TypedExtensionConfig,
    },
    google::protobuf::{Struct, UInt32Value, value::Kind},
};
use mesh_core::config::LbPolicy;
use prost::Name;
use serde_json::json;

use super::{any, subset::value};

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

/// `RandomSubsetting` by the client's place instead of chance.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeterministicSubsetting {
    /// How many endpoints a client uses at least.
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

/// `None` for a policy that has a form of its own.
pub(super) fn encode(policy: &LbPolicy) -> Option<LoadBalancingPolicy> {
    let (name, settings) = match policy {
        LbPolicy::PeakEwma(config) => (
            "mesh.v1.PeakEwma",
            json!({
                "decay": seconds(config.decay),
                "default_rtt": seconds(config.default_rtt),
                "failure_penalty": seconds(config.failure_penalty),
            }),
        ),
        LbPolicy::Prequal(config) => (
            "mesh.v1.Prequal",
            json!({
                "choice_count": config.choice_count,
                "rif_quantile": config.rif_quantile,
                "max_age": seconds(config.max_age),
                "failure_penalty": seconds(config.failure_penalty),
            }),
        ),
        LbPolicy::Custom { name, config } => (
            name.as_str(),
            serde_json::from_str(config).unwrap_or_default(),
        ),
        _ => return None,
    };
    let settings = match value(settings).kind {
        Some(Kind::StructValue(settings)) => Some(settings),
        _ => None,
    };
    let typed = TypedStruct {
        type_url: format!("type.googleapis.com/{name}"),
        value: settings,
    };
    Some(LoadBalancingPolicy {
        policies: vec![Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: name.to_owned(),
                typed_config: Some(any(&typed)),
            }),
        }],
    })
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}
