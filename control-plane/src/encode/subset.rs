//! Subsets of a cluster (CDS), and the metadata that they are made by (EDS, RDS).

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::cluster::{
            LbSubsetConfig,
            lb_subset_config::{
                LbSubsetFallbackPolicy, LbSubsetSelector,
                lb_subset_selector::LbSubsetSelectorFallbackPolicy,
            },
        },
        core::v3::Metadata,
    },
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};
use mesh_core::config::{LbMetadata, SubsetFallback, SubsetSelector, Subsets};

/// Where load balancing looks for metadata.
const NAMESPACE: &str = "envoy.lb";
const SOCKET_NAMESPACE: &str = "envoy.transport_socket_match";

pub(super) fn subset_config(config: &Subsets) -> LbSubsetConfig {
    let default_subset = &config.default_subset;
    let fallback = match config.fallback {
        // Of all subsets together there are none of fewer keys.
        SubsetFallback::NoFallback | SubsetFallback::KeysSubset => {
            LbSubsetFallbackPolicy::NoFallback
        }
        SubsetFallback::AnyEndpoint => LbSubsetFallbackPolicy::AnyEndpoint,
        SubsetFallback::DefaultSubset => LbSubsetFallbackPolicy::DefaultSubset,
    };
    LbSubsetConfig {
        fallback_policy: fallback as i32,
        default_subset: (!default_subset.is_empty()).then(|| structure(default_subset)),
        subset_selectors: config.selectors.iter().map(selector).collect(),
        panic_mode_any: config.panic_mode_any,
        ..LbSubsetConfig::default()
    }
}

fn selector(config: &SubsetSelector) -> LbSubsetSelector {
    let fallback = match config.fallback {
        None => LbSubsetSelectorFallbackPolicy::NotDefined,
        Some(SubsetFallback::NoFallback) => LbSubsetSelectorFallbackPolicy::NoFallback,
        Some(SubsetFallback::AnyEndpoint) => LbSubsetSelectorFallbackPolicy::AnyEndpoint,
        Some(SubsetFallback::DefaultSubset) => LbSubsetSelectorFallbackPolicy::DefaultSubset,
        Some(SubsetFallback::KeysSubset) => LbSubsetSelectorFallbackPolicy::KeysSubset,
    };
    LbSubsetSelector {
        keys: config.keys.clone(),
        fallback_policy: fallback as i32,
        fallback_keys_subset: config.fallback_keys.clone(),
        ..LbSubsetSelector::default()
    }
}

/// What is looked at by subsets and by sockets; `None` where there is none.
pub(super) fn metadata(config: &LbMetadata, socket: Option<&LbMetadata>) -> Option<Metadata> {
    let config = Some(config).filter(|config| !config.is_empty());
    let of_lb = config.map(|config| (NAMESPACE.to_owned(), structure(config)));
    let of_socket = socket.map(|labels| (SOCKET_NAMESPACE.to_owned(), structure(labels)));
    let filter_metadata: HashMap<_, _> = of_lb.into_iter().chain(of_socket).collect();
    (!filter_metadata.is_empty()).then(|| Metadata {
        filter_metadata,
        ..Metadata::default()
    })
}

pub(super) fn structure(config: &LbMetadata) -> Struct {
    let fields = config.iter().map(|(key, metadata)| {
        let json = serde_json::from_str(metadata.as_json()).unwrap_or_default();
        (key.clone(), value(json))
    });
    Struct {
        fields: fields.collect(),
    }
}

pub(super) fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(value).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(key, field)| (key, value(field)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
