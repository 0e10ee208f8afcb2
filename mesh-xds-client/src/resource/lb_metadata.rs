//! Metadata that load balancing looks at, and the subsets that are made by it.
//!
//! Stage 3. Only `filter_metadata["envoy.lb"]` is read, and `["envoy.transport_socket_match"]`, which
//! sockets are chosen by.

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::cluster::{
            LbSubsetConfig,
            lb_subset_config::{
                LbSubsetFallbackPolicy, LbSubsetSelector,
                lb_subset_selector::LbSubsetSelectorFallbackPolicy as SelectorFallback,
            },
        },
        core::v3::Metadata,
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use mesh_core::config::{LbMetadata, MetadataValue, SubsetFallback, SubsetSelector, Subsets};

use super::{path::Sink, report::report};

/// Of what subsets are made by.
pub(super) const NAMESPACE: &str = "envoy.lb";

/// Of what a [`SocketMatch`](mesh_core::config::SocketMatch) asks for.
pub(super) const SOCKET_NAMESPACE: &str = "envoy.transport_socket_match";

/// Deepest nesting of a value.
const DEPTH_MAX: usize = 16;

pub(super) fn of_lb(metadata: Option<&Metadata>) -> LbMetadata {
    let found = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE));
    found.map(of_struct).unwrap_or_default()
}

pub(super) fn of_struct(value: &Struct) -> LbMetadata {
    let fields = value.fields.iter();
    fields
        .map(|(key, value)| {
            (
                key.clone(),
                MetadataValue::from_json(json(value, 0).to_string()),
            )
        })
        .collect()
}

/// As JSON, whose objects are sorted by key.
pub(super) fn json(value: &Value, depth: usize) -> serde_json::Value {
    use serde_json::Value as Json;
    if depth > DEPTH_MAX {
        return Json::Null;
    }
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NumberValue(value)) => Json::from(*value),
        Some(Kind::StringValue(value)) => Json::String(value.clone()),
        Some(Kind::ListValue(list)) => {
            Json::Array(list.values.iter().map(|v| json(v, depth + 1)).collect())
        }
        Some(Kind::StructValue(fields)) => object(fields, depth + 1),
    }
}

pub(super) fn object(value: &Struct, depth: usize) -> serde_json::Value {
    let fields = value.fields.iter();
    let fields = fields.map(|(key, value)| (key.clone(), json(value, depth)));
    serde_json::Value::Object(fields.collect())
}

/// The outer `None` is an error; without selectors there are no subsets.
pub(super) fn subsets(sink: &mut Sink, proto: &LbSubsetConfig) -> Option<Option<Subsets>> {
    if proto.subset_selectors.is_empty() {
        return Some(None);
    }
    report!(sink, proto, [locality_weight_aware, scale_locality_weight]);
    sink.refuse("list_as_any", proto.list_as_any, "is not supported");
    sink.refuse(
        "metadata_fallback_policy",
        proto.metadata_fallback_policy != 0,
        "is not supported",
    );
    let fallback = match LbSubsetFallbackPolicy::try_from(proto.fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => SubsetFallback::NoFallback,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => SubsetFallback::AnyEndpoint,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => SubsetFallback::DefaultSubset,
        Err(_) => return sink.error_at("fallback_policy", "is not known"),
    };
    let selectors = sink.each("subset_selectors", &proto.subset_selectors, selector);
    let default = proto.default_subset.as_ref();
    Some(Some(Subsets {
        selectors,
        fallback,
        default_subset: default.map(of_struct).unwrap_or_default(),
        panic_mode_any: proto.panic_mode_any,
    }))
}

fn selector(sink: &mut Sink, proto: &LbSubsetSelector) -> Option<SubsetSelector> {
    sink.refuse(
        "single_host_per_subset",
        proto.single_host_per_subset,
        "is not supported: a subset has all endpoints with its metadata",
    );
    if proto.keys.is_empty() {
        return sink.error_at("keys", "is empty");
    }
    let fallback = match SelectorFallback::try_from(proto.fallback_policy) {
        Ok(SelectorFallback::NotDefined) => None,
        Ok(SelectorFallback::NoFallback) => Some(SubsetFallback::NoFallback),
        Ok(SelectorFallback::AnyEndpoint) => Some(SubsetFallback::AnyEndpoint),
        Ok(SelectorFallback::DefaultSubset) => Some(SubsetFallback::DefaultSubset),
        Ok(SelectorFallback::KeysSubset) => Some(SubsetFallback::KeysSubset),
        Err(_) => return sink.error_at("fallback_policy", "is not known"),
    };
    let fewer = &proto.fallback_keys_subset;
    let is_proper = !fewer.is_empty()
        && fewer.len() < proto.keys.len()
        && fewer.iter().all(|key| proto.keys.contains(key));
    if fallback == Some(SubsetFallback::KeysSubset) && !is_proper {
        let reason = "must be some of the keys, but not all";
        return sink.error_at("fallback_keys_subset", reason);
    }
    Some(SubsetSelector {
        keys: proto.keys.clone(),
        fallback,
        fallback_keys: fewer.clone(),
    })
}
