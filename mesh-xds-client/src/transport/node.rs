//! Who we are, on the wire.
//!
//! Stage 1. From the bootstrap's node to protobuf, with what this library can do.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::config::core::v3::{Locality, Node as NodeProto, node::UserAgentVersionType},
    google::protobuf::{ListValue, Struct, Value, value::Kind as ValueKind},
};

use crate::bootstrap::Node;

/// What this library can do beyond the basic protocol.
const CLIENT_FEATURES: [&str; 2] = [
    "xds.config.resource-in-sotw",
    "xds.config.supports-resource-ttl",
];

/// Who we are.
pub(crate) fn node(node: &Node) -> NodeProto {
    let metadata = node
        .metadata
        .iter()
        .map(|(name, value)| (name.clone(), proto_value(value)));
    NodeProto {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| Struct {
            fields: metadata.collect::<HashMap<_, _>>(),
        }),
        locality: Some(Locality {
            region: node.locality.region.clone(),
            zone: node.locality.zone.clone(),
            sub_zone: node.locality.sub_zone.clone(),
        }),
        user_agent_name: "mesh-rs".into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        client_features: CLIENT_FEATURES.map(Into::into).to_vec(),
        ..NodeProto::default()
    }
}

fn proto_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => ValueKind::NullValue(0),
        Json::Bool(value) => ValueKind::BoolValue(*value),
        Json::Number(value) => ValueKind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => ValueKind::StringValue(value.clone()),
        Json::Array(values) => ValueKind::ListValue(ListValue {
            values: values.iter().map(proto_value).collect(),
        }),
        Json::Object(fields) => ValueKind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), proto_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
